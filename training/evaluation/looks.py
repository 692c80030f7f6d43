"""How a network is shown images: as they are, or changed in a way that it should bear."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling.channels import ChannelSet, Vocabulary
from pipelines.batch import Batch

AS_IS, PERMUTED, NOISY = "", "permuted", "noisy"
SCALES = (0.5, 0.75, 1.5, 2.0)  # of height and width


@dataclass(frozen=True)
class Look:
    """One way to show images.

    Attributes:
        chosen: the channel set that answers are told for.
        shown: its channels in the order in which they are stacked.
        condition: what is done to the images: nothing (""), "permuted" (nothing else than the order in `shown`),
            "noisy R" (Gaussian noise on that channel, of the standard deviation of normalised data, 1), or "0.5x"
            (resized so much, with antialiasing).
    """

    chosen: ChannelSet
    shown: ChannelSet
    condition: str = AS_IS

    def show(self, batch: Batch, vocabulary: Vocabulary) -> Tensor:
        """Images as the network gets them, N×|S|×H×W in channels_last memory.

        Args:
            batch: of the loader; it is left as it is.
            vocabulary: its channels.
        """
        what, _, channel = self.condition.partition(" ")
        images = _noisy(batch, vocabulary.index(channel)) if what == NOISY else batch.images
        images = self.shown.select(images, vocabulary)
        return _resized(images, float(what[:-1])) if what.endswith("x") else images

    def __str__(self) -> str:
        return str(self.chosen)


def looks_at(sets: Sequence[ChannelSet], *, robustness: bool) -> list[Look]:
    """Every channel set as it is, then, where wanted, under each condition that can be put on it."""
    plain = [Look(chosen, chosen) for chosen in sets]
    if not robustness:
        return plain
    turned = [Look(chosen, ChannelSet(chosen.names[1:] + chosen.names[:1]), PERMUTED) for chosen in sets]
    channels = dict.fromkeys(name for chosen in sets for name in chosen)
    noisy = [Look(s, s, f"{NOISY} {channel}") for channel in channels for s in sets if channel in s.names]
    resized = [Look(chosen, chosen, f"{scale:g}x") for scale in SCALES for chosen in sets]
    return [*plain, *turned, *noisy, *resized]


def _noisy(batch: Batch, channel: int) -> Tensor:
    """The batch's images with noise on one channel.

    Seeded by the batch's first image: evaluation deals out the same batches on any number of ranks.
    """
    images = batch.images.clone()
    count, channels, height, width = images.shape
    generator = torch.Generator().manual_seed(int(batch.ids[0]) * channels + channel)
    images[:, channel] += torch.randn(count, height, width, generator=generator).to(images)
    return images


def _resized(images: Tensor, scale: float) -> Tensor:
    size = [round(scale * length) for length in images.shape[2:]]
    resized = F.interpolate(images, size=size, mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)
