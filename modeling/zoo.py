"""Name → model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modeling.channels import parse_names
from modeling.dynamic_conv import Descriptor
from modeling.resnet import STEM_FEATURES, STEM_KERNEL, STEM_STRIDE, ChannelNet, resnet_body
from modeling.rivals import (
    AttentionStem,
    DepthwiseStem,
    HyperStem,
    PlainStem,
    RepeatStem,
    RescaledZeroFillStem,
    SliceStem,
    TableStem,
)
from modeling.stems import AnyChannelStem, Gain, Norm, Stem, ZeroFillStem

BodyName = Literal["resnet10", "resnet18", "resnet34"]
StemName = Literal[
    "any-channel",
    "zero-fill",
    "zero-fill-rescaled",
    "repeat",
    "plain",
    "table",
    "slices",
    "depthwise",
    "hypernet",
    "attention",
]


@dataclass(frozen=True, kw_only=True)
class StemOptions:
    """What a stem may be told; each takes what concerns it.

    Attributes:
        templates: of any-channel and attention.
        fill: of zero-fill, in normalised units.
        norm: of all but zero-fill, zero-fill-rescaled, repeat and plain, which share one.
        conditioning, gain, descriptors: of any-channel, see there.
        channels: of plain, the one set that it takes; all of the vocabulary if None.
    """

    templates: int = 8
    fill: Sequence[float] | float = 0.0
    norm: Norm = "per-set"
    conditioning: bool = True
    gain: Gain = "sqrt"
    descriptors: Mapping[str, Descriptor] | None = None
    channels: str | Sequence[str] | None = None


_STEMS: dict[StemName, Callable[[tuple, StemOptions], Stem]] = {
    "any-channel": lambda shape, o: AnyChannelStem(
        *shape,
        templates=o.templates,
        norm=o.norm,
        conditioning=o.conditioning,
        gain=o.gain,
        descriptors=o.descriptors,
    ),
    "zero-fill": lambda shape, o: ZeroFillStem(*shape, fill=o.fill),
    "zero-fill-rescaled": lambda shape, o: RescaledZeroFillStem(*shape),
    "repeat": lambda shape, o: RepeatStem(*shape),
    "plain": lambda shape, o: PlainStem(*shape, channels=o.channels),
    "table": lambda shape, o: TableStem(*shape, norm=o.norm),
    "slices": lambda shape, o: SliceStem(*shape, norm=o.norm),
    "depthwise": lambda shape, o: DepthwiseStem(*shape, norm=o.norm),
    "hypernet": lambda shape, o: HyperStem(*shape, norm=o.norm),
    "attention": lambda shape, o: AttentionStem(*shape, norm=o.norm, templates=o.templates),
}


def build_model(
    body: BodyName, stem: StemName, vocabulary: str | Sequence[str], classes: int, **options: Any
) -> ChannelNet:
    """A network with fresh weights.

    Args:
        body: everything behind the stem.
        stem: how channel sets are taken in.
        vocabulary: channel names, e.g. "RGB".
        classes: number of logits.
        options: of the stem, see `StemOptions`.
    """
    return ChannelNet(build_stem(stem, vocabulary, **options), resnet_body(body, classes))


def build_stem(name: StemName, vocabulary: str | Sequence[str], **options: Any) -> Stem:
    """The stem of a ResNet: 7×7, stride 2, 64 features; `options` as in `StemOptions`."""
    shape = (parse_names(vocabulary), STEM_FEATURES, STEM_KERNEL, STEM_STRIDE)
    return _STEMS[name](shape, StemOptions(**options))
