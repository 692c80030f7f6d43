r"""ChannelConv2d: a convolution whose kernel is generated from the channels at hand.

For a channel set S out of a vocabulary of C0 channels, with M shared templates B (M×O×k×k):

    W[o, c | S] = √(C0 / |S|) · Σ_m A[m, o](c, S) · B[m, o]
    A(c, S)     = A0(c) + h([ê_c, Linear(mean over S of ê)])

ê_c is the channel's unit-norm embedding and h a small network whose last layer starts at zero. So a channel's
kernel depends on which others are there ("luminance" on R alone is not "luminance" on RGB), the output does not
depend on the order in which channels are stacked, and the pre-activation's variance is the same for every |S|.

What tells channels apart is a code of unit norm, from which tables make ê_c and A0(c): with learned ids it is
one-hot, so that a table is looked up; with physical descriptors it is Fourier features, so that a channel never
seen in training has an embedding and a kernel too.

The templates follow CHAMMI's TemplateMixing (arXiv 2310.19224), the generated kernel HyperNetworks (arXiv
1609.09106), and kernels made from wavelengths DOFA (arXiv 2403.15356); unlike Dynamic Convolution (arXiv
1912.03458) kernels depend on the set, not on the sample, so that inference can use a plain convolution.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet, Vocabulary, parse_names

Channels = ChannelSet | str | Sequence[str] | None  # None: all channels of the vocabulary
Descriptor = float | Sequence[float]  # of one channel: a wavelength in µm, or several quantities
Size = int | tuple[int, int]  # one number for both directions, or height and width


class FourierCode:
    """Unit-norm Fourier features of channels' physical descriptors (arXiv 2006.10739).

    Descriptors are measured in the median gap between the vocabulary's own, and frequencies are spread evenly up
    to half a cycle per gap: enough to tell neighbours apart (their codes are about orthogonal) and no more, so
    that a channel between two gets a code between theirs. Codes follow from the descriptors; nothing is learned.

    Args:
        descriptors: of all channels of the vocabulary, equally long; finite.

    Raises:
        ValueError: a descriptor that is no finite number or sequence of them, or of another length than the rest.
    """

    FREQUENCIES = 32
    LENGTH = 2 * FREQUENCIES  # a cosine and a sine each

    def __init__(self, descriptors: Mapping[str, Descriptor]) -> None:
        self.dimensions = len(_vector(*next(iter(descriptors.items()))))
        vectors = [_vector(name, descriptor, self.dimensions) for name, descriptor in descriptors.items()]
        units = torch.tensor([_median_gap(column) for column in zip(*vectors, strict=True)], dtype=torch.float64)
        # scrambled points repeat nowhere; on a regular grid distant channels would get each other's codes
        points = torch.quasirandom.SobolEngine(self.dimensions, scramble=True, seed=0).draw(self.FREQUENCIES)
        self.frequencies = (points.double() - 0.5) / units
        self.codes: dict[str, Tensor] = {}
        for name, descriptor in descriptors.items():
            self.add(name, descriptor)

    def add(self, name: str, descriptor: Descriptor) -> None:
        """Make a channel known by its descriptor."""
        vector = torch.tensor(_vector(name, descriptor, self.dimensions), dtype=torch.float64)
        phase = 2 * math.pi * self.frequencies @ vector
        self.codes[name] = torch.cat([phase.cos(), phase.sin()]) / math.sqrt(self.FREQUENCIES)

    def __call__(self, channels: ChannelSet) -> Tensor:
        """Codes of a set's channels, |S|×LENGTH in float64 on the CPU."""
        return torch.stack([self.codes[name] for name in channels])


def _vector(name: str, descriptor: Descriptor, length: int | None = None) -> tuple[float, ...]:
    vector = (descriptor,) if isinstance(descriptor, Real) else tuple(descriptor)
    if not vector or not all(isinstance(value, Real) and math.isfinite(value) for value in vector):
        raise ValueError(f"descriptor of channel {name!r} is {descriptor!r}; give finite numbers, as 0.56 (µm)")
    if length is not None and len(vector) != length:
        raise ValueError(
            f"descriptor of channel {name!r} has length {len(vector)}, not {length}; describe all channels alike"
        )
    return tuple(float(value) for value in vector)


def _median_gap(values: Sequence[float]) -> float:
    """Between neighbouring values; 1 if all are equal."""
    ordered = sorted(set(values))
    gaps = sorted(high - low for low, high in pairwise(ordered))
    return gaps[(len(gaps) - 1) // 2] if gaps else 1.0


class ChannelConv2d(nn.Module):
    """Convolution over any subset of a vocabulary of channels.

    `ChannelConv2d("RGB", …)` learns an id for each channel. With `descriptors={"R": 0.665, "G": 0.56, "B": 0.49}`
    the kernel is a function of the descriptor instead, and a channel that training never saw can be added:

        conv.describe("nir", 0.84)
        y = conv(x, ["R", "nir"])

    Descriptors are configuration, as the vocabulary is: they are not in the state dict.

    Args:
        vocabulary: channel names, `"RGB"` or `("red", "nir")`.
        out_channels, kernel_size, stride, padding, dilation, bias: as in `nn.Conv2d`.
        descriptors: of each channel of the vocabulary a number (a wavelength in µm) or a short sequence of them.
        templates: M, number of kernels per filter that the channels mix.
        embedding: length of a channel's embedding.
        hidden: width of h.

    Shape:
        input N×|S|×H×W with the channels stacked in the order of the set; output N×O×H'×W' as for `nn.Conv2d`.

    Raises:
        ValueError: unknown, duplicate or no channels; an input with another number of channels than the set;
            descriptors that are not one for each channel of the vocabulary, or not finite.
    """

    def __init__(
        self,
        vocabulary: str | Sequence[str],
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        bias: bool = True,
        *,
        descriptors: Mapping[str, Descriptor] | None = None,
        templates: int = 8,
        embedding: int = 16,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.vocabulary: Vocabulary = parse_names(vocabulary)
        self.known = self.vocabulary  # and the channels described since
        self.fourier = None if descriptors is None else FourierCode(_for_each(self.vocabulary, descriptors))
        self.out_channels, self.kernel_size = out_channels, _pair(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        rows = FourierCode.LENGTH if self.fourier else len(self.vocabulary)
        self.templates = nn.Parameter(torch.empty(templates, out_channels, *self.kernel_size))
        self.mixing = nn.Parameter(torch.empty(rows, templates, out_channels))
        self.embedding = nn.Parameter(torch.empty(rows, embedding))
        self.context = nn.Linear(embedding, embedding)
        self.refine = nn.Sequential(
            nn.Linear(2 * embedding, hidden), nn.GELU(), nn.Linear(hidden, templates * out_channels)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with He variance for every set: h is zero and codes have unit norm, so A has variance 1/M."""
        fan_in = len(self.vocabulary) * math.prod(self.kernel_size)
        nn.init.normal_(self.templates, std=math.sqrt(2 / fan_in))
        nn.init.normal_(self.mixing, std=math.sqrt(1 / len(self.templates)))
        nn.init.normal_(self.embedding)
        nn.init.zeros_(self.refine[-1].weight)
        nn.init.zeros_(self.refine[-1].bias)

    def describe(self, name: str, descriptor: Descriptor) -> None:
        """Make a channel outside the vocabulary known by its descriptor, in the units of the vocabulary's.

        Raises:
            ValueError: the channel is known already, the descriptor is not like the others, or the convolution
                learns ids.
        """
        if self.fourier is None:
            raise ValueError(f"channels are learned ids here, {name!r} has none; build it with descriptors={{…}}")
        if name in self.known:
            raise ValueError(f"channel {name!r} is known already; describe a new one under a name of its own")
        self.fourier.add(name, descriptor)
        self.known = (*self.known, *parse_names((name,)))

    def parse(self, channels: Channels = None) -> ChannelSet:
        """The channel set that a user named, all of the vocabulary if None."""
        if channels is None:
            return ChannelSet.full(self.vocabulary)
        try:
            return ChannelSet.parse(channels, self.known)
        except ValueError as error:
            if self.fourier and "unknown channel" in str(error):
                raise ValueError(f"{error}; add a new one by describe(name, descriptor)") from None
            raise

    def encode(self, channels: Channels = None) -> Tensor:
        """What tells the channels apart: indices, (|S|,) int64, or Fourier features, |S|×F.

        Wherever channels are named, their code may stand instead. A compiled network should be given codes: it is
        compiled once for each |S|, whereas names would have it compiled for each set.
        """
        channels = self.parse(channels)
        if self.fourier:
            return self.fourier(channels).to(self.mixing)
        return torch.tensor(channels.indices(self.vocabulary), device=self.mixing.device)

    def kernel(self, channels: Channels | Tensor = None) -> Tensor:
        """The kernel for a channel set, O×|S|×k×k, generated in float32 even under autocast."""
        code = channels if isinstance(channels, Tensor) else self.encode(channels)
        with torch.autocast(self.templates.device.type, enabled=False):
            embedded = F.normalize(_rows(self.embedding, code), dim=1)  # |S|×E
            context = self.context(embedded.mean(0)).expand_as(embedded)
            refined = self.refine(torch.cat([embedded, context], dim=1))
            mixing = _rows(self.mixing, code) + refined.view(-1, *self.mixing.shape[1:])  # |S|×M×O
            gain = math.sqrt(len(self.vocabulary) / code.shape[0])
            return gain * torch.einsum("cmo,mohw->ochw", mixing, self.templates)

    def forward(self, x: Tensor, channels: Channels | Tensor = None) -> Tensor:
        """Convolve an input whose channels are `channels` (names or their code), all of the vocabulary if None."""
        kernel = self.kernel(channels)
        if x.shape[1] != kernel.shape[1]:
            named = "given" if isinstance(channels, Tensor) else self.parse(channels)
            raise ValueError(
                f"input has {x.shape[1]} channels, but the channel set {named} has {kernel.shape[1]}; "
                "pass the set that the input is made of"
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
            dtype=kernel.dtype,
        )
        conv.weight.copy_(kernel)
        if self.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        size, names = self.kernel_size, ChannelSet(self.known)
        return f"{names} → {self.out_channels}, kernel_size={size}, stride={self.stride}, padding={self.padding}"


def _rows(table: Tensor, code: Tensor) -> Tensor:
    """A table's rows for coded channels: picked by index, or mixed by Fourier features."""
    return table[code] if code.dtype == torch.int64 else torch.tensordot(code, table, dims=1)


def _for_each(vocabulary: Vocabulary, descriptors: Mapping[str, Descriptor]) -> dict[str, Descriptor]:
    if set(descriptors) != set(vocabulary):
        raise ValueError(
            f"descriptors are given for {', '.join(descriptors) or 'no channel'}, the vocabulary is "
            f"{ChannelSet(vocabulary)}; give one for each of its channels and add others by describe()"
        )
    return {name: descriptors[name] for name in vocabulary}


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class SubsetBatchNorm2d(nn.Module):
    """BatchNorm with a gain, shift and running statistics of its own for each channel set.

    A luminance filter needs 2.85 times its gain on R alone and an opponent filter a quarter, so one gain for all
    sets cannot serve. Up to `MAX_TABLE` channels every set has a row; beyond, sets of one size share a row. The
    rows are slices of single tensors, so that under DDP every parameter takes part in every step.

    Args:
        by_size: let sets of one size share a row however few channels there are; needed where channels outside
            the vocabulary are described later, whose sets no table can hold.

    Shape:
        N×O×H×W, input and output.
    """

    MAX_TABLE = 6  # channels: 63 sets

    def __init__(
        self,
        vocabulary: Vocabulary,
        features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        by_size: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary, self.eps, self.momentum = vocabulary, eps, momentum
        count = len(vocabulary)
        self.by_size = by_size or count > self.MAX_TABLE
        rows = count if self.by_size else 2**count - 1
        self.weight = nn.Parameter(torch.ones(rows, features))
        self.bias = nn.Parameter(torch.zeros(rows, features))
        self.register_buffer("running_mean", torch.zeros(rows, features))
        self.register_buffer("running_var", torch.ones(rows, features))

    def row(self, channels: ChannelSet) -> int:
        """Which row of the tables a channel set uses."""
        if self.by_size:  # described channels can make a set larger than the vocabulary
            return min(len(channels), len(self.vocabulary)) - 1
        if unknown := set(channels) - set(self.vocabulary):
            raise ValueError(
                f"channel {unknown.pop()!r} has been described since: no norm but one by size has its sets"
            )
        return channels.mask(self.vocabulary) - 1

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
