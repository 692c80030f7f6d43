"""Name → model."""

from collections.abc import Sequence
from typing import Literal

from modeling.channels import parse_names
from modeling.resnet import STEM_FEATURES, STEM_KERNEL, STEM_STRIDE, ChannelNet, resnet_body
from modeling.stems import AnyChannelStem, Stem, ZeroFillStem

BodyName = Literal["resnet18", "resnet34"]
StemName = Literal["any-channel", "zero-fill"]


def build_model(
    body: BodyName,
    stem: StemName,
    vocabulary: str | Sequence[str],
    classes: int,
    *,
    templates: int = 8,
    fill: Sequence[float] | float = 0.0,
) -> ChannelNet:
    """A network with fresh weights.

    Args:
        body: everything behind the stem.
        stem: how channel sets are taken in.
        vocabulary: channel names, e.g. "RGB".
        classes: number of logits.
        templates: of the any-channel stem.
        fill: of the zero-fill stem, in normalised units.
    """
    return ChannelNet(build_stem(stem, vocabulary, templates=templates, fill=fill), resnet_body(body, classes))


def build_stem(
    name: StemName,
    vocabulary: str | Sequence[str],
    *,
    templates: int = 8,
    fill: Sequence[float] | float = 0.0,
) -> Stem:
    """The stem of a ResNet: 7×7, stride 2, 64 features."""
    shape = (parse_names(vocabulary), STEM_FEATURES, STEM_KERNEL, STEM_STRIDE)
    if name == "any-channel":
        return AnyChannelStem(*shape, templates=templates)
    return ZeroFillStem(*shape, fill=fill)
