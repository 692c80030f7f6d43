"""Mixup and CutMix: what is drawn for a step depends on seed, step and rank alone, so that a resume repeats it."""

from random import Random

import torch
from torch import Tensor
from torchvision.transforms import v2

from training.config import Augment


class Mixer:
    """Mixes the images of a batch, and their labels with them.

    Sources: mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899.

    Args:
        settings: which of them, with which α.
        classes: number of classes.
        seed: of the run.
        rank: of this process.
    """

    def __init__(self, settings: Augment, classes: int, seed: int, rank: int) -> None:
        kinds = {v2.MixUp: settings.mixup, v2.CutMix: settings.cutmix}
        self.kinds = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds.items() if alpha]
        self.seed, self.rank = seed, rank

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixed images and their targets, N×classes; both as they are where there is nothing to mix.

        Args:
            images: N×C×H×W.
            labels: (N,), int64.
            step: of the optimizer.
        """
        if not self.kinds:
            return images, labels
        draw = Random(f"mix {self.seed} {step} {self.rank}")
        with torch.random.fork_rng(devices=[]):  # torchvision draws on the CPU from the global generator
            torch.manual_seed(draw.getrandbits(63))
            mixed, targets = draw.choice(self.kinds)(images, labels)
        return mixed.contiguous(memory_format=torch.channels_last), targets
