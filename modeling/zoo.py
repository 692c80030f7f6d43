"""Name → model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from modeling import two_layer
from modeling.channels import Vocabulary, parse_names
from modeling.fourier import Descriptor
from modeling.network import ChannelNet
from modeling.pooling import Pooling
from modeling.resnet import STEM_FEATURES, STEM_KERNEL, STEM_STRIDE, resnet_body
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
from modeling.stems import AnyChannelStem, Gain, Norm, Stem, StemShape, ZeroFillStem

BodyName = Literal[
    "resnet10",
    "resnet18",
    "resnet34",
    "strict",
    "matched",
    "rrdb",
    "attention",
    "graph",
    "rrdb-attention",
    "recurrent",
]
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


_STEMS: dict[StemName, Callable[[Vocabulary, StemShape, StemOptions], Stem]] = {
    "any-channel": lambda names, shape, o: AnyChannelStem(
        names,
        shape,
        templates=o.templates,
        norm=o.norm,
        conditioning=o.conditioning,
        gain=o.gain,
        descriptors=o.descriptors,
    ),
    "zero-fill": lambda names, shape, o: ZeroFillStem(names, shape, fill=o.fill),
    "zero-fill-rescaled": lambda names, shape, o: RescaledZeroFillStem(names, shape),
    "repeat": lambda names, shape, o: RepeatStem(names, shape),
    "plain": lambda names, shape, o: PlainStem(names, shape, channels=o.channels),
    "table": lambda names, shape, o: TableStem(names, shape, norm=o.norm),
    "slices": lambda names, shape, o: SliceStem(names, shape, norm=o.norm),
    "depthwise": lambda names, shape, o: DepthwiseStem(names, shape, norm=o.norm),
    "hypernet": lambda names, shape, o: HyperStem(names, shape, norm=o.norm),
    "attention": lambda names, shape, o: AttentionStem(names, shape, norm=o.norm, templates=o.templates),
}


RESNET_STEM = StemShape(STEM_FEATURES, STEM_KERNEL, STEM_STRIDE)


@dataclass(frozen=True, kw_only=True)
class BodyOptions:
    """What a two-layer body may be told; each takes what concerns it, a ResNet nothing.

    Attributes:
        width: multiplies the features of stem and body, which are rounded to a multiple of 32.
        pooling: of the head, see `modeling.pooling`.
        kernel_size: of strict's first layer (5 by default) and matched's depthwise convolutions (7); odd.
        deep: train strict or matched with layers that are merged afterwards, see `modeling.merge`.
        growth: of rrdb's first layer, and of rrdb-attention's.
        neighbours: of each node in graph.
        steps: of recurrent.

    Raises:
        ValueError: a number that no network can have.
    """

    width: float = 1.0
    pooling: Pooling = "mean-std"
    kernel_size: int | None = None
    deep: bool = False
    growth: int = 24
    neighbours: int = 9
    steps: int = 4

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"width {self.width} must be above 0")
        if self.kernel_size is not None and (self.kernel_size < 1 or self.kernel_size % 2 == 0):
            raise ValueError(f"kernel_size {self.kernel_size} must be odd, so that it has a middle")
        for name in ("growth", "neighbours", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")

    def scaled(self, features: int) -> int:
        """Features at this width: a multiple of 32, at least 32."""
        return max(1, round(self.width * features / 32)) * 32


@dataclass(frozen=True)
class Body:
    """How to build what stands behind a stem.

    Attributes:
        stem: what it expects at full width.
        make: stem's features, classes, options → body.
        options: names of those in `BodyOptions` that it takes.
    """

    stem: StemShape
    make: Callable[[int, int, BodyOptions], nn.Module]
    options: tuple[str, ...] = ()

    def stem_shape(self, options: BodyOptions) -> StemShape:
        """The stem that it expects with these options."""
        features = options.scaled(self.stem.features) if "width" in self.options else self.stem.features
        return self.stem._replace(features=features)


def _resnet(name: str) -> Body:
    return Body(RESNET_STEM, lambda features, classes, options: resnet_body(name, classes))


def _two_layer(stem: StemShape, factory: Callable[..., nn.Module], *names: str) -> Body:
    """A body whose factory takes the pooling and the options of these names, where they are given."""

    def make(features: int, classes: int, options: BodyOptions) -> nn.Module:
        given = {name: getattr(options, name) for name in ("pooling", *names)}
        return factory(features, classes, **{name: value for name, value in given.items() if value is not None})

    return Body(stem, make, ("width", "pooling", *names))


BODIES: dict[BodyName, Body] = {
    "resnet10": _resnet("resnet10"),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "strict": _two_layer(StemShape(512, 7, 4), two_layer.strict, "kernel_size", "deep"),
    "matched": _two_layer(StemShape(512, 7, 4), two_layer.matched, "kernel_size", "deep"),
    "rrdb": _two_layer(StemShape(64, 7, 4), two_layer.rrdb, "growth"),
    "attention": _two_layer(StemShape(192, 7, 4), two_layer.attention),
    "graph": _two_layer(StemShape(192, 7, 4), two_layer.graph, "neighbours"),
    "rrdb-attention": _two_layer(StemShape(64, 7, 4), two_layer.rrdb_attention, "growth"),
    "recurrent": _two_layer(StemShape(64, 7, 4), two_layer.recurrent, "steps"),
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
        options: of the stem and of the body, see `StemOptions` and `BodyOptions`.
    """
    names = {field.name for field in fields(BodyOptions)}
    own = BodyOptions(**{name: value for name, value in options.items() if name in names})
    rest = {name: value for name, value in options.items() if name not in names}
    kind = BODIES[body]
    shape = kind.stem_shape(own)
    return ChannelNet(build_stem(stem, vocabulary, shape, **rest), kind.make(shape.features, classes, own))


def build_stem(
    name: StemName, vocabulary: str | Sequence[str], shape: StemShape = RESNET_STEM, **options: Any
) -> Stem:
    """A stem as a body expects it, by default that of a ResNet; `options` as in `StemOptions`."""
    return _STEMS[name](parse_names(vocabulary), shape, StemOptions(**options))
