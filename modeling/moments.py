"""Moments of the images that a convolution sees, from which its norm's statistics follow for any channel set."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet, parse_names
from modeling.precision import uncast


class InputMoments(nn.Module):
    """Mean μ and second moments M of the patches p that a convolution without bias reads.

    Its answer is y = w·p. So for every filter and every channel set

        E y = w·μ,    Var y = wᵀMw - (w·μ)²,

    where w, μ and M are cut down to the set's channels: exactly what a BatchNorm behind the convolution would have
    measured on these patches, border and all, for the kernel as it is now. Images of that very set need never have
    been seen, only each pair of its channels. A pair that never was is taken for uncorrelated; before the first
    image, images are taken for white noise of variance 1.

    The moments stay in float32 or better whatever precision the network is brought to: an edge filter's variance
    is a small difference of large moments.

    Args:
        vocabulary: channel names, as of `ChannelConv2d`; C0 of them.
        kernel_size, stride, padding: of the convolution; k.

    Attributes:
        mean: C0×k².
        second: C0×C0×k²×k².
        count: how often each pair was seen, C0×C0.
    """

    IMAGES = 4  # of a batch that count: the rest would cost time and say little more
    WINDOW = 200  # updates after which old ones fade, as the images of training may change

    def __init__(self, vocabulary: str | Sequence[str], kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.vocabulary = parse_names(vocabulary)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.stand_ins: dict[str, str] = {}
        channels, taps = len(self.vocabulary), kernel_size**2
        white = torch.eye(channels * taps).view(channels, taps, channels, taps).transpose(1, 2)
        self.register_buffer("mean", torch.zeros(channels, taps))
        self.register_buffer("second", white.contiguous())
        self.register_buffer("count", torch.zeros(channels, channels))

    def describe(self, name: str, like: str) -> None:
        """Let a channel outside the vocabulary have the moments of one within."""
        self.stand_ins[name] = like

    @torch.no_grad()
    def update(self, images: Tensor, channels: ChannelSet) -> None:
        """Count in the first `IMAGES` of a batch, N×|S|×H×W, in any order; they are weighed alike up to `WINDOW`.

        Raises:
            ValueError: a channel that the vocabulary lacks.
        """
        known = ChannelSet.parse(channels, self.vocabulary)
        at = torch.tensor(known.indices(self.vocabulary), device=images.device)
        with uncast(images.device):
            sample = images[: self.IMAGES].to(self.mean.dtype)
            patches = F.unfold(sample, self.kernel_size, padding=self.padding, stride=self.stride)
            flat = patches.transpose(0, 1).flatten(1)  # |S|k²×P
            mean = flat.mean(1).view(len(at), -1)
            second = _by_pairs(flat @ flat.T / flat.shape[1], len(at))
        pairs = at[:, None], at
        self.count[pairs] += 1
        rate = 1 / self.count[pairs].clamp(max=self.WINDOW)
        self.mean[at] = torch.lerp(self.mean[at], mean, rate.diagonal()[:, None])
        self.second[pairs] = torch.lerp(self.second[pairs], second, rate[..., None, None])

    @torch.no_grad()
    def statistics(self, kernel: Tensor, channels: ChannelSet) -> tuple[Tensor, Tensor]:
        """Mean and variance of each filter's answer, (O,) and (O,), in the precision of the moments.

        Args:
            kernel: O×|S|×k×k.
            channels: that the kernel is for; described ones count as those that they are like.
        """
        names = [self.stand_ins.get(name, name) for name in channels]
        at = torch.tensor([self.vocabulary.index(name) for name in names], device=self.mean.device)
        with uncast(kernel.device):
            filters = kernel.to(self.mean.dtype).flatten(1)  # O×|S|k²
            second = self.second[at[:, None], at].transpose(1, 2).reshape(filters.shape[1], -1)
            mean = filters @ self.mean[at].flatten()
            square = ((filters @ second) * filters).sum(1)
        return mean, (square - mean**2).clamp(min=0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InputMoments":
        """Move the moments, and keep their precision unless it becomes better."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if torch.finfo(moved.dtype).bits < torch.finfo(buffer.dtype).bits:
                lost = buffer.is_meta or moved.is_meta
                setattr(self, name, moved.to(buffer.dtype) if lost else buffer.to(moved.device))
        return self


def _by_pairs(moments: Tensor, channels: int) -> Tensor:
    """|S|k²×|S|k² → |S|×|S|×k²×k²."""
    return moments.view(channels, -1, channels, moments.shape[1] // channels).transpose(1, 2)
