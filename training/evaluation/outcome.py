"""What an evaluation leaves behind: its record, and tables of it for programs (CSV) and people (Markdown)."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from modeling.channels import ChannelSet
from modeling.cost import channel_costs, count_parameters
from modeling.depth import audit
from modeling.network import ChannelNet
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.samples import Samples
from training.config import Recipe
from training.evaluation.candidates import Candidate
from training.evaluation.looks import AS_IS, Look
from training.evaluation.metrics import (
    LABEL,
    PREDICTED,
    SEEN,
    Score,
    encode_classes,
    reliability,
    right,
    to_hex,
    to_score,
)
from training.evaluation.settings import Evaluation
from training.monitor import read_metrics
from training.recipe_file import portable, to_dict
from training.records import provenance, read_record, write_record
from training.reporting.blocks import markdown_table
from training.reporting.classes import agreement_note, agreement_rows
from training.reporting.tables import told_earlier
from training.runtime import Runtime
from training.subsets import is_sample, trained_sets

_COLUMNS = ("n", "top1", "top5", "accuracy", "low", "high", "macro", "nll", "ece")


def make_record(
    candidate: Candidate, answers: Tensor, seconds: float, job: Evaluation, samples: Samples, runtime: Runtime
) -> dict[str, Any]:
    """The record of one run: scores, answers, costs, training history, provenance.

    Args:
        candidate: the run.
        answers: to all images, looks×6×images float32 on the CPU.
        seconds: what they took, together with runs that were scored in the same pass.
        job, samples, runtime: how it was asked, about what, and by whom.

    Raises:
        RuntimeError: not every image was counted, and counted once.
    """
    if not (answers[:, SEEN] == 1).all():
        counts = answers[:, SEEN].sum(1).int().tolist()
        raise RuntimeError(f"counted {counts} of {len(samples)} images, or some of them twice")
    looks = dict(zip(candidate.networks, answers, strict=True))
    plain = {str(look): rows for look, rows in looks.items() if look.condition == AS_IS}
    recipe, metadata = candidate.recipe, candidate.metadata
    record = {
        "kind": "sweep",
        "name": ", ".join([recipe.name, *job.modifiers]),
        "recalibrated_on": job.recalibrate,
        "stand_ins": dict(candidate.stand_ins),
        "sampled_sets": is_sample(candidate.sets, candidate.model.stem),
        "split": job.split,
        "images": len(samples),
        "quarantined": len(samples.quarantined),
        "fingerprint": {"train": metadata["train_fingerprint"], job.split: samples.fingerprint},
        "scores": {name: _score_row(to_score(rows)) for name, rows in plain.items()},
        "right": {name: to_hex(right(rows)) for name, rows in plain.items()},
        "labels": encode_classes(answers[0, LABEL]),
        "predicted": {name: encode_classes(rows[PREDICTED]) for name, rows in plain.items()},
        "reliability": {name: asdict(reliability(rows)) for name, rows in plain.items()},
        "trained_on": [str(chosen) for chosen in trained_sets(recipe)],
        "cost": _cost(candidate.model, recipe, [] if candidate.stand_ins else candidate.sets),
        "seconds": {"train": float(metadata["seconds"]), "sweep": seconds},
        "processes": {"train": int(metadata["processes"]), "sweep": runtime.world},
        "precision": {"train": metadata["precision"], "sweep": runtime.precision},
        "trained": {"commit": metadata["commit"], "hardware": metadata["hardware"]},
        "seed": recipe.seed,
        "recipe": to_dict(portable(recipe)),
        "history": read_metrics(candidate.run_dir),
        "provenance": provenance("training.evaluate", runtime.world),
    }
    names = {"class_names": json.loads(metadata["class_names"])} if "class_names" in metadata else {}
    return record | names | _robustness(looks)


def with_earlier_rows(record: dict[str, Any], file: Path) -> dict[str, Any]:
    """A record that keeps what an earlier one in its place says of changed images, and where that comes from.

    Who evaluates a run once more without --robustness must not lose the hours that it took. Rows of other images
    or other weights, which other scores tell, are left out with a word.
    """
    if "robustness" in record or not file.exists():
        return record
    try:
        earlier = read_record(file)
    except DataError as error:
        print(f"note: {error}; it is replaced", file=sys.stderr)
        return record
    if "robustness" not in earlier:
        return record
    if any(earlier[name] != record[name] for name in ("fingerprint", "scores")):
        lost = f"{file} told of changed images, but the scores have changed since"
        print(f"note: {lost}; --robustness tells of them again", file=sys.stderr)
        return record
    source = earlier.get("robustness_provenance", earlier["provenance"])
    return record | {"robustness": earlier["robustness"], "robustness_provenance": source}


def write_outcome(file: Path, record: dict[str, Any]) -> None:
    """Write the record, and beside it its tables as .csv and .md."""
    write_atomically(file.with_suffix(".csv"), to_csv(record))
    write_atomically(file.with_suffix(".md"), to_markdown(record))
    write_record(file, record)


def to_csv(record: dict[str, Any]) -> str:
    """A row for each channel set, and for each under each condition."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["condition", "channels", *_COLUMNS])
    for condition, scores in _conditions(record).items():
        for name, score in scores.items():
            table.writerow([condition, name, *(score[column] for column in _COLUMNS)])
    return out.getvalue()


def to_markdown(record: dict[str, Any]) -> str:
    """Scores, how often channel sets agree, and what changed images do to them."""
    made = record["provenance"]
    parts = [
        f"# {_title(record)}",
        markdown_table([[*_HEAD], *(list(row) for row in _score_rows(record["scores"]))]),
        "## Agreement of channel sets",
        markdown_table(agreement_rows(record)),
        agreement_note(record),
    ]
    if "robustness" in record:
        earlier = f" {told_earlier(record)}" if "robustness_provenance" in record else ""
        parts += ["## Changed images", markdown_table(_robustness_rows(record)), _ROBUSTNESS_NOTE + earlier]
    parts.append(f"`{made['command']}`, {made['date']}, commit {made['commit'][:12]}, {made['hardware']}")
    return "\n\n".join(parts) + "\n"


def show(record: dict[str, Any]) -> None:
    """Print the scores."""
    table = Table(title=_title(record))
    for column in _HEAD:
        table.add_column(column, justify="left" if column == "channels" else "right")
    for row in _score_rows(record["scores"]):
        table.add_row(*row)
    Console().print(table)


_HEAD = ("channels", "top-1 %", "95 % interval", "top-5 %", "macro %", "nll", "ece %")
_ROBUSTNESS_NOTE = (
    "Top-1 in percent. permuted: the channels in another order, and the set's names with them, which must change "
    "nothing but the rounding; noisy: Gaussian noise on that channel, of the standard deviation of normalised "
    "data; 0.5x to 2x: the decoded image resized so much, with antialiasing."
)


def _title(record: dict[str, Any]) -> str:
    return f"{record['name']} on {record['split']} ({record['images']} images)"


def _score_rows(scores: Mapping[str, dict[str, Any]]) -> Iterable[tuple[str, ...]]:
    for name, row in scores.items():
        percent = [100 * value for value in (row["accuracy"], row["top5"] / row["n"], row["macro"], row["ece"])]
        interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"
        top1, top5, macro, ece = (f"{value:.1f}" for value in percent)
        yield name, top1, interval, top5, macro, f"{row['nll']:.3f}", ece


def _robustness_rows(record: dict[str, Any]) -> list[list[str]]:
    conditions = _conditions(record)
    rows = [["top-1 %", *record["scores"]]]
    for condition, scores in conditions.items():
        cells = [f"{100 * scores[s]['accuracy']:.1f}" if s in scores else "–" for s in record["scores"]]
        rows.append([condition or "as they are", *cells])
    return rows


def _conditions(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {AS_IS: record["scores"], **record.get("robustness", {})}


def _robustness(looks: Mapping[Look, Tensor]) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for look, answers in looks.items():
        if look.condition != AS_IS:
            found.setdefault(look.condition, {})[str(look)] = _score_row(to_score(answers))
    return {"robustness": found} if found else {}


def _score_row(score: Score) -> dict[str, Any]:
    low, high = score.interval
    return {**asdict(score), "accuracy": score.accuracy, "low": low, "high": high}


def _cost(model: ChannelNet, recipe: Recipe, sets: list[ChannelSet]) -> dict[str, Any]:
    """Costs at inference by channel set, what is stored, and how deep the network is on the first set."""
    model, size = model.cpu(), recipe.data.size
    by_set = {str(chosen): asdict(cost) for chosen, cost in channel_costs(model, sets, size).items()}
    return {"stored_parameters": count_parameters(model), "sets": by_set, "depth": _depth(model, sets[:1], size)}


def _depth(model: ChannelNet, sets: list[ChannelSet], size: int) -> dict[str, int]:
    """D0 to D3 of the network as it is deployed for a channel set, see `modeling.depth`; none without a set."""
    for chosen in sets:
        found = audit(model.materialize(chosen), torch.zeros(1, len(chosen), size, size))
        return {name: getattr(found, name) for name in ("d0", "d1", "d2", "d3")}
    return {}
