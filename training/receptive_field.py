"""How far trained networks see: `python -m training.receptive_field RUN_DIR… [--record FILE] [--figure FILE.svg]`

Measures the effective receptive field of finished runs on random images of a list, see `modeling.receptive_field`,
and tells its size. A record holds the fields too, so that one picture can be made of several records alone:
`python -m training.receptive_field RECORD… --figure FILE.svg`.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from modeling.depth import audit
from modeling.receptive_field import effective_receptive_field, smallest_square
from pipelines.errors import DataError
from pipelines.files import write_atomically
from training.build import first_images, load_model, load_samples
from training.cli import run_program
from training.config import ConfigError, Data
from training.evaluation.variants import specialised
from training.records import provenance, read_record, write_record
from training.reporting.benchmarks import receptive_field_rows
from training.reporting.canvas import on_white
from training.reporting.figures import receptive_fields
from training.runtime import Runtime

KIND = "receptive field"
SHARES = (50, 90)  # % of a field, whose squares are told
_FINEST = 84  # rows and columns of a field in a record


@dataclass(kw_only=True)
class Measurement:
    """Measure how far trained networks see, or show what was measured."""

    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories of training.train; or records of this program, to show them again, together."""
    split: Literal["test", "val", "train"] = "val"
    """Images of which list."""
    data: Path | None = None
    """Folder of the lists, where it has moved since the training."""
    images: int = 64
    """How many, chosen at random and the same for all networks."""
    channels: str | None = None
    """Which channel set, e.g. RG; by default all that a network takes."""
    record: Path | None = None
    """Where to keep the result as a record."""
    figure: Path | None = None
    """Where to draw all fields side by side, as SVG."""


def main(job: Measurement) -> None:
    """Measure or read, print, and keep what is wanted.

    Raises:
        ConfigError: records are to be written as a record.
    """
    shown_again = any(source.suffix == ".json" and not source.is_dir() for source in job.sources)
    if shown_again and job.record:
        raise ConfigError(f"--record {job.record}: {job.sources[0]} is a record already; name run directories")
    for file in filter(None, (job.record, job.figure)):
        file.parent.mkdir(parents=True, exist_ok=True)
    records = [_read(source) for source in job.sources] if shown_again else [measure(job)]
    _show(records)
    if job.record:
        write_record(job.record, records[0])
        print(f"wrote {job.record}")
    if job.figure:
        write_atomically(job.figure, on_white(receptive_fields(records)))
        print(f"wrote {job.figure}")


def measure(job: Measurement) -> dict[str, Any]:
    """The record of some runs.

    Raises:
        DataError: no run, or one that is not finished or whose images cannot be read.
        ConfigError: a channel set that a network does not take, or no images.
    """
    if job.images < 1:
        raise ConfigError(f"--images {job.images} must be at least 1")
    if not job.sources:
        raise DataError("no run directory given; name some that training.train has finished")
    runtime = Runtime()
    networks = [_measured(run_dir, job, runtime) for run_dir in job.sources]
    runtime.close()
    return {
        "kind": KIND,
        "name": ", ".join(row["name"] for row in networks),
        "split": job.split,
        "networks": networks,
        "provenance": provenance("training.receptive_field", runtime.world),
    }


def _measured(run_dir: Path, job: Measurement, runtime: Runtime) -> dict[str, Any]:
    """One network's part of the record."""
    recipe, model, metadata = load_model(run_dir)
    data = replace(recipe.data, path=job.data, root=None) if job.data else recipe.data
    chosen, network = specialised(model, job.channels)
    fingerprint, everything = _images(data, job, recipe.model.channels, runtime)
    images = chosen.select(everything, recipe.model.channels)
    depth = audit(network, images[:1]).d1
    field = effective_receptive_field(network.to(runtime.device), images.to(runtime.device)).cpu()
    return {
        "name": recipe.name,
        "channels": str(chosen),
        "images": len(images),
        "size": list(field.shape),
        "depth": depth,
        "squares": {str(percent): asdict(smallest_square(field, percent / 100)) for percent in SHARES},
        "field": _compact(field),
        "fingerprint": {"train": metadata["train_fingerprint"], job.split: fingerprint},
        "trained": {"commit": metadata["commit"], "hardware": metadata["hardware"]},
        "seed": recipe.seed,
        "model": asdict(recipe.model),
    }


def _images(data: Data, job: Measurement, channels: tuple[str, ...], runtime: Runtime) -> tuple[str, Tensor]:
    """Fingerprint of the list, and random images of it: lists are often sorted by class."""
    samples = load_samples(data, job.split, runtime)
    order = np.random.default_rng(0).permutation(len(samples))[: job.images]
    return samples.fingerprint, first_images(data, samples.take(order), channels, len(order))


def _compact(field: Tensor) -> dict[str, Any]:
    """A field in a few kilobytes: 256 levels, the fourth root of the part of the peak, in hexadecimal rows.

    Large fields are made coarser, by means over neighbouring pixels; the peak is that of what is left.
    """
    coarse = F.adaptive_avg_pool2d(field[None], [min(side, _FINEST) for side in field.shape])[0]
    levels = (255 * (coarse / coarse.max()) ** 0.25).round().int()
    return {"peak": coarse.max().item(), "rows": [bytes(row).hex() for row in levels.tolist()]}


def _read(file: Path) -> dict[str, Any]:
    """A record of this program.

    Raises:
        DataError: it is of another kind, or no record at all.
    """
    if file.is_dir():
        raise DataError(f"{file}: a run directory among records; measure it first, with --record")
    record = read_record(file)
    if record["kind"] != KIND:
        raise DataError(f"{file}: a record of {record['kind']}, not of {KIND}; training.report shows others")
    return record


def _show(records: Sequence[dict[str, Any]]) -> None:
    head, *rows = receptive_field_rows(records)
    splits = ", ".join(dict.fromkeys(record["split"] for record in records))
    table = Table(title=f"effective receptive field on {splits}")
    for i, column in enumerate(head):
        table.add_column(column, justify="right" if i > 1 else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def parse(args: list[str] | None = None) -> Measurement:
    """The measurement that the command line describes."""
    return tyro.cli(Measurement, args=args, prog="python -m training.receptive_field")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
