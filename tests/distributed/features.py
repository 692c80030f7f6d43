"""The feature matrix, as data: what every combination must train through."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

BATCH = 12  # divides by 1, 2 and 3 ranks, and by two parts each
IMAGES = 24


@dataclass(frozen=True)
class Feature:
    """A row: how the run's state is divided, its precision, and into how many parts it takes a batch."""

    stage: int = 0
    precision: str = "fp32"
    accumulate: int = 1
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        engine = f"zero{self.stage}" if self.stage else "ddp"
        return "-".join([engine, self.precision, str(self.accumulate), *self.extra]).replace("--", "")

    def args(self, data: Path, run_dir: Path) -> list[str]:
        """Flags of training.train. One channel set for a whole batch, so that images meet the same on any rank."""
        flags = (
            f"--data.size 32 --data.batch-size {BATCH} --model.body resnet10 --optim.lr 0.02 --schedule.epochs 2 "
            f"--schedule.eval-epochs 9 --schedule.log-steps 1 --schedule.channel-sets sampled "
            f"--schedule.precision {self.precision} --schedule.accumulate {self.accumulate}"
        )
        paths = ["quickstart", "--data.path", str(data), "--run-dir", str(run_dir), "--resume"]
        return [*paths, *flags.split(), *self.extra]


CLIP = ("--optim.clip", "0.5")
FEATURES = [
    *(Feature(*row) for row in product(range(4), ("fp32", "bf16"), (1, 2))),
    Feature(0, extra=CLIP),
    Feature(2, extra=CLIP),
]
MORE_FEATURES = [  # with --thorough
    Feature(1, extra=CLIP),
    Feature(3, extra=CLIP),
    *(Feature(stage, extra=("--optim.optimizer", "adamw", "--optim.lr", "0.001")) for stage in range(4)),
    *(Feature(stage, extra=("--optim.ema", "0.9")) for stage in range(3)),
]

# Begun one way and continued another; the checkpoint is the same.
RESUMED = [(Feature(2), Feature(0)), (Feature(0), Feature(3)), (Feature(3), Feature(1)), (Feature(1), Feature(1))]
