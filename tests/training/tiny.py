"""Flags of runs that take a second."""

from pathlib import Path

TINY = (
    "--model.body resnet10 --data.size 32 --data.batch-size 8 --schedule.epochs 2 --schedule.eval-epochs 1 "
    "--schedule.precision fp32 --schedule.log-steps 2 --schedule.checkpoint-steps 3 --schedule.groups 2 "
    "--optim.lr 0.02"
)
TINY_WORDS = TINY.split()


def train_args(data: Path, run_dir: Path, *extra: str, recipe: str = "quickstart") -> list[str]:
    """Arguments of training.train for a tiny run."""
    return [recipe, "--data.path", str(data), "--run-dir", str(run_dir), *TINY_WORDS, *extra]
