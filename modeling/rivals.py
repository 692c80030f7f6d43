"""Rivals of the any-channel stem, behind the same interface: what its generated kernels must be worth more than.

Most of them have one kernel for a channel set and fold into one plain convolution as ours does; they differ in
where that kernel comes from. With C0 channels in the vocabulary, S those at hand, and W[o, c] a k×k kernel:

| rival | W[o, c] for the set S | depends on S | norm |
| --- | --- | --- | --- |
| zero-fill-rescaled | C0/|S| · W0[o, c] | through the gain | shared |
| repeat | W0[o, c] plus the W0 of the missing channels that c stands in for | through what is missing | shared |
| plain | a convolution's, for one set only | takes no other | ordinary |
| table | a kernel of its own for every set | freely | per set |
| slices | √(C0/|S|) · W0[o, c] | through the gain | per set |
| depthwise | √(C0/|S|) · v[c, o] · B[o] | through the gain | per set |
| hypernet | √(C0/|S|) · MLP(embedding of c)[o] | through the gain | per set |
| attention | Σ_m π_m(image) · K_m[o, c](S), each K_m generated as ours is | and on the image | per set |
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet, Vocabulary, check_images
from modeling.dynamic_conv import ChannelConv2d
from modeling.norms import affine
from modeling.precision import like, uncast
from modeling.stems import Gain, KernelStem, Norm, StemShape, he_conv, set_gain


class SliceStem(KernelStem):
    """One kernel slice per channel; those of the present channels are summed, with the gain √(C0/|S|).

    It is what set conditioning is measured against: a filter weighs a channel the same whichever others are there,
    up to the gain and the norm of the set. Its kernels cost nothing to make.
    Source: SliceParam of CHAMMI, arXiv 2310.19224, which has no gain, and a LayerNorm behind it.

    Args:
        vocabulary, shape, norm: see `KernelStem`.
    """

    gain: Gain = "sqrt"

    def __init__(self, vocabulary: Vocabulary, shape: StemShape, norm: Norm = "per-set") -> None:
        super().__init__(vocabulary, shape, norm)
        self.conv = he_conv(len(vocabulary), shape)  # only its weight is used

    def kernel(self, channels: ChannelSet) -> Tensor:
        """The slices of the present channels times the gain, O×|S|×k×k."""
        return self.conv.weight[:, self.indices(channels)] * set_gain(self.gain, self.vocabulary, channels)


class RescaledZeroFillStem(SliceStem):
    """Zero-fill after normalisation, with the pre-activation scaled by C0/|S| to make up for what is missing.

    The scaling is that of inverted dropout: right on average where channels are alike, as on gray images. Where
    they are independent the variance grows by C0/|S|, and one shared BatchNorm must bear that. Cannot express a
    filter that is used otherwise when a channel is missing, such as an opponent filter that should fall silent.
    Source: dropout, arXiv 1207.0580, on input channels.

    Args:
        vocabulary, shape: see `KernelStem`.
    """

    gain: Gain = "linear"

    def __init__(self, vocabulary: Vocabulary, shape: StemShape) -> None:
        super().__init__(vocabulary, shape, norm="shared")


class RepeatStem(KernelStem):
    """An ordinary convolution on all channels; missing ones are replaced by copies of the present ones.

    The first missing channel gets the first present one, the second the second, and so on in a circle, both
    counted in the vocabulary's order: RG is seen as RGR, RB as RRB, GB as GGB, R as RRR. So the order in which
    channels are stacked does not matter. On one channel a filter sees a gray image: luminance survives and
    opponent filters fall silent by themselves, but colours of a pair are told apart wrongly, since a copy speaks
    for another channel.
    Source: common practice in porting RGB networks to other inputs.

    Args:
        vocabulary, shape: see `KernelStem`.
    """

    def __init__(self, vocabulary: Vocabulary, shape: StemShape) -> None:
        super().__init__(vocabulary, shape, norm="shared")
        self.conv = he_conv(len(vocabulary), shape)  # only its weight is used

    def kernel(self, channels: ChannelSet) -> Tensor:
        """For each present channel the sum of the slices of all places where it stands, O×|S|×k×k."""
        sources = self.sources(channels)
        places = [[place for place, source in enumerate(sources) if source == i] for i in self.indices(channels)]
        return torch.stack([self.conv.weight[:, chosen].sum(1) for chosen in places], dim=1)

    def sources(self, channels: ChannelSet) -> list[int]:
        """For each place of the vocabulary the channel that stands there, by its index in the vocabulary."""
        present = sorted(self.indices(channels))
        missing = [place for place in range(len(self.vocabulary)) if place not in present]
        copies = {place: present[i % len(present)] for i, place in enumerate(missing)}
        return [copies.get(place, place) for place in range(len(self.vocabulary))]


class PlainStem(KernelStem):
    """An ordinary convolution and BatchNorm on exactly one channel set: the first layer of a dedicated expert.

    The ceiling for that set, since nothing is shared; it takes no other set at all, only another order of its own.

    Args:
        vocabulary, shape: see `KernelStem`.
        channels: the one set that it takes; all of the vocabulary if None.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        shape: StemShape,
        channels: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(vocabulary, shape, norm="shared")
        self.channels = ChannelSet.parse(channels or vocabulary, vocabulary)
        self.conv = he_conv(len(self.channels), shape)  # only its weight is used

    def kernel(self, channels: ChannelSet) -> Tensor:
        """The convolution's weight in the order in which the channels are stacked, O×|S|×k×k."""
        if set(channels) != set(self.channels):
            raise ValueError(
                f"this plain stem takes the channels {self.channels} only, not {channels}; "
                "train another with --model.plain-channels, or use --model.stem any-channel"
            )
        return self.conv.weight[:, channels.indices(self.channels.names)]

    def sets(self) -> list[ChannelSet]:
        """The one set that it takes."""
        return [self.channels]


class TableStem(KernelStem):
    """A kernel of its own for every channel set: the control that a hypernetwork must match.

    On a known vocabulary it can express whatever any stem can that has one kernel per set. But nothing is shared
    between sets, so that each learns from its own steps only; it cannot take a set it was not made for; and it
    grows as C0·2^(C0-1) slices, 12 for RGB and 192 for six channels, where it ends. The slices lie side by side in
    one tensor, so that under DDP every parameter takes part in every step.

    Args:
        vocabulary, shape, norm: see `KernelStem`.

    Raises:
        ValueError: more than 6 channels.
    """

    MAX_CHANNELS = 6

    def __init__(self, vocabulary: Vocabulary, shape: StemShape, norm: Norm = "per-set") -> None:
        super().__init__(vocabulary, shape, norm)
        if len(vocabulary) > self.MAX_CHANNELS:
            raise ValueError(
                f"--model.stem table holds a kernel for every set of at most {self.MAX_CHANNELS} channels, "
                f"not of {len(vocabulary)}; use any-channel or slices"
            )
        sizes = [len(chosen) for chosen in self.sets()]
        starts = accumulate(sizes, initial=0)
        self.starts = {chosen.mask(vocabulary): start for chosen, start in zip(self.sets(), starts, strict=False)}
        self.conv = he_conv(sum(sizes), shape)  # only its weight is used
        for chosen in self.sets():  # the fan-in is that of a set, not of the table
            start = self.starts[chosen.mask(vocabulary)]
            std = math.sqrt(2 / (len(chosen) * shape.kernel_size**2))
            nn.init.normal_(self.conv.weight[:, start : start + len(chosen)], std=std)

    def kernel(self, channels: ChannelSet) -> Tensor:
        """The set's own slices, O×|S|×k×k; in the table they lie in the vocabulary's order."""
        indices = self.indices(channels)
        start, order = self.starts[channels.mask(self.vocabulary)], sorted(indices)
        return self.conv.weight[:, [start + order.index(i) for i in indices]]


class DepthwiseStem(KernelStem):
    """Every channel alone passes one shared bank of filters; a channel's weights say how it enters each output.

    W[o, c] = √(C0/|S|) · v[c, o] · B[o]. A new channel costs O weights. All channels are seen through the same
    filter in the same phase, so that no output can combine, say, an edge in red with a blob in blue. CHAMMI's
    Depthwise has filters per channel, averages their responses over channels and mixes them by a 1×1 convolution;
    here filters are shared, as for channels that nobody has seen, and the weights per output take the place of
    both. So it is the any-channel stem with one template and without conditioning.
    Source: Depthwise of CHAMMI, arXiv 2310.19224.

    Args:
        vocabulary, shape, norm: see `KernelStem`.
    """

    def __init__(self, vocabulary: Vocabulary, shape: StemShape, norm: Norm = "per-set") -> None:
        super().__init__(vocabulary, shape, norm)
        features, kernel_size, _ = shape
        self.templates = nn.Parameter(torch.empty(features, kernel_size, kernel_size))
        self.mixing = nn.Parameter(torch.empty(len(vocabulary), features))
        nn.init.normal_(self.templates, std=math.sqrt(2 / (len(vocabulary) * kernel_size**2)))
        nn.init.normal_(self.mixing)

    def kernel(self, channels: ChannelSet) -> Tensor:
        """Each filter times the weights of the present channels and the gain, O×|S|×k×k."""
        weights = self.mixing[self.indices(channels)].T * set_gain("sqrt", self.vocabulary, channels)
        return weights[:, :, None, None] * self.templates[:, None]


class HyperStem(KernelStem):
    """A hypernetwork: a channel's learned embedding → MLP → its whole kernel slice; no templates.

    On known channels a reparametrisation of `SliceStem`, with 3 times the parameters of the any-channel stem,
    nearly all in the MLP's last layer; the kernel does not depend on the other channels. CHAMMI's is two linear
    maps and nothing between them, and as published its kernels are 6–9 times He's deviation and correlated by .8
    to .97 between channels, because the output bias is N(0, 1) and the fans are wrong. Here there is a GELU, and
    kernels have He's variance and start uncorrelated: embeddings are orthogonal, a LayerNorm centres and scales
    what the last layer takes in, and biases are zero.
    Source: HyperNet of CHAMMI, arXiv 2310.19224; HyperNetworks, arXiv 1609.09106.

    Args:
        vocabulary, shape, norm: see `KernelStem`.
        embedding: length of a channel's embedding.
        hidden: width of the MLP.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        shape: StemShape,
        norm: Norm = "per-set",
        *,
        embedding: int = 16,
        hidden: int = 64,
    ) -> None:
        super().__init__(vocabulary, shape, norm)
        self.shape = (shape.features, shape.kernel_size, shape.kernel_size)
        self.embedding = nn.Parameter(torch.empty(len(vocabulary), embedding))
        self.generate = nn.Sequential(
            nn.Linear(embedding, hidden),
            nn.GELU(),
            nn.LayerNorm(hidden, elementwise_affine=False),
            nn.Linear(hidden, math.prod(self.shape)),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start with He's variance: what either layer takes in has a mean square of 1."""
        first, last = self.generate[0], self.generate[-1]
        count, length = self.embedding.shape
        nn.init.orthogonal_(self.embedding)
        self.embedding.copy_(math.sqrt(length) * F.normalize(self.embedding, dim=1))
        nn.init.normal_(first.weight, std=1 / math.sqrt(length))
        nn.init.normal_(last.weight, std=math.sqrt(2 / (count * self.shape[-1] ** 2 * last.in_features)))
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)

    def kernel(self, channels: ChannelSet) -> Tensor:
        """The generated slices of the present channels times the gain, O×|S|×k×k."""
        with uncast(self.embedding.device):
            slices = self.generate(self.embedding[self.indices(channels)]).view(-1, *self.shape)
            return slices.transpose(0, 1) * set_gain("sqrt", self.vocabulary, channels)


class AttentionStem(KernelStem):
    """Kernel attention on our templates: M kernels generated for the channel set, mixed anew for every image.

    W_n = Σ_m π_m(x_n) · K_m(S), where π = softmax(logits / temperature) and the logits come from the image's
    channel means through a small MLP. K_m = √(C0/|S|) · A_m(c, S) · B_m are the parts that the any-channel stem
    adds up: under even attention the two express the same, with as many parameters but for the MLP. It alone can
    treat images differently, say dark and bright ones; but a raw image's channel means are little to attend by
    (the paper leaves the first layer static), and there is no plain convolution to fold into: inference holds M
    kernels, mixes them for every image, and convolves every image with its own.

    The temperature is a buffer, saved with the weights. Training lowers it from 30 to 1 by calling
    `anneal(progress)` before each step; the paper takes the first 10 epochs for it.
    Source: Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", arXiv 1912.03458, §3.

    Args:
        vocabulary, shape: see `KernelStem`.
        norm: the same, but for "moments".
        templates: M.
        hidden: width of the attention's MLP.

    Raises:
        ValueError: a norm by moments.
    """

    START = 30.0  # temperature

    def __init__(
        self,
        vocabulary: Vocabulary,
        shape: StemShape,
        norm: Norm = "per-set",
        *,
        templates: int = 8,
        hidden: int = 16,
    ) -> None:
        if norm == "moments":
            raise ValueError("kernels that are mixed for each image have no statistics that moments would tell")
        super().__init__(vocabulary, shape, norm)
        # M·O filters of one template each are O filters of M templates whose sum has been left to the attention.
        count = templates * shape.features
        self.conv = ChannelConv2d(vocabulary, count, shape.kernel_size, bias=False, templates=1)
        with torch.no_grad():
            self.conv.templates.mul_(math.sqrt(templates))  # so that the mean of M kernels has He's variance
        self.squeeze = nn.Linear(2 * len(vocabulary), hidden)  # each channel's mean, and whether it is there
        self.logits = nn.Linear(hidden, templates)
        self.register_buffer("temperature", torch.tensor(self.START))

    def anneal(self, progress: float) -> None:
        """Set the temperature: 30 at progress 0, falling linearly to 1 at progress 1, where it stays."""
        self.temperature.fill_(self.START + (1 - self.START) * min(1.0, max(0.0, progress)))

    def kernel(self, channels: ChannelSet) -> Tensor:
        """The M kernels of a channel set, M×O×|S|×k×k."""
        return self.conv.kernel(channels).unflatten(0, (self.logits.out_features, -1))

    def attention(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """How much each image heeds each kernel, N×M; rows sum to 1."""
        with uncast(x.device):
            weight, bias = self._squeeze(channels)
            hidden = F.relu(F.linear(x.to(weight.dtype).mean((2, 3)), weight, bias))
            return (self.logits(hidden) / self.temperature).softmax(1)

    def convolve(self, x: Tensor, channels: ChannelSet) -> Tensor:
        """Convolve every image with its own mixture of the set's kernels."""
        kernels = self.kernel(channels)
        check_images(x, len(channels), channels)
        return convolve_each(x, self.attention(x, channels), kernels, self.stride)

    @torch.no_grad()
    def plain(self, channels: ChannelSet) -> "DynamicConv2d":
        """The dynamic convolution for the set, the temperature folded in; it is not a plain convolution."""
        kernels = self.kernel(channels)
        return DynamicConv2d(
            _linear(*self._squeeze(channels)),
            _linear(self.logits.weight / self.temperature, self.logits.bias / self.temperature),
            kernels,
            kernels.new_zeros(kernels.shape[1]),
            self.stride,
        )

    @torch.no_grad()
    def materialize(self, channels: ChannelSet) -> "DynamicConv2d":
        """The same with the norm folded into the kernels."""
        conv, (scale, shift) = self.plain(channels), affine(self.norm.ordinary(channels))
        conv.kernels.mul_(scale.repeat(self.logits.out_features).view(-1, 1, 1, 1))
        conv.bias.copy_(shift)
        return conv

    def _squeeze(self, channels: ChannelSet) -> tuple[Tensor, Tensor]:
        """First layer of the attention for one set: weight hidden×|S| on the means, and bias (hidden,)."""
        means, present = self.squeeze.weight.chunk(2, dim=1)
        indices = self.indices(channels)
        return means[:, indices], self.squeeze.bias + present[:, indices].sum(1)


class DynamicConv2d(nn.Module):
    """Dynamic convolution on a fixed number of channels: attention over kernels, one mixture for every image.

    Source: arXiv 1912.03458, fig. 3.

    Args:
        squeeze, logits: the two layers of the attention, C → hidden → M, a ReLU between them.
        kernels: M×O×C×k×k.
        bias: (O,), not attended to.
        stride: of the convolution; padding is half the kernel.

    Shape:
        N×C×H×W → N×O×H'×W'.
    """

    def __init__(self, squeeze: nn.Linear, logits: nn.Linear, kernels: Tensor, bias: Tensor, stride: int) -> None:
        super().__init__()
        self.squeeze, self.logits, self.stride = squeeze, logits, stride
        # Kernels lie one after the other: `Module.to` brings only four dimensions into channels_last memory.
        self.kernels, self.bias = nn.Parameter(kernels.flatten(0, 1).clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Attend, mix, convolve."""
        attention = self.logits(F.relu(self.squeeze(x.mean((2, 3))))).softmax(1)
        kernels = self.kernels.unflatten(0, (attention.shape[1], -1))
        return convolve_each(x, attention, kernels, self.stride) + self.bias.view(-1, 1, 1)


def convolve_each(x: Tensor, attention: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Convolve every image with its own mixture of kernels, as one convolution with a group per image.

    Args:
        x: N×C×H×W.
        attention: N×M.
        kernels: M×O×C×k×k, mixed in their own precision even under autocast.
        stride: of the convolution; padding is half the kernel.
    """
    with uncast(x.device):
        mixed = attention.to(kernels.dtype) @ kernels.flatten(1)  # N×(O·C·k·k)
    count, planes, height, width = x.shape
    weight = mixed.view(-1, planes, *kernels.shape[-2:])  # (N·O)×C×k×k
    y = F.conv2d(
        x.reshape(1, count * planes, height, width),
        like(weight, x),
        stride=stride,
        padding=kernels.shape[-1] // 2,
        groups=count,
    )
    return y.view(count, -1, *y.shape[-2:])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with these values."""
    layer = nn.Linear(*reversed(weight.shape)).to(weight)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
