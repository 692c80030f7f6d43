"""Score trained models on every channel set: `python -m training.evaluate RUN_DIR… [--split test]`

Decodes each image once and writes `RUN_DIR/sweep-SPLIT.json`, a record that `training.report` reads. Runs on one
process or many, independently of how the model was trained.
"""

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from modeling.channels import ChannelSet
from modeling.cost import channel_cost, count_parameters
from modeling.resnet import ChannelNet
from pipelines.batch import Loader
from pipelines.errors import DataError
from pipelines.progress import track
from training.build import load_samples, make_loader, new_model
from training.checkpoint import load_weights
from training.cli import run_program
from training.config import Recipe, load_recipe, to_dict
from training.metrics import Score
from training.monitor import read_metrics
from training.recalibrate import recalibrate
from training.records import provenance, write_record
from training.runtime import Runtime
from training.sweep import specialise, sweep


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
    recalibrate: int = 0
    """Take the norms' statistics anew for each channel set, over this many training images; writes
    sweep-SPLIT-recalibrated.json."""
    processes: int | None = None
    """Refuse to start unless there are this many ranks."""

    @property
    def record(self) -> str:
        """Name of the record in the run directory."""
        return f"sweep-{self.split}{'-recalibrated' if self.recalibrate else ''}.json"


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
    recipe = load_recipe(run_dir / "config.yaml")
    if job.data:
        recipe = replace(recipe, data=replace(recipe.data, path=job.data, root=None))
    weights, metadata = load_weights(run_dir / "model.safetensors")
    samples = load_samples(recipe.data, job.split, runtime)
    classes = int(metadata["classes"])
    if samples.classes != classes:
        raise DataError(
            f"{run_dir} was trained on {classes} classes, but {recipe.data.path} has {samples.classes}; "
            "name the right folder with --data"
        )
    model = new_model(recipe.model, classes)
    model.load_state_dict(weights)
    model.to(runtime.device).eval()
    loader, _ = make_loader(recipe.data, samples, runtime, training=False)
    batches = track(loader, len(loader), f"evaluating {run_dir.name}", quiet=not runtime.is_main)
    sets = model.stem.sets()
    networks = specialise(model, sets)
    if job.recalibrate:
        recalibrate(networks, recipe.model.channels, _calibration(recipe, job.recalibrate, runtime), runtime)
    start = time.perf_counter()
    scores = sweep(networks, recipe.model.channels, batches, runtime)
    seconds = time.perf_counter() - start
    if any(score.n != len(samples) for score in scores.values()):
        raise RuntimeError(f"counted {[score.n for score in scores.values()]} of {len(samples)} images")
    return {
        "kind": "sweep",
        "name": f"{recipe.name}, recalibrated" if job.recalibrate else recipe.name,
        "recalibrated_on": job.recalibrate,
        "split": job.split,
        "images": len(samples),
        "quarantined": len(samples.quarantined),
        "fingerprint": {"train": metadata["train_fingerprint"], job.split: samples.fingerprint},
        "scores": {name: _score_row(score) for name, score in scores.items()},
        "cost": _cost(model, recipe, sets),
        "seconds": {"train": float(metadata["seconds"]), "sweep": seconds},
        "processes": {"train": int(metadata["processes"]), "sweep": runtime.world},
        "precision": {"train": metadata["precision"], "sweep": runtime.precision},
        "trained": {"commit": metadata["commit"], "hardware": metadata["hardware"]},
        "seed": recipe.seed,
        "recipe": _portable_recipe(recipe),
        "history": read_metrics(run_dir),
        "provenance": provenance("training.evaluate", runtime.world),
    }


def _calibration(recipe: Recipe, images: int, runtime: Runtime) -> Loader:
    """Random training images, looked at as in evaluation."""
    samples = load_samples(recipe.data, "train", runtime)
    chosen = np.random.default_rng(recipe.seed).permutation(len(samples))[:images]
    return make_loader(recipe.data, samples.take(chosen), runtime, training=False)[0]


def _score_row(score: Score) -> dict[str, Any]:
    low, high = score.interval
    return {**asdict(score), "accuracy": score.accuracy, "low": low, "high": high}


def _cost(model: ChannelNet, recipe: Recipe, sets: list[ChannelSet]) -> dict[str, Any]:
    """Costs at inference by channel set, and what is stored."""
    model = model.cpu()
    by_set = {str(chosen): asdict(channel_cost(model, chosen, recipe.data.size)) for chosen in sets}
    return {"stored_parameters": count_parameters(model), "sets": by_set}


def _portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without paths of one machine: data is known by its fingerprint."""
    values = to_dict(recipe)
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
