r"""ChannelConv2d: a convolution whose kernel is generated from the channels at hand.

For a channel set S out of a vocabulary of C0 channels, with M shared templates B (M×O×k×k):

    W[o, c | S] = √(C0 / |S|) · Σ_m A[m, o](c, S) · B[m, o]
    A(c, S)     = A0(c) + h([ê_c, Linear(mean over S of ê)])

ê_c is the channel's unit-norm embedding and h a small network whose last layer starts at zero. So a channel's
kernel depends on which others are there ("luminance" on R alone is not "luminance" on RGB), the output does not
depend on the order in which channels are stacked, and the pre-activation's variance starts the same for every |S|.

What tells channels apart is a code of unit norm, from which tables make ê_c and A0(c): with learned ids it is
one-hot, so that a table is looked up; with physical descriptors it is Fourier features, so that a channel never
seen in training has an embedding and a kernel too. Channels described as nearer to each other than the
vocabulary's usual gap then start with kernels that are alike, and add up where their images are alike too.

The templates follow CHAMMI's TemplateMixing (arXiv 2310.19224), the generated kernel HyperNetworks (arXiv
1609.09106), and kernels made from wavelengths DOFA (arXiv 2403.15356); unlike Dynamic Convolution (arXiv
1912.03458) kernels depend on the set, not on the sample, so that inference can use a plain convolution.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from modeling.channels import ChannelSet, Vocabulary, check_images, parse_names
from modeling.fourier import Descriptor, FourierCode
from modeling.norms import SubsetBatchNorm2d
from modeling.precision import like, uncast

Channels = ChannelSet | str | Sequence[str] | None  # None: all channels of the vocabulary
Size = int | tuple[int, int]  # one number for both directions, or height and width


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
        ValueError: unknown, duplicate or no channels; an input that is no batch of images of that set, see
            `check_images`; descriptors that are not one for each channel of the vocabulary, not finite or not
            distinct; a geometry that `nn.Conv2d` would not take either.
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
        if min(templates, embedding, hidden, out_channels, *self.kernel_size) < 1:
            raise ValueError("out_channels, kernel_size, templates, embedding and hidden must be at least 1")
        nn.Conv2d(1, 1, self.kernel_size, stride, padding, dilation, device="meta")  # refuses what it cannot be
        rows = FourierCode.LENGTH if self.fourier else len(self.vocabulary)
        self.templates = nn.Parameter(torch.empty(templates, out_channels, *self.kernel_size))
        self.mixing = nn.Parameter(torch.empty(rows, templates, out_channels))
        self.embedding = nn.Parameter(torch.empty(rows, embedding))
        self.context = nn.Linear(embedding, embedding)
        self.refine = nn.Sequential(
            nn.Linear(2 * embedding, hidden), nn.GELU(), _ZeroLinear(hidden, templates * out_channels)
        )
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._start()

    def reset_parameters(self) -> None:
        """Forget all that was learned."""
        for layer in (self.context, self.refine[0], self.refine[-1]):
            layer.reset_parameters()
        self._start()

    def _start(self) -> None:
        """With He's variance for every set: h is zero and codes have unit norm, so A has variance 1/M."""
        fan_in = len(self.vocabulary) * math.prod(self.kernel_size)
        nn.init.normal_(self.templates, std=math.sqrt(2 / fan_in))
        nn.init.normal_(self.mixing, std=math.sqrt(1 / len(self.templates)))
        nn.init.normal_(self.embedding)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

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

    def nearest(self, name: str) -> str:
        """The channel of the vocabulary whose descriptor is nearest to that of a described one."""
        return self.fourier.nearest(name, self.vocabulary)

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

        Wherever channels are named, their code may stand instead. A compiled convolution should be given codes: it
        is compiled at most once for each |S|, whereas names would have it compiled for each set. For more than
        eight sizes raise `torch._dynamo.config.recompile_limit`.
        """
        channels = self.parse(channels)
        if self.fourier:
            return self.fourier(channels).to(self.mixing)
        # Of two dimensions at first: compilers write short lists of numbers into the code that they make, and on a
        # CPU such code is broken (pytorch issue 193581).
        return torch.tensor([channels.indices(self.vocabulary)], device=self.mixing.device)[0]

    def kernel(self, channels: Channels | Tensor = None) -> Tensor:
        """The kernel for a channel set, O×|S|×k×k, generated in the weights' precision even under autocast."""
        code = channels if isinstance(channels, Tensor) else self.encode(channels)
        with uncast(self.templates.device):
            embedded = F.normalize(_rows(self.embedding, code), dim=1)  # |S|×E
            context = self.context(embedded.mean(0)).expand_as(embedded)
            refined = self.refine(torch.cat([embedded, context], dim=1))
            mixing = _rows(self.mixing, code) + refined.view(-1, *self.mixing.shape[1:])  # |S|×M×O
            gain = math.sqrt(len(self.vocabulary) / code.shape[0])
            return gain * torch.einsum("cmo,mohw->ochw", mixing, self.templates)

    def forward(self, x: Tensor, channels: Channels | Tensor = None) -> Tensor:
        """Convolve an input whose channels are `channels` (names or their code), all of the vocabulary if None."""
        kernel = self.kernel(channels)
        check_images(x, kernel.shape[1], "given" if isinstance(channels, Tensor) else self.parse(channels))
        kernel = like(kernel, x)
        bias = None if self.bias is None else self.bias.to(kernel.dtype)
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation)

    @torch.no_grad()
    def materialize(self, channels: Channels = None, norm: SubsetBatchNorm2d | None = None) -> nn.Conv2d:
        """A plain `nn.Conv2d` that computes the same for this channel set, with the norm behind it folded in.

        Args:
            channels: the set.
            norm: what stands behind this convolution, as it is at inference; nothing if None.
        """
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
        if norm is not None:
            conv = fuse_conv_bn_eval(conv.eval(), norm.ordinary(self.parse(channels)).eval())
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        geometry = {key: getattr(self, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        told = geometry | {"bias": self.bias is not None, "described": self.fourier is not None}
        text = ", ".join(f"{key}={value}" for key, value in told.items())
        return f"{ChannelSet(self.known)} → {self.out_channels}, {text}"


class _ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, also where each layer is told to start anew by itself."""

    def reset_parameters(self) -> None:
        super().reset_parameters()  # draws as many numbers as any other, for what is initialised behind it
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def _rows(table: Tensor, code: Tensor) -> Tensor:
    """A table's rows for coded channels: picked by index, or mixed by Fourier features."""
    return table[code] if code.dtype == torch.int64 else torch.tensordot(code, table, dims=1)


def _for_each(vocabulary: Vocabulary, descriptors: Mapping[str, Descriptor]) -> dict[str, Descriptor]:
    if not isinstance(descriptors, Mapping):
        raise ValueError(f"descriptors are given by name, as {{'R': 0.665, …}}, not as {descriptors!r}")
    if set(descriptors) != set(vocabulary):
        raise ValueError(
            f"descriptors are given for {', '.join(descriptors) or 'no channel'}, the vocabulary is "
            f"{ChannelSet(vocabulary)}; give one for each of its channels and add others by describe()"
        )
    return {name: descriptors[name] for name in vocabulary}


def _pair(size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f"kernel_size is {size!r}; give one number, or height and width")
    return pair
