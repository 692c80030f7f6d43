"""Tables of sweeps: rows of text, the first of them the head; and which table belongs to which kind of record."""

from collections.abc import Callable
from typing import Any

from pipelines.errors import DataError
from training.reporting import benchmarks, comparison
from training.reporting.answers import (
    Record,
    Records,
    all_sets,
    by_model,
    check_same_images,
    scores_by_model,
    scores_of,
    short_commit,
)
from training.reporting.blocks import Cell, Rows, markdown_table, shaded


def results(records: Records, kind: str = "results") -> tuple[str, str]:
    """A table of some records as Markdown, and its note: what a reader must know to read it.

    Args:
        records: of one kind.
        kind: "results", their main table, or a comparison of sweeps, see `COMPARISONS`.

    Raises:
        DataError: the records are of different kinds, or cannot be compared.
    """
    kinds = {record["kind"] for record in records}
    if kind not in COMPARISONS and len(kinds) > 1:
        raise DataError(
            f"records of {' and '.join(sorted(kinds))} cannot stand in one table; make a table of each"
        )
    rows, note = COMPARISONS[kind] if kind in COMPARISONS else TABLES[kinds.pop()]
    return markdown_table(rows(records)), note(records)


def accuracy_rows(records: Records) -> Rows:
    """Per model: accuracy with interval on each channel set, the worst over that on all, and training time.

    Dedicated experts, ordinary networks on a channel set each, share a row.
    """
    check_same_images(records)
    sets = all_sets(records)
    rows = [["top-1 %", *sets, "worst ÷ all", "training"]]
    for name, group in by_model(records):
        scores = scores_of(group)
        minutes = sum(record["seconds"]["train"] for record in group) / 60
        cells = [_accuracy(scores[s]) if s in scores else "–" for s in sets]
        rows.append([name, *cells, _worst(scores, sets), f"{minutes:.1f} min"])
    return rows


def _accuracy(score: dict[str, Any]) -> str:
    return f"{100 * score['accuracy']:.1f} ({100 * score['low']:.1f}–{100 * score['high']:.1f})"


def _worst(scores: dict[str, Any], sets: list[str]) -> str:
    """The worst set's accuracy over that on all channels, for a model that takes both."""
    if len(scores) < len(sets) or not scores[sets[0]]["accuracy"]:
        return "–"
    return f"{min(s['accuracy'] for s in scores.values()) / scores[sets[0]]['accuracy']:.2f}"


def cost_rows(records: Records) -> Rows:
    """Per model and channel sets of equal cost: parameters, multiply-adds, activations, the cost of the kernel."""
    head = ["model", "channels", "parameters deployed", "multiply-adds per image", "activations per image"]
    rows = [[*head, "per kernel made", "parameters stored"]]
    for record in records:
        equal: dict[tuple[str, ...], list[str]] = {}
        for name, cost in record["cost"]["sets"].items():
            equal.setdefault(_cost(cost), []).append(name)
        stored = f"{record['cost']['stored_parameters']:,}"
        rows += [[record["name"], " ".join(names), *cells, stored] for cells, names in equal.items()]
    return rows


def _cost(cost: dict[str, int]) -> tuple[str, ...]:
    return (
        f"{cost['parameters']:,}",
        f"{cost['macs'] / 1e6:.1f} M",
        f"{cost['activations'] / 1e6:.2f} M" if "activations" in cost else "–",  # old records lack them
        f"{cost['kernel_macs'] / 1e6:.2f} M",
    )


def heat_rows(records: Records) -> list[list[str | Cell]]:
    """Per model: accuracy on each channel set in percent, coloured."""
    sets, rows, values = all_sets(records), [], []
    for name, scores in scores_by_model(records).items():
        found = [100 * scores[s]["accuracy"] if s in scores else None for s in sets]
        rows.append([name, *("–" if value is None else f"{value:.1f}" for value in found)])
        values.append(found)
    return shaded([["top-1 %", *sets], *rows], values)


_OTHER_SCORES = {
    "top-5 %": lambda row: f"{100 * row['top5'] / row['n']:.1f}",
    "macro %": lambda row: f"{100 * row['macro']:.1f}",
    "NLL": lambda row: f"{row['nll']:.3f}",
    "ECE %": lambda row: f"{100 * row['ece']:.1f}",
}


def score_rows(records: Records) -> Rows:
    """Per kind of score and model: what the records hold beside top-1, on each channel set."""
    sets = all_sets(records)
    rows = [["model", "score", *sets]]
    for score, told in _OTHER_SCORES.items():
        for name, scores in scores_by_model(records).items():
            cells = [_told(scores.get(s), told) for s in sets]
            if set(cells) != {"–"}:
                rows.append([name, score, *cells])
    return rows


def _told(row: dict[str, Any] | None, told: Callable[[dict[str, Any]], str]) -> str:
    """A score, where the record has this channel set and this score."""
    try:
        return "–" if row is None else told(row)
    except KeyError:
        return "–"


def told_earlier(record: Record) -> str:
    """Where rows on changed images come from that an earlier evaluation left."""
    made = record["robustness_provenance"]
    return f"Those of {record['name']} are from {made['date'][:10]}, commit {short_commit(made['commit'])}."


def robustness_rows(records: Records) -> Rows:
    """Per model and condition of the images: accuracy with interval on each channel set."""
    sets = all_sets(records)
    rows = [["model", "condition", *sets]]
    for record in records:
        for condition, scores in {"as they are": record["scores"], **record["robustness"]}.items():
            cells = [_accuracy(scores[s]) if s in scores else "–" for s in sets]
            rows.append([record["name"], condition, *cells])
    return rows


def provenance_rows(records: Records) -> tuple[Rows, Rows]:
    """What models were trained and evaluated with: facts that hold for all; and per model, those that differ."""
    facts = [_facts(record) for record in records]
    differing = [name for name in facts[0] if len({of_one[name] for of_one in facts}) > 1]
    same = [["fact", "all models"], *([name, told] for name, told in facts[0].items() if name not in differing)]
    rows = [
        [record["name"], *(of_one[name] for name in differing)]
        for record, of_one in zip(records, facts, strict=True)
    ]
    return same, [["model", *differing], *rows]


def _facts(record: dict[str, Any]) -> dict[str, str]:
    """Where a record's numbers come from."""
    trained, made, seconds, precision = (record[key] for key in ("trained", "provenance", "seconds", "precision"))
    return {
        "recipe": record["recipe"]["name"],
        "images": f"{record['images']} {record['split']}, {record['quarantined']} quarantined",
        "data": ", ".join(f"{split} {value}" for split, value in record["fingerprint"].items()),
        "seed": str(record["seed"]),
        "epochs": str(record["recipe"]["schedule"]["epochs"]),
        "training": f"{seconds['train']:.0f} s, {precision['train']}",
        "trained on": trained["hardware"],
        "trained at commit": short_commit(trained["commit"]),
        "sweep": f"{seconds['sweep']:.1f} s, {precision['sweep']}",
        "evaluated on": made["hardware"],
        "evaluated at commit": short_commit(made["commit"]),
        "date": made["date"][:10],
        "command": made["command"],
        "versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
    }


def accuracy_note(records: Records) -> str:
    """What a reader must know to read the table of accuracies."""
    counts = sorted({record["images"] for record in records})
    hardware = sorted({record["trained"]["hardware"] for record in records})
    commits = sorted({short_commit(record["trained"]["commit"]) for record in records})
    return (
        f"One set of weights per row; n = {', '.join(map(str, counts))} {records[0]['split']} images per cell, "
        "with the 95 % Wilson interval in brackets; “worst ÷ all” is the worst channel set's accuracy over that "
        f"on all channels. Trained on {'; '.join(hardware)}, at commit {', '.join(commits)}."
    )


COMPARISONS = {
    "paired": (comparison.paired_rows, comparison.paired_note),
    "ratios": (comparison.ratio_rows, comparison.ratio_note),
    "bands": (comparison.band_rows, comparison.band_note),
    "networks": (comparison.network_rows, comparison.network_note),
    "seeds": (comparison.seed_rows, comparison.seed_note),
}
TABLES = {
    "sweep": (accuracy_rows, accuracy_note),
    "benchmark loader": (benchmarks.loader_rows, benchmarks.loader_note),
    "benchmark stem": (benchmarks.stem_rows, benchmarks.stem_note),
    "benchmark networks": (benchmarks.network_rows, benchmarks.network_note),
    "benchmark sweep": (benchmarks.sweep_speed_rows, benchmarks.sweep_speed_note),
    "benchmark train": (benchmarks.train_rows, benchmarks.train_note),
    "benchmark zero": (benchmarks.zero_rows, benchmarks.zero_note),
    "scaling": (benchmarks.scaling_rows, benchmarks.scaling_note),
    "receptive field": (benchmarks.receptive_field_rows, benchmarks.receptive_field_note),
}
