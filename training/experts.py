"""Dedicated experts, a network for each channel set: `python -m training.experts RECIPE …`, as for training.train.

Trains nothing. Prints a line for each set, largest first, which slurm/experts.sbatch makes a task of: its run
directory, then what to add to the arguments so that training.train trains the expert; tabs between them.
"""

import sys
from pathlib import Path

from modeling.channels import ChannelSet
from training.cli import run_program
from training.train import Job, parse


def experts(job: Job) -> dict[str, list[str]]:
    """For each expert's run directory, what it is trained with beside the job's own arguments.

    Directories are RUN_DIR-SET, where the job names one, or runs/RECIPE-expert-SET.
    """
    base = job.run_dir or Path("runs") / f"{job.name}-expert"
    sets = [str(chosen) for chosen in ChannelSet.all_of(job.model.channels)]
    return {f"{base}-{chosen}": _arguments(job, chosen, f"{base}-{chosen}") for chosen in sets}


def _arguments(job: Job, chosen: str, run_dir: str) -> list[str]:
    network = ["--model.stem", "plain", "--model.plain-channels", chosen, "--schedule.channel-sets", chosen]
    return [*network, "--name", f"{job.name}-expert-{chosen}", "--run-dir", run_dir]


def main(job: Job) -> None:
    """Print the experts."""
    for run_dir, arguments in experts(job).items():
        print(run_dir, *arguments, sep="\t")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
