"""Stems: the first convolution and its norm, from any channel set to the features that a body expects.

All stems share one interface, so that rivals differ in nothing but the stem. Here are the any-channel stem and the
naive control; what else must be beaten stands in `modeling.rivals`.
"""

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from modeling.channels import ChannelSet, Vocabulary, check_images, parse_names
from modeling.dynamic_conv import ChannelConv2d, Channels
from modeling.fourier import Descriptor
from modeling.moments import InputMoments
from modeling.norms import SharedBatchNorm2d, SubsetBatchNorm2d
from modeling.precision import like

Norm = Literal["per-set", "per-size", "moments", "shared"]
Gain = Literal["sqrt", "linear", "none"]


class StemShape(NamedTuple):
    """What a body expects of its stem: features, and the kernel's size and stride; padding is half the kernel."""

    features: int
    kernel_size: int
    stride: int


class Stem(nn.Module, ABC):
    """First layer of a network: N×|S|×H×W → N×O×H'×W', conv and norm, before the activation.

    Attributes:
        vocabulary: channels that the stem knows.
        norm: takes features and the channel set that they are made of.
    """

    vocabulary: Vocabulary
    norm: SubsetBatchNorm2d | SharedBatchNorm2d

    @abstractmethod
    def convolve(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Features before the norm, of an input whose channels are `channels`.

        Raises:
            ValueError: a channel set that the stem does not take, or one of another size than the input.
        """

    @abstractmethod
    def kernel(self, channels: ChannelSet) -> Tensor:
        """What is looked up or generated for a channel set, in float32 even under autocast."""

    @abstractmethod
    def plain(self, channels: ChannelSet) -> nn.Module:
        """Plain layers that compute what `convolve` does for one channel set; they share no memory with this."""

    @abstractmethod
    def materialize(self, channels: ChannelSet) -> nn.Module:
        """Plain layers that compute, at inference, what this stem does for one channel set, the norm folded in."""

    def unfolded(self, channels: ChannelSet) -> nn.Sequential:
        """The same with the norm behind them, for whoever wants to change its statistics."""
        return nn.Sequential(OrderedDict(conv=self.plain(channels), norm=self.ordinary_norm(channels))).eval()

    def ordinary_norm(self, channels: ChannelSet) -> nn.BatchNorm2d:
        """An ordinary BatchNorm that does what the norm does for one channel set; it shares no memory with it."""
        return self.norm.ordinary(channels)

    def features(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Convolution and norm."""
        return self.norm(self.convolve(x, channels), channels)

    def forward(self, x: Tensor, channels: Channels = None) -> Tensor:
        """Features of an input whose channels are `channels`, all of the vocabulary if None."""
        return self.features(x, self.parse(channels))

    def groups(self, parts: Sequence[Tensor], sets: Sequence[ChannelSet]) -> Tensor:
        """Features of several groups, each with a channel set of its own, as one batch in their order.

        A shared norm sees all groups at once, as it would if channels had been dropped from the images of one
        batch: normalised group by group, training would use statistics per set and inference those of the mixture.
        """
        if len(parts) != len(sets):
            raise ValueError(
                f"{len(parts)} groups of images come with {len(sets)} channel sets; give one for each"
            )
        if isinstance(self.norm, SharedBatchNorm2d):
            return self.norm(torch.cat(list(map(self.convolve, parts, sets))))
        return torch.cat(list(map(self.features, parts, sets)))

    def sets(self) -> list[ChannelSet]:
        """All channel sets that the stem takes, largest first."""
        return ChannelSet.all_of(self.vocabulary)

    def parse(self, channels: Channels = None) -> ChannelSet:
        """The channel set that a user named, all of the vocabulary if None.

        Raises:
            ValueError: empty, a channel given twice, or one that the stem does not know.
        """
        return (
            ChannelSet.full(self.vocabulary) if channels is None else ChannelSet.parse(channels, self.vocabulary)
        )

    def describe(self, name: str, descriptor: Descriptor) -> None:
        """Make a channel outside the vocabulary known, where a stem makes kernels from descriptors.

        Raises:
            ValueError: it does not.
        """
        raise ValueError(f"{type(self).__name__} knows {ChannelSet(self.vocabulary)} only, not {name!r}")

    def anneal(self, progress: float) -> None:
        """Called before each training step with the part of the annealing that is over, 0 to 1 and beyond.

        Most stems have nothing to anneal.
        """

    def indices(self, channels: ChannelSet) -> list[int]:
        """Where each channel of a set stands in the vocabulary.

        Raises:
            ValueError: a channel that the vocabulary lacks.
        """
        return ChannelSet.parse(channels, self.vocabulary).indices(self.vocabulary)


class KernelStem(Stem):
    """A stem that has one kernel for a channel set, so that it folds into one plain convolution.

    Args:
        vocabulary: channels that the stem knows.
        shape: features O, kernel k and stride.
        norm: "per-set" keeps gain, shift and statistics for every channel set, "per-size" for all sets of one size
            together; "moments" keeps gain and shift for each size, and works out the statistics of any set, also
            one that training never saw, from the kernel and the moments of the images; "shared" is one BatchNorm
            for all.
    """

    def __init__(self, vocabulary: Vocabulary, shape: StemShape, norm: Norm = "per-set") -> None:
        super().__init__()
        self.vocabulary, self.stride = parse_names(vocabulary), shape.stride
        self.norm = (
            SharedBatchNorm2d(shape.features)
            if norm == "shared"
            else SubsetBatchNorm2d(
                vocabulary,
                shape.features,
                by_size=norm in ("per-size", "moments"),
                track_running_stats=norm != "moments",
            )
        )
        padding = shape.kernel_size // 2
        self.moments = (
            InputMoments(vocabulary, shape.kernel_size, shape.stride, padding) if norm == "moments" else None
        )

    def convolve(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Convolve with the set's kernel, without the norm."""
        return self._convolve(x, channels, self.kernel(channels))

    def features(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Convolution and norm, at inference with the statistics that follow from moments, if there are such."""
        if self.moments is None:
            return super().features(x, channels)
        kernel = self.kernel(channels)
        features = self._convolve(x, channels, kernel)
        if self.training:
            self.moments.update(x, channels)
        return self.norm(
            features, channels, None if self.norm.training else self.moments.statistics(kernel, channels)
        )

    def _convolve(self, x: Tensor, channels: ChannelSet, kernel: Tensor) -> Tensor:
        check_images(x, len(channels), channels)
        return F.conv2d(x, like(kernel, x), stride=self.stride, padding=kernel.shape[-1] // 2)

    def ordinary_norm(self, channels: ChannelSet) -> nn.BatchNorm2d:
        """The same as an ordinary BatchNorm."""
        if self.moments is None:
            return self.norm.ordinary(channels)
        return self.norm.ordinary(channels, self.moments.statistics(self.kernel(channels), channels))

    @torch.no_grad()
    def plain(self, channels: ChannelSet) -> nn.Conv2d:
        """A plain `nn.Conv2d` on |S| channels."""
        kernel = self.kernel(channels)
        out_channels, planes, size, _ = kernel.shape
        conv = nn.Conv2d(planes, out_channels, size, self.stride, size // 2, bias=False).to(kernel)
        conv.weight.copy_(kernel)
        return conv.eval()

    def materialize(self, channels: ChannelSet) -> nn.Conv2d:
        """A plain `nn.Conv2d` on |S| channels with the norm folded in."""
        return fuse_conv_bn_eval(self.plain(channels), self.ordinary_norm(channels).eval())


class AnyChannelStem(KernelStem):
    """ChannelConv2d and a norm per channel set; the switches take away one of its parts each.

    Args:
        vocabulary, shape, norm: see `KernelStem`.
        templates: kernel templates per filter.
        conditioning: whether a channel's kernel depends on the others that are there; if not, A(c, S) = A0[c].
        gain: (C0/|S|)^p with p = ½ ("sqrt", which keeps the variance), 1 ("linear") or 0 ("none"). A norm per set
            undoes any of them but for the size of training steps, so compare them behind a shared norm.
        descriptors: of each channel of the vocabulary, see `ChannelConv2d`; ids are learned if None.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        shape: StemShape,
        *,
        templates: int = 8,
        norm: Norm = "per-set",
        conditioning: bool = True,
        gain: Gain = "sqrt",
        descriptors: Mapping[str, Descriptor] | None = None,
    ) -> None:
        super().__init__(vocabulary, shape, norm)
        self.gain = gain
        self.conv = ChannelConv2d(
            vocabulary,
            *shape,
            padding=shape.kernel_size // 2,
            bias=False,
            descriptors=descriptors,
            templates=templates,
        )
        if not conditioning:  # h starts at zero, and stays there
            for name, parameter in self.conv.named_parameters():
                parameter.requires_grad_(name in ("templates", "mixing"))

    def parse(self, channels: Channels = None) -> ChannelSet:
        """The channel set that a user named; described channels are known too."""
        return self.conv.parse(channels)

    def describe(self, name: str, descriptor: Descriptor) -> None:
        """Make a channel outside the vocabulary known by its descriptor, see `ChannelConv2d.describe`.

        Its moments are taken to be those of the vocabulary's nearest channel.
        """
        self.conv.describe(name, descriptor)
        if self.moments is not None:
            self.moments.describe(name, self.conv.nearest(name))

    def kernel(self, channels: ChannelSet) -> Tensor:
        """The generated kernel, O×|S|×k×k, with this stem's gain in place of the convolution's own √(C0/|S|)."""
        wanted, own = (set_gain(gain, self.vocabulary, channels) for gain in (self.gain, "sqrt"))
        return self.conv.kernel(channels) * (wanted / own)


class ZeroFillStem(Stem):
    """The naive control: an ordinary convolution on all channels; missing ones get a constant.

    Trained on all channels only it is the naive network; trained on changing sets, naive plus channel dropout, the
    strong one. It can express a kernel slice for each channel, and with a fill a bias for each that is missing,
    but no kernel and no norm that depend on which others are there.

    Args:
        vocabulary, shape: see `KernelStem`.
        fill: value that stands in for each missing channel, in normalised units. A black channel, which is
            what zeroing it in the image file gives, has -mean / std; 0 is the channel's mean.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        shape: StemShape,
        fill: Sequence[float] | float = 0.0,
    ) -> None:
        super().__init__()
        self.vocabulary = parse_names(vocabulary)
        self.fill = FillMissing(self.vocabulary, fill)
        self.conv = he_conv(len(self.vocabulary), shape)
        self.norm = SharedBatchNorm2d(shape.features)

    def convolve(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Fill up to the whole vocabulary and convolve."""
        return self.conv(self.fill(x, channels))

    def kernel(self, channels: ChannelSet) -> Tensor:
        """The kernel on all channels, O×C0×k×k, whichever are there."""
        return self.conv.weight

    def plain(self, channels: ChannelSet) -> nn.Sequential:
        """The fill and a convolution on all channels: the naive model pays for channels it does not have."""
        return nn.Sequential(self.fill.fixed_to(channels), copy.deepcopy(self.conv).eval())

    def materialize(self, channels: ChannelSet) -> nn.Sequential:
        """The same with the norm folded into the convolution."""
        fill, conv = self.plain(channels)
        return nn.Sequential(fill, fuse_conv_bn_eval(conv, self.norm.ordinary(channels).eval()))


class FillMissing(nn.Module):
    """Puts present channels in their places and a constant in those of the missing ones."""

    def __init__(
        self, vocabulary: Vocabulary, fill: Sequence[float] | float, channels: ChannelSet | None = None
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.channels = None if channels is None else ChannelSet.parse(channels, vocabulary)
        values = torch.as_tensor(fill, dtype=torch.float32).expand(len(vocabulary)).clone()
        self.register_buffer("values", values, persistent=False)

    def forward(self, x: Tensor, channels: ChannelSet | None = None) -> Tensor:
        """N×|S|×H×W → N×C0×H×W."""
        channels = self.channels or ChannelSet.parse(channels, self.vocabulary)
        check_images(x, len(channels), channels)
        n, _, height, width = x.shape
        constant = self.values.to(x.dtype).view(1, -1, 1, 1).expand(n, -1, height, width)
        full = constant.clone(memory_format=torch.channels_last)
        full[:, channels.indices(self.vocabulary)] = x
        return full

    def fixed_to(self, channels: ChannelSet) -> "FillMissing":
        """The same fill for one known channel set."""
        return FillMissing(self.vocabulary, self.values.tolist(), channels).to(self.values.device)


def set_gain(gain: Gain, vocabulary: Vocabulary, channels: ChannelSet) -> float:
    """(C0 / |S|)^p with p = ½ for "sqrt", 1 for "linear", 0 for "none"."""
    return (len(vocabulary) / len(channels)) ** {"sqrt": 0.5, "linear": 1.0, "none": 0.0}[gain]


def he_conv(planes: int, shape: StemShape) -> nn.Conv2d:
    """An ordinary first convolution without bias, padded by half its kernel, with He's initialisation."""
    conv = nn.Conv2d(planes, *shape, padding=shape.kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv
