"""Stems: the first convolution and its norm, from any channel set to the features that a body expects.

All stems share one interface, so that rivals differ in nothing but the stem.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modeling.channels import ChannelSet, Vocabulary
from modeling.dynamic_conv import ChannelConv2d, SubsetBatchNorm2d


class Stem(nn.Module, ABC):
    """First layer of a network: N×|S|×H×W → N×O×H'×W', conv and norm, before the activation."""

    vocabulary: Vocabulary

    @abstractmethod
    def forward(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Features of an input whose channels are `channels`."""

    @abstractmethod
    def materialize(self, channels: ChannelSet) -> nn.Module:
        """A module of plain layers that computes, at inference, what this stem does for one channel set."""


class AnyChannelStem(Stem):
    """ChannelConv2d and a norm per channel set."""

    def __init__(
        self, vocabulary: Vocabulary, out_channels: int, kernel_size: int, stride: int, templates: int = 8
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.conv = ChannelConv2d(
            vocabulary,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            bias=False,
            templates=templates,
        )
        self.norm = SubsetBatchNorm2d(vocabulary, out_channels)

    def forward(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Generate the kernel for the set, convolve, normalise."""
        return self.norm(self.conv(x, channels), channels)

    @torch.no_grad()
    def materialize(self, channels: ChannelSet) -> nn.Conv2d:
        """A plain `nn.Conv2d` on |S| channels with the norm folded in."""
        return fold(self.conv.materialize(channels), *self.norm.affine(channels))


class ZeroFillStem(Stem):
    """The naive control: an ordinary convolution on all channels; missing ones get a constant.

    Args:
        fill: value that stands in for each missing channel, in normalised units. A black channel, which is
            what zeroing it in the image file gives, has -mean / std; 0 is the channel's mean.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        out_channels: int,
        kernel_size: int,
        stride: int,
        fill: Sequence[float] | float = 0.0,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.fill = FillMissing(vocabulary, fill)
        self.conv = nn.Conv2d(
            len(vocabulary), out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_in", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Fill up to the whole vocabulary, convolve, normalise."""
        return self.norm(self.conv(self.fill(x, channels)))

    @torch.no_grad()
    def materialize(self, channels: ChannelSet) -> nn.Module:
        """The fill and a convolution on all channels: the naive model pays for channels it does not have."""
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        conv = nn.Conv2d(
            self.conv.in_channels,
            self.conv.out_channels,
            self.conv.kernel_size,
            self.conv.stride,
            self.conv.padding,
            bias=False,
            device=scale.device,
        )
        conv.weight.copy_(self.conv.weight)
        folded = fold(conv, scale, self.norm.bias - self.norm.running_mean * scale)
        return nn.Sequential(self.fill.fixed_to(channels), folded)


class FillMissing(nn.Module):
    """Puts present channels in their places and a constant in those of the missing ones."""

    def __init__(
        self, vocabulary: Vocabulary, fill: Sequence[float] | float, channels: ChannelSet | None = None
    ) -> None:
        super().__init__()
        self.vocabulary, self.channels = vocabulary, channels
        values = torch.as_tensor(fill, dtype=torch.float32).expand(len(vocabulary)).clone()
        self.register_buffer("values", values, persistent=False)

    def forward(self, x: Tensor, channels: ChannelSet | None = None) -> Tensor:
        """N×|S|×H×W → N×C0×H×W."""
        indices = (self.channels or channels).indices(self.vocabulary)
        n, _, height, width = x.shape
        full = self.values.to(x.dtype).view(1, -1, 1, 1).expand(n, -1, height, width)
        return full.contiguous(memory_format=torch.channels_last).index_copy(
            1, torch.tensor(indices, device=x.device), x
        )

    def fixed_to(self, channels: ChannelSet) -> "FillMissing":
        """The same fill for one known channel set."""
        return FillMissing(self.vocabulary, self.values.tolist(), channels).to(self.values.device)


@torch.no_grad()
def fold(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """Fold `y → scale · y + shift` (each of shape (O,)) into a convolution, in place."""
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias
    conv.bias = nn.Parameter(bias * scale + shift)
    return conv
