"""What is done to a batch's images on their device: RandAugment, a size that grows, mixup and CutMix.

What is drawn for a step depends on seed, step and rank alone, so that a resume repeats it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD
from training.config import Augment

_TOGETHER = 8  # images that get the same draw of RandAugment: for each by itself a GPU would mostly wait
_GROWN = 0.5  # part of the training after which images have their full size
_STEP = 16  # pixels by which they grow, so that few sizes are compiled and tuned for


class Augmentation:
    """Changes the images of a batch, and with mixup and CutMix their labels as well.

    Sources: mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899; RandAugment, arXiv 1909.13719; growing images,
    FixRes, arXiv 1906.06423, and fast.ai's entry in DAWNBench.

    Args:
        settings: which of them.
        classes: number of classes.
        seed: of the run.
        rank: of this process.
    """

    def __init__(self, settings: Augment, classes: int, seed: int, rank: int) -> None:
        kinds = {v2.MixUp: settings.mixup, v2.CutMix: settings.cutmix}
        self.kinds = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds.items() if alpha]
        self.change = v2.RandAugment(settings.rand_augment, settings.magnitude) if settings.rand_augment else None
        self.grow_from = settings.grow_from
        self.seed, self.rank = seed, rank

    def __call__(self, images: Tensor, labels: Tensor, step: int, progress: float = 1.0) -> tuple[Tensor, Tensor]:
        """Changed images and their targets, N×classes; both as they are where there is nothing to change.

        Args:
            images: N×C×H×W, normalised.
            labels: (N,), int64.
            step: of the optimizer.
            progress: part of the training that is over, 0 to 1.
        """
        given = images
        draw = Random(f"mix {self.seed} {step} {self.rank}")
        with _seeded(draw):
            if self.change:
                images = rand_augment(images, self.change)
            if self.grow_from:
                images = resized(images, grown(self.grow_from, images.shape[-1], progress))
            if self.kinds:
                images, labels = draw.choice(self.kinds)(images, labels)
        if images is given:
            return images, labels
        return images.contiguous(memory_format=torch.channels_last), labels


def rand_augment(images: Tensor, change: v2.RandAugment) -> Tensor:
    """A few images at a time, each few changed alike. N×3×H×W, normalised, before and after."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    shown = (images.float() * std + mean).clamp(0, 1)
    changed = torch.cat([change(few) for few in shown.split(_TOGETHER)])
    return ((changed - mean) / std).to(images.dtype)


def grown(first: int, last: int, progress: float) -> int:
    """Height and width of images when this part of the training is over: from `first` to `last`, in steps."""
    if progress >= _GROWN:
        return last
    return first + int((last - first) * progress / _GROWN) // _STEP * _STEP


def resized(images: Tensor, size: int) -> Tensor:
    """N×C×H×W → N×C×size×size, as the loaders would have resized the files."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


@contextmanager
def _seeded(draw: Random) -> Iterator[None]:
    """torchvision draws on the CPU from the global generator, which others rely on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.getrandbits(63))
        yield
