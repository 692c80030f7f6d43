"""Measure speed as ratios taken in one run: `python -m training.benchmark loader --data DIR [--record FILE]`,
`python -m training.benchmark stem [--sets RGB R] [--stems any-channel attention] [--record FILE]`,
`python -m training.benchmark networks RUN_DIR… [--record FILE]`,
`python -m training.benchmark train [--body resnet34] [--ranks 2] [--record FILE]`,
`python -m training.benchmark sweep --data DIR [--body resnet18] [--record FILE]`,
`python -m training.benchmark zero [--body resnet34] [--ranks 2] [--record FILE]` (bytes, not speed).

Nothing here gates a test, since a ratio depends on the machine. What README and docs claim comes from records
made by it.
"""

import sys

import tyro

from training.benchmarks.loader import LoaderBenchmark
from training.benchmarks.networks import NetworkBenchmark
from training.benchmarks.stem import StemBenchmark
from training.benchmarks.sweep import SweepBenchmark
from training.benchmarks.train import TrainBenchmark
from training.benchmarks.zero import ZeroBenchmark
from training.cli import run_program

Job = LoaderBenchmark | StemBenchmark | NetworkBenchmark | SweepBenchmark | TrainBenchmark | ZeroBenchmark
SUBJECTS = {
    "loader": LoaderBenchmark,
    "stem": StemBenchmark,
    "networks": NetworkBenchmark,
    "sweep": SweepBenchmark,
    "train": TrainBenchmark,
    "zero": ZeroBenchmark,
}


def main(job: Job) -> None:
    """Run a benchmark."""
    job.run()


def parse(args: list[str] | None = None) -> Job:
    """The benchmark that the command line describes."""
    return tyro.extras.subcommand_cli_from_dict(SUBJECTS, args=args, prog="python -m training.benchmark")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
