r"""Any-channel input for any network: `adapt(resnet50(weights="DEFAULT"), "RGB")`.

The network stays as it is; only the weight of the convolution that reads the image is made anew for each channel
set S, out of the pretrained slices W[o, c], c in the vocabulary of C0 channels, and a generated part:

    W[o, s | S] = W[o, s] + 1/|S| · Σ_{c not in S} W[o, c] + G[o, s | S]

The first two terms are the pretrained network with each missing channel filled with the mean of those present.
The channels of natural images are strongly correlated, so that mean is a good guess, and on gray images every set
gives exactly what the full set gives: the statistics in pretrained norms stay right. Slices scaled by C0/|S| do
the same for a filter whose slices are alike, but amplify an opponent filter (red minus green) that should cancel;
√(C0/|S|) would suit independent channels. Independent channels are served too: uncorrelated slices of equal power
keep 1 (|S| = 1) or 5/6 (|S| = 2) of their variance on white RGB noise.

G is the kernel of a `ChannelConv2d` that starts at zero as LoRA does (arXiv 2106.09685): its mixing is zero and
its templates are not, so that gradients reach it. On the full set the adapted network is the pretrained one.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from modeling.channels import check_images, parse_names
from modeling.dynamic_conv import ChannelConv2d, Channels
from modeling.fourier import Descriptor


def adapt(
    network: nn.Module,
    vocabulary: str | Sequence[str],
    *,
    descriptors: Mapping[str, Descriptor] | None = None,
    templates: int = 8,
    size: int = 224,
) -> "AdaptedNet":
    """Let a network of torchvision, timm or your own take any subset of the channels it reads.

    Args:
        network: any module that maps N×C0×H×W images to something, whose first layer is an ungrouped `nn.Conv2d`
            on the image itself. It is kept, not copied. (Where that convolution standardises its weight, as in
            NFNets, the full set is exact but smaller sets are not mean-filled exactly.) If it looks at the
            channels elsewhere too, in a way that a single channel does not break, nobody notices.
        vocabulary: the channels it reads, in their order: "RGB" for most pretrained weights.
        descriptors: their wavelengths, so that new channels can be described later; see `ChannelConv2d`.
        templates: of the generated part.
        size: side of the image by which the first convolution is looked for; it matters to networks made for one
            size only.

    Raises:
        ValueError: no such convolution is found, it reads another number of channels, its weight is made of others
            (weight norm), or the network does not take one channel alone elsewhere.
    """
    vocabulary = parse_names(vocabulary)
    first = first_conv(network, len(vocabulary), size)
    adapted = AdaptedNet(network, first, vocabulary, descriptors, templates)
    _check_one_reader(adapted, size)
    return adapted


class AdaptedNet(nn.Module):
    """A network whose first kernel is made for the channels at hand; `adapt` makes it.

    Attributes:
        body: the network itself, with its own state dict. Its first weight is the pretrained kernel, and training
            goes on with it unless it is frozen.
        conv: generates what is added to the pretrained kernel.
        first: name of the first convolution in the body.
    """

    def __init__(
        self,
        body: nn.Module,
        first: str,
        vocabulary: Sequence[str],
        descriptors: Mapping[str, Descriptor] | None = None,
        templates: int = 8,
    ) -> None:
        super().__init__()
        self.body, self.first = body, first
        reader = body.get_submodule(first)
        self.conv = ChannelConv2d(
            vocabulary,
            reader.out_channels,
            reader.kernel_size,
            reader.stride,
            reader.padding,
            reader.dilation,
            bias=False,
            descriptors=descriptors,
            templates=templates,
        ).to(reader.weight)
        nn.init.zeros_(self.conv.mixing)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The channels that the network was made for, in their order."""
        return self.conv.vocabulary

    def describe(self, name: str, descriptor: Descriptor) -> None:
        """Make a channel outside the vocabulary known; see `ChannelConv2d.describe`.

        It stands in for missing channels like any other; beside the full set it adds nothing before training.
        """
        self.conv.describe(name, descriptor)

    def kernel(self, channels: Channels = None) -> Tensor:
        """The first convolution's kernel for a channel set, O×|S|×k×k."""
        chosen = self.conv.parse(channels)
        weight = self.body.get_submodule(self.first).weight
        missing = [i for i, name in enumerate(self.vocabulary) if name not in chosen.names]
        share = weight[:, missing].sum(1, keepdim=True) / len(chosen)
        position = {name: i for i, name in enumerate(self.vocabulary)}
        slices = F.pad(weight, (0, 0, 0, 0, 0, 1))  # a zero slice, which is all that described channels have
        own = slices[:, [position.get(name, len(position)) for name in chosen]]
        return own + share + self.conv.kernel(chosen)

    def forward(self, x: Tensor, channels: Channels = None) -> Tensor:
        """What the network makes of images N×|S|×H×W whose channels are `channels`, the vocabulary if None."""
        kernel = self.kernel(channels)
        check_images(x, kernel.shape[1], self.conv.parse(channels))
        key = f"{self.first}.weight" if self.first else "weight"
        return functional_call(self.body, {key: kernel}, (x,))

    @torch.no_grad()
    def materialize(self, channels: Channels = None) -> nn.Module:
        """The network for one channel set in its original architecture, in inference mode; it shares no memory."""
        plain = copy.deepcopy(self.body)
        conv = plain.get_submodule(self.first)
        conv.weight = nn.Parameter(self.kernel(channels).clone())
        conv.in_channels = conv.weight.shape[1]
        return plain.eval().requires_grad_(False)


def first_conv(network: nn.Module, channels: int, size: int = 224) -> str:
    """Name of the one convolution that reads the image, found by showing a copy of the network an image.

    Raises:
        ValueError: there is none, or more than one, it is grouped, or it reads another number of channels.
    """
    readers, failure = _readers(network, _image(network, channels, size))
    if not readers:
        reason = f" ({failure})" if failure else ""
        raise ValueError(
            f"no nn.Conv2d reads an image of {size}×{size} itself{reason}; try another size=, or adapt the part "
            "of the network behind what changes the image first (a normalisation, transform_input=True)"
        )
    if len(readers) > 1:
        raise ValueError(f"{len(readers)} convolutions read the image: {', '.join(readers)}; adapt needs just one")
    conv = network.get_submodule(readers[0])
    if conv.groups > 1:
        raise ValueError(f"{readers[0]!r} has groups={conv.groups}; adapt needs an ungrouped first convolution")
    if "weight" not in conv._parameters:
        raise ValueError(f"the weight of {readers[0]!r} is made of others; remove its parametrisation first")
    if conv.in_channels != channels:
        raise ValueError(
            f"the network reads {conv.in_channels} channels, the vocabulary has {channels}; name all that it reads"
        )
    return readers[0]


def _readers(network: nn.Module, image: Tensor) -> tuple[list[str], str]:
    """Which convolutions are given the image, and what went wrong behind or before them."""
    probe, readers = copy.deepcopy(network).eval(), []

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0] is image and name not in readers:
            readers.append(name)

    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(partial(note, name))
    failure = _failure(probe, image)  # now, so that the readers are there to return
    return readers, failure


def _check_one_reader(adapted: AdaptedNet, size: int) -> None:
    """Refuse a network that takes all channels but not one: not its first convolution alone sees them."""
    probe, image = copy.deepcopy(adapted).eval(), _image(adapted, len(adapted.vocabulary), size)
    alone = adapted.vocabulary[:1]
    if not _failure(probe, image) and (failure := _failure(probe, image[:, :1], alone)):
        raise ValueError(
            f"not {adapted.first!r} alone sees the image's channels ({failure}); adapt cannot serve this network"
        )


def _failure(network: nn.Module, *inputs: object) -> str:
    """First line of the error that a network answers with; empty if it answers."""
    try:
        with torch.no_grad():
            network(*inputs)
    except Exception as error:  # of whatever kind: the network is anybody's
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _image(network: nn.Module, channels: int, size: int) -> Tensor:
    like = next(network.parameters(), None)
    if like is None:
        raise ValueError(f"{type(network).__name__} has no weights, and so no convolution to adapt")
    return torch.zeros(1, channels, size, size, device=like.device, dtype=like.dtype)
