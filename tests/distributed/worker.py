"""One rank of a world that trains every row of the feature matrix, one after the other in the same process.

`python worker.py DATA OUT [more]` as rank RANK of WORLD_SIZE; starting a process for each row would take minutes.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState
from features import FEATURES, MORE_FEATURES, RESUMED, Feature
from torch import nn

from modeling.network import ChannelNet
from pipelines.batch import Batch
from training import train
from training.loop import Trainer
from training.runtime import Runtime

STEPS_BEFORE = 2


def main(data: Path, out: Path, more: bool) -> None:
    # Norms that use running statistics in training too: an image's loss is then its own on any rank.
    ChannelNet.train = lambda self, mode=True: nn.Module.train(self, False)
    Runtime.close = lambda self: None  # the process group serves all rows
    for feature in FEATURES + MORE_FEATURES * more:
        run(feature, data, out / feature.name)
    for first, second in RESUMED:
        folder = out / f"{first.name}-{second.name}"
        with stopping_after(STEPS_BEFORE, folder):
            run(first, data, folder)
        run(second, data, folder)
    dist.destroy_process_group()


def run(feature: Feature, data: Path, folder: Path) -> None:
    """Train one row, or go on with it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true" if feature.stage else "false"
    os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(feature.stage)
    train.main(train.parse(feature.args(data, folder)))


@contextmanager
def stopping_after(steps: int, folder: Path) -> Iterator[None]:
    """As a batch script would: the stop file appears while the run goes on."""
    whole = Trainer._train_step

    def step_and_ask(self: Trainer, batch: Batch) -> None:
        whole(self, batch)
        if self.step == steps:
            (folder / "STOP").touch()

    Trainer._train_step = step_and_ask
    yield
    Trainer._train_step = whole


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), "more" in sys.argv[3:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other ranks wait for this one; the test ends them
