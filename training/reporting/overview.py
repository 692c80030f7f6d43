"""Sections that set models side by side: accuracy, differences, settings, cost, training, provenance."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import yaml

from training.reporting import ablation, comparison, diagrams, tables
from training.reporting.answers import Record, Records, all_sets, by_model, is_expert, scores_by_model
from training.reporting.blocks import Block, Listing, Mark, Panel, Picture, Table, Text
from training.reporting.source import Absent, Source


def accuracy(source: Source) -> Iterator[Block]:
    """Top-1 by channel set: a table, its picture, and a heat map."""
    records, sets = source.records, all_sets(source.records)
    yield Table("Top-1 accuracy by channel set", tables.accuracy_rows(records), tables.accuracy_note(records))
    models = scores_by_model(records)
    ends = [row for scores in models.values() for row in scores.values()]
    limits = _limits(min(row["low"] for row in ends), max(row["high"] for row in ends))
    panels = []
    for group in diagrams.together(list(zip(diagrams.marks(list(models)), models.values(), strict=True))):
        key = [mark for mark, _ in group]
        drawn = diagrams.accuracies(group, sets, limits)
        panels.append(Panel(f"Accuracy by channel set of {names(key)}", drawn, key))
    yield Picture("Top-1 accuracy with 95 % Wilson intervals", panels)
    yield Table("Heat map of top-1 accuracy", tables.heat_rows(records), "The darker, the lower.")


def _limits(low: float, high: float) -> tuple[float, float]:
    """Of an axis in percent that shows everything from low to high, 0 … 1."""
    return max(-2, 5 * np.floor(20 * low) - 2), min(102, 5 * np.ceil(20 * high) + 2)


def names(key: Sequence[Mark]) -> str:
    """Who is drawn, as a list of names."""
    return ", ".join(mark.name for mark in key)


def other_scores(source: Source) -> Iterator[Block]:
    """Top-5, means over classes, likelihood and calibration error."""
    yield Table("Other scores by channel set", tables.score_rows(source.records), _SCORES_NOTE)


_SCORES_NOTE = (
    "Macro: mean of the accuracies of classes. NLL: negative log likelihood in nats. ECE: calibration error, the "
    "mean distance between how sure the best guess is and how often it is right, over 15 bins of equal width (Guo "
    "et al., arXiv 1706.04599)."
)


def robustness(source: Source) -> Iterator[Block]:
    """What becomes of the accuracy when images are changed."""
    records, gaps = source.having("robustness", flag=" --robustness")
    note = "Channels in another order, one channel noisy, or another size in pixels; with 95 % Wilson intervals."
    earlier = [tables.told_earlier(record) for record in records if "robustness_provenance" in record]
    yield Table("Top-1 accuracy on changed images", tables.robustness_rows(records), " ".join([note, *earlier]))
    yield from gaps


def comparisons(source: Source) -> Iterator[Block]:
    """Paired differences from the first model, ratios to experts, networks, bands: whatever applies."""
    if len(source.records) < 2:
        raise Absent("there is one record only")
    records, gaps = source.having("right")
    found = list(_that_apply(records))
    if not found and not gaps:
        raise Absent("no model shares a channel set with the first")
    yield from (*found, *gaps)


def _that_apply(records: Records) -> Iterator[Table]:
    pairs = comparison.paired_rows(records)
    if len(pairs) > 1:
        yield Table("Differences from the first", pairs, comparison.paired_note(records))
    if _have_experts(records):
        yield Table("Ratios to dedicated experts", comparison.ratio_rows(records), comparison.ratio_note(records))
    if _are_networks(records):
        yield Table("Networks on all channels", comparison.network_rows(records), comparison.network_note(records))
    if any("+" in record["recipe"]["model"]["vocabulary"] for record in records):
        yield Table("Bands", comparison.band_rows(records), comparison.band_note(records))


def _have_experts(records: Records) -> bool:
    return any(map(is_expert, records)) and any(len(record["trained_on"]) > 1 for record in records)


def _are_networks(records: Records) -> bool:
    """Whether different bodies stand side by side, on the same first channel set."""
    bodies = {record["recipe"]["model"]["body"] for record in records}
    firsts = {next(iter(record["scores"])) for record in records}
    return len(bodies) > 1 and len(firsts) == 1 and all(record["cost"].get("depth") for record in records)


def ablations(source: Source) -> Iterator[Block]:
    """Which settings differ between the runs, and what came of it."""
    if len(source.records) < 2:
        raise Absent("there is one record only")
    found = ablation.differing(source.records)
    if not found:
        raise Absent("all recipes are the same")
    if len(found) > ablation.MOST:
        raise Absent(f"the recipes differ in {len(found)} settings, too many to tell what does what")
    note = "Only settings that differ; – where a recipe is from before there was such a setting. One run each."
    yield Table("Settings that differ, and accuracy", ablation.ablation_rows(source.records), note)


def costs(source: Source) -> Iterator[Block]:
    """Accuracy against parameters, multiply-adds and training time; then costs by channel set."""
    models = dict(by_model(source.records))
    means = {
        name: 100 * float(np.mean([row["accuracy"] for row in scores.values()]))
        for name, scores in scores_by_model(source.records).items()
    }
    key = diagrams.marks(list(models))
    panels = []
    for label, cost in _COSTS.items():
        found = [(mark, cost(models[mark.name]), means[mark.name]) for mark in key]
        known = [(mark, x, y) for mark, x, y in found if x is not None]
        if known:
            panels.append(Panel(f"Mean accuracy against {label}", diagrams.costs(known, label)))
    if len(models) > 1:  # a single point shows nothing
        yield Picture(_COST_CAPTION, panels, key)
    yield Table("Cost at inference", tables.cost_rows(source.records), _COST_NOTE)


def _macs(group: Records) -> float | None:
    """The most that a channel set takes, in millions; None where the records do not tell."""
    return max((c["macs"] / 1e6 for record in group for c in record["cost"]["sets"].values()), default=None)


_COST_CAPTION = (
    "Mean top-1 accuracy against cost, over the channel sets that each was scored on. Dedicated experts count as "
    "one model, whose costs are those of all of them together; multiply-adds are those of the channel set that "
    "takes most."
)
_COST_NOTE = (
    "Deployed: of the plain network that remains for one channel set; stored: of the one that takes them all. "
    "Activations: numbers that convolutions and matrix products put out. Per kernel made: multiply-adds that "
    "generate a channel set's kernel, once and not for each image."
)
_COSTS = {
    "parameters stored, millions": lambda group: sum(r["cost"]["stored_parameters"] for r in group) / 1e6,
    "multiply-adds per image, millions": _macs,
    "training time, minutes": lambda group: sum(r["seconds"]["train"] for r in group) / 60,
}


def training(source: Source) -> Iterator[Block]:
    """Loss and validation accuracy over epochs."""
    records, gaps = source.having("history")
    for group in diagrams.together(list(zip(diagrams.marks([r["name"] for r in records]), records, strict=True))):
        key = [mark for mark, _ in group]
        panels = [Panel(f"Validation accuracy of {names(key)}", diagrams.validations(group))]
        if any("train/loss" in row for _, record in group for row in record["history"]):  # short runs may log none
            panels.insert(0, Panel(f"Training loss of {names(key)}", diagrams.losses(group)))
        caption = "Training loss, and validation accuracy on all channels (solid) and on the worst set (dashed)"
        yield Picture(caption, panels, key)
    yield from gaps


def provenance(source: Source) -> Iterator[Block]:
    """What every row of the tables comes from, by the name that it goes by there."""
    yield Text(
        "Every number above belongs to the model that its row or key names; here is what they come "
        "from. Fingerprints are hashes of paths, labels and contents of the images."
    )
    same, different = tables.provenance_rows(source.records)
    yield Table("The same for all models", same)
    if len(different[0]) > 1:
        yield Table("Different between models", different)
    for record in source.records:
        yield Listing(f"Recipe of {record['name']}", _recipe(record))


def _recipe(record: Record) -> str:
    return yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True)


def others(records: Sequence[dict[str, Any]]) -> Iterator[Block]:
    """Tables of records that are not of sweeps, by kind."""
    for kind in dict.fromkeys(record["kind"] for record in records):
        rows, note = tables.TABLES[kind]
        same = [record for record in records if record["kind"] == kind]
        yield Table(kind.capitalize(), rows(same), note(same))
