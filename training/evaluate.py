"""Score trained models on every channel set: `python -m training.evaluate RUN_DIR… [--split test]`

Decodes each image once and writes `RUN_DIR/sweep-SPLIT.json`, a record that `training.report` reads. Runs on one
process or many, independently of how the model was trained.
"""

import hashlib
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from modeling.channels import ChannelSet, Vocabulary
from modeling.cost import channel_costs, count_parameters
from modeling.depth import audit
from modeling.network import ChannelNet
from pipelines.batch import Loader
from pipelines.errors import DataError
from pipelines.progress import track
from training.build import load_samples, make_loader
from training.cli import run_program
from training.config import ConfigError, Recipe
from training.metrics import Score, to_hex
from training.monitor import read_metrics
from training.recalibrate import recalibrate
from training.recipe_file import to_dict
from training.records import provenance, write_record
from training.runtime import Runtime
from training.subsets import trained_sets
from training.sweep import sweep
from training.variants import Missing, Unknown, load_with, networks_for, say_what_has_no_norm

_LONGEST_NAME = 60  # characters of channel sets in the name of a record


@dataclass(kw_only=True)
class Evaluation:
    """Score trained models on every channel set."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories of training.train."""
    split: Literal["test", "val", "train"] = "test"
    """Which list."""
    data: Path | None = None
    """Folder of the lists, where it has moved since the training."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """fp32 gives the same counts on any number of ranks; bf16 is faster, and near-ties may fall otherwise."""
    channel_sets: tuple[str, ...] = ()
    """Which channel sets, e.g. RG B or 450+530 475; by default all that the model takes. They become part of the
    record's name."""
    unknown: Unknown = "describe"
    """Bands that the model was not trained on: let it make their kernels from their wavelengths, or take each for
    the nearest band that it knows."""
    missing: Missing = "as-trained"
    """What an ordinary network that was trained on all channels gets in place of missing ones, whatever its recipe
    says: black, their mean, their mean with the rest scaled up, or copies of those that are there."""
    recalibrate: int = 0
    """Take the norms' statistics anew for each channel set, over this many training images; writes
    sweep-SPLIT-recalibrated.json."""
    processes: int | None = None
    """Refuse to start unless there are this many ranks."""

    def __post_init__(self) -> None:
        if self.unknown == "nearest" and not self.channel_sets:
            raise ConfigError(
                "--unknown nearest is for bands that --channel-sets names; add some, or leave it out"
            )
        if self.recalibrate < 0:
            raise ConfigError(f"--recalibrate {self.recalibrate} must not be negative")

    @property
    def record(self) -> str:
        """Name of the record in the run directory; another question has another name."""
        return "-".join(["sweep", self.split, *self._chosen, *self.modifiers]) + ".json"

    @property
    def _chosen(self) -> list[str]:
        """The chosen sets, or where they are many their number and what tells them from others."""
        if len(" ".join(self.channel_sets)) <= _LONGEST_NAME:
            return [*self.channel_sets]
        digest = hashlib.sha256(" ".join(self.channel_sets).encode()).hexdigest()[:8]
        return [str(len(self.channel_sets)), "sets", digest]

    @property
    def modifiers(self) -> list[str]:
        """What was done to the model before."""
        changes = {
            self.missing: self.missing != "as-trained",
            "nearest": self.unknown == "nearest",
            "recalibrated": bool(self.recalibrate),
        }
        return [name for name, made in changes.items() if made]


def main(job: Evaluation) -> None:
    """Evaluate one run after the other."""
    runtime = Runtime(job.precision, processes=job.processes)
    for run_dir in job.run_dirs:
        record = evaluate(run_dir, job, runtime)
        if runtime.is_main:
            file = run_dir / job.record
            write_record(file, record)
            _show(record)
            print(f"wrote {file}; next: python -m training.report {' '.join(map(str, job.run_dirs))}")
    runtime.close()


def evaluate(run_dir: Path, job: Evaluation, runtime: Runtime) -> dict[str, Any]:
    """The record of one run: scores, costs, training history, provenance."""
    recipe, model, metadata = load_with(run_dir, job.missing)
    if job.data:
        recipe = replace(recipe, data=replace(recipe.data, path=job.data, root=None))
    samples = load_samples(recipe.data, job.split, runtime)
    classes = int(metadata["classes"])
    if samples.classes != classes:
        raise DataError(
            f"{run_dir} was trained on {classes} classes, but {recipe.data.path} has {samples.classes}; "
            "name the right folder with --data"
        )
    model.to(runtime.device)
    networks, stand_ins = networks_for(model, job.channel_sets, job.unknown)
    channels = tuple(dict.fromkeys([*recipe.model.channels, *(name for chosen in networks for name in chosen)]))
    loader, _ = make_loader(recipe.data, samples, runtime, training=False, channels=channels)
    batches = track(loader, len(loader), f"evaluating {run_dir.name}", quiet=not runtime.is_main)
    if runtime.is_main:
        say_what_has_no_norm(model, recipe, networks)
    if job.recalibrate:
        recalibrate(networks, channels, _calibration(recipe, job.recalibrate, channels, runtime), runtime)
    start = time.perf_counter()
    result = sweep(networks, channels, batches, len(samples), runtime)
    seconds = time.perf_counter() - start
    if any(score.n != len(samples) for score in result.scores.values()):
        raise RuntimeError(f"counted {[score.n for score in result.scores.values()]} of {len(samples)} images")
    return {
        "kind": "sweep",
        "name": ", ".join([recipe.name, *job.modifiers]),
        "recalibrated_on": job.recalibrate,
        "stand_ins": stand_ins,
        "split": job.split,
        "images": len(samples),
        "quarantined": len(samples.quarantined),
        "fingerprint": {"train": metadata["train_fingerprint"], job.split: samples.fingerprint},
        "scores": {name: _score_row(score) for name, score in result.scores.items()},
        "right": {name: to_hex(row) for name, row in result.right.items()},
        "trained_on": [str(chosen) for chosen in trained_sets(recipe)],
        "cost": _cost(model, recipe, [] if stand_ins else list(networks)),
        "seconds": {"train": float(metadata["seconds"]), "sweep": seconds},
        "processes": {"train": int(metadata["processes"]), "sweep": runtime.world},
        "precision": {"train": metadata["precision"], "sweep": runtime.precision},
        "trained": {"commit": metadata["commit"], "hardware": metadata["hardware"]},
        "seed": recipe.seed,
        "recipe": _portable_recipe(recipe),
        "history": read_metrics(run_dir),
        "provenance": provenance("training.evaluate", runtime.world),
    }


def _calibration(recipe: Recipe, images: int, channels: Vocabulary, runtime: Runtime) -> Loader:
    """Random training images, looked at as in evaluation."""
    samples = load_samples(recipe.data, "train", runtime)
    chosen = np.random.default_rng(recipe.seed).permutation(len(samples))[:images]
    return make_loader(recipe.data, samples.take(chosen), runtime, training=False, channels=channels)[0]


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


def _portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without paths of one machine: data is known by its fingerprint."""
    values = to_dict(recipe)
    if recipe.schedule.teacher:
        values["schedule"]["teacher"] = recipe.schedule.teacher.name
    values["data"] |= {"path": Path(values["data"]["path"]).name, "root": None}
    return values


def _show(record: dict[str, Any]) -> None:
    table = Table(title=f"{record['name']} on {record['split']} ({record['images']} images)")
    for column in ("channels", "top-1 %", "95 % interval", "top-5 %", "nll"):
        table.add_column(column, justify="left" if column == "channels" else "right")
    for name, row in record["scores"].items():
        interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"
        top5 = f"{100 * row['top5'] / row['n']:.1f}"
        table.add_row(name, f"{100 * row['accuracy']:.1f}", interval, top5, f"{row['nll']:.3f}")
    Console().print(table)


def parse(args: list[str] | None = None) -> Evaluation:
    """The evaluation that the command line describes."""
    return tyro.cli(Evaluation, args=args, prog="python -m training.evaluate")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
