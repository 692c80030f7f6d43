r"""ChannelConv2d: a convolution whose kernel is generated from the channels at hand.

For a channel set S out of a vocabulary of C0 channels, with M shared templates B (M×O×k×k):

    W[o, c | S] = √(C0 / |S|) · Σ_m A[m, o](c, S) · B[m, o]
    A(c, S)     = A0[c] + h([ê_c, Linear(mean over S of ê)])

ê_c is the channel's unit-norm embedding and h a small network whose last layer starts at zero. So a channel's
kernel depends on which others are there ("luminance" on R alone is not "luminance" on RGB), the output does not
depend on the order in which channels are stacked, and the pre-activation's variance is the same for every |S|.

The templates follow CHAMMI's TemplateMixing (arXiv 2310.19224) and the generated kernel follows HyperNetworks
(arXiv 1609.09106); unlike Dynamic Convolution (arXiv 1912.03458) kernels depend on the set, not on the sample,
so that inference can use a plain convolution.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet, Vocabulary, parse_names

Channels = ChannelSet | str | Sequence[str] | None  # None: all channels of the vocabulary


class ChannelConv2d(nn.Module):
    """Convolution over any subset of a vocabulary of channels.

    Args:
        vocabulary: channel names, `"RGB"` or `("red", "nir")`.
        out_channels, kernel_size, stride, padding, dilation, bias: as in `nn.Conv2d`; the kernel is square.
        templates: M, number of kernels per filter that the channels mix.
        embedding: length of a channel's embedding.
        hidden: width of h.

    Shape:
        input N×|S|×H×W with the channels stacked in the order of the set; output N×O×H'×W' as for `nn.Conv2d`.

    Raises:
        ValueError: unknown, duplicate or no channels; an input with another number of channels than the set.
    """

    def __init__(
        self,
        vocabulary: str | Sequence[str],
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
        *,
        templates: int = 8,
        embedding: int = 16,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.vocabulary: Vocabulary = parse_names(vocabulary)
        self.out_channels, self.kernel_size = out_channels, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.templates = nn.Parameter(torch.empty(templates, out_channels, kernel_size, kernel_size))
        self.mixing = nn.Parameter(torch.empty(len(self.vocabulary), templates, out_channels))
        self.embedding = nn.Parameter(torch.empty(len(self.vocabulary), embedding))
        self.context = nn.Linear(embedding, embedding)
        self.refine = nn.Sequential(
            nn.Linear(2 * embedding, hidden), nn.GELU(), nn.Linear(hidden, templates * out_channels)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with He variance for every set: h is zero, so the sum of M templates has that of one."""
        fan_in = len(self.vocabulary) * self.kernel_size**2
        nn.init.normal_(self.templates, std=math.sqrt(2 / fan_in))
        nn.init.normal_(self.mixing, std=math.sqrt(1 / len(self.templates)))
        nn.init.normal_(self.embedding)
        nn.init.zeros_(self.refine[-1].weight)
        nn.init.zeros_(self.refine[-1].bias)

    def kernel(self, channels: Channels = None) -> Tensor:
        """The kernel for a channel set, O×|S|×k×k, generated in float32 even under autocast."""
        channels = self._parse(channels)
        with torch.autocast(self.templates.device.type, enabled=False):
            indices = channels.indices(self.vocabulary)
            embedded = F.normalize(self.embedding, dim=1)[indices]  # |S|×E
            context = self.context(embedded.mean(0)).expand_as(embedded)
            refined = self.refine(torch.cat([embedded, context], dim=1))
            mixing = self.mixing[indices] + refined.view(-1, *self.mixing.shape[1:])  # |S|×M×O
            gain = math.sqrt(len(self.vocabulary) / len(channels))
            return gain * torch.einsum("cmo,mohw->ochw", mixing, self.templates)

    def forward(self, x: Tensor, channels: Channels = None) -> Tensor:
        """Convolve an input whose channels are `channels`, all of the vocabulary if None."""
        kernel = self.kernel(channels)
        if x.shape[1] != kernel.shape[1]:
            raise ValueError(
                f"input has {x.shape[1]} channels, but the channel set {self._parse(channels)} has "
                f"{kernel.shape[1]}; pass the set that the input is made of"
            )
        if not torch.is_autocast_enabled(x.device.type):  # autocast casts by itself, from float32
            kernel = kernel.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(kernel.dtype)
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation)

    @torch.no_grad()
    def materialize(self, channels: Channels = None) -> nn.Conv2d:
        """A plain `nn.Conv2d` that computes the same for this channel set."""
        kernel = self.kernel(channels)
        conv = nn.Conv2d(
            kernel.shape[1],
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
            device=kernel.device,
        )
        conv.weight.copy_(kernel)
        if self.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        size, names = self.kernel_size, ChannelSet(self.vocabulary)
        return f"{names} → {self.out_channels}, kernel_size={size}, stride={self.stride}, padding={self.padding}"

    def _parse(self, channels: Channels) -> ChannelSet:
        if channels is None:
            return ChannelSet.full(self.vocabulary)
        return ChannelSet.parse(channels, self.vocabulary)


class SubsetBatchNorm2d(nn.Module):
    """BatchNorm with a gain, shift and running statistics of its own for each channel set.

    A luminance filter needs 2.85 times its gain on R alone and an opponent filter a quarter, so one gain for all
    sets cannot serve. Up to `MAX_TABLE` channels every set has a row; beyond, sets of one size share a row. The
    rows are slices of single tensors, so that under DDP every parameter takes part in every step.

    Shape:
        N×O×H×W, input and output.
    """

    MAX_TABLE = 6  # channels: 63 sets

    def __init__(self, vocabulary: Vocabulary, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.vocabulary, self.eps, self.momentum = vocabulary, eps, momentum
        count = len(vocabulary)
        rows = 2**count - 1 if count <= self.MAX_TABLE else count
        self.weight = nn.Parameter(torch.ones(rows, features))
        self.bias = nn.Parameter(torch.zeros(rows, features))
        self.register_buffer("running_mean", torch.zeros(rows, features))
        self.register_buffer("running_var", torch.ones(rows, features))

    def row(self, channels: ChannelSet) -> int:
        """Which row of the tables a channel set uses."""
        by_set = len(self.vocabulary) <= self.MAX_TABLE
        return (channels.mask(self.vocabulary) if by_set else len(channels)) - 1

    def forward(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Normalise with the statistics of this channel set."""
        row = self.row(channels)
        return F.batch_norm(
            x,
            self.running_mean[row],
            self.running_var[row],
            self.weight[row],
            self.bias[row],
            self.training,
            self.momentum,
            self.eps,
        )

    def affine(self, channels: ChannelSet) -> tuple[Tensor, Tensor]:
        """What the norm amounts to at inference: scale and shift, each of shape (O,)."""
        row = self.row(channels)
        scale = self.weight[row] * torch.rsqrt(self.running_var[row] + self.eps)
        return scale, self.bias[row] - self.running_mean[row] * scale
