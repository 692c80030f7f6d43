"""Measure speed as ratios taken in one run: `python -m training.benchmark loader --data DIR [--record FILE]`,
`python -m training.benchmark stem [--sets RGB R] [--stems any-channel attention] [--record FILE]`,
`python -m training.benchmark networks RUN_DIR_OR_RECORD… [--record FILE]`,
`python -m training.benchmark train [--body resnet34] [--ranks 2] [--record FILE]`,
`python -m training.benchmark sweep --data DIR [--body resnet18] [--record FILE]`,
`python -m training.benchmark zero [--body resnet34] [--ranks 2] [--record FILE]` (bytes, not speed).

Nothing here gates a test, since a ratio depends on the machine. What README and docs claim comes from records
made by it.
"""

import dataclasses
import sys

import tyro

from training.benchmarks.loader import LoaderBenchmark
from training.benchmarks.networks import NetworkBenchmark
from training.benchmarks.stem import StemBenchmark
from training.benchmarks.sweep import SweepBenchmark
from training.benchmarks.train import TrainBenchmark
from training.benchmarks.zero import ZeroBenchmark
from training.cli import run_program
from training.config import ConfigError

Job = LoaderBenchmark | StemBenchmark | NetworkBenchmark | SweepBenchmark | TrainBenchmark | ZeroBenchmark
SUBJECTS = {
    "loader": LoaderBenchmark,
    "stem": StemBenchmark,
    "networks": NetworkBenchmark,
    "sweep": SweepBenchmark,
    "train": TrainBenchmark,
    "zero": ZeroBenchmark,
}


_COUNTS = {"rounds", "seconds", "batch_size", "size", "ranks", "images"}


def main(job: Job) -> None:
    """Run a benchmark.

    Raises:
        ConfigError: there would be nothing to measure.
    """
    for name in {field.name for field in dataclasses.fields(job)} & _COUNTS:
        value = getattr(job, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be above 0")
    job.run()


def parse(args: list[str] | None = None) -> Job:
    """The benchmark that the command line describes."""
    return tyro.extras.subcommand_cli_from_dict(SUBJECTS, args=args, prog="python -m training.benchmark")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
