"""Two-layer networks: a stem, two layers and a head.

"Layer" is ambiguous, so depth is told in four ways, see `modeling.depth`: D0, blocks; D1, learned maps and
products of activations on the longest path; D2, affine maps that nonlinearities separate; D3, distinct weights.
All have D0 = 4, with stem and head:

| body | layer 1 | layer 2 | D1 | D2 | D3 |
| --- | --- | --- | --- | --- | --- |
| strict | 5×5 convolution | 3×3 convolution | 4 | 4 | 4 |
| matched | depthwise 7×7 and 1×1, one affine map | the same | 6 | 4 | 6 |
| rrdb | residual-in-residual dense block | the same | 33 | 27 | 33 |
| attention | self-attention and MLP | the same | 17 | 11 | 13 |
| graph | graph convolution and MLP | the same | 17 | 9 | 15 |
| rrdb-attention | residual-in-residual dense block | self-attention and MLP | 25 | 19 | 23 |
| recurrent, 4 steps | convolutional GRU | the same | 12 | 12 | 6 |

Covariance pooling adds a learned map to D1 and D3, to D2 only where a nonlinearity stands before it (`strict`,
`matched`, `recurrent`), and to D1 the products that make a covariance and its root, too.
Blocks of `attention` and `graph` begin with a depthwise 3×3, which tells positions and is a layer of the path.
Where both layers keep the resolution, a mean over 2×2 positions stands between them, with a linear map to another
width in all but `recurrent`. All take images from 32 px on.
"""

from collections import OrderedDict
from functools import partial
from typing import Literal

from torch import Tensor, nn

from modeling.attention import AttentionBlock
from modeling.graph_conv import GraphBlock
from modeling.merge import AnnealedReLU
from modeling.pooling import POOLINGS, Pooling
from modeling.recurrent import ConvGRU
from modeling.rrdb import RRDB

_HEAD_FEATURES = 32  # of each head of an attention
_COMMON_FEATURES = 512  # that classifiers of ResNets see


class TwoLayerBody(nn.Module):
    """Everything behind the stem of a two-layer network: ReLU, two layers, head.

    Attributes:
        blocks: names of its blocks, in order; the stem is one more.

    Shape:
        N×C×H×W, from the stem → N×classes.
    """

    def __init__(self, layer1: nn.Module, layer2: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.blocks = ["layer1", "layer2", "head"]
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.head = layer1, layer2, head

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.layer2(self.layer1(self.relu(x))))


def strict(
    features: int, classes: int, *, pooling: Pooling = "mean-std", kernel_size: int = 5, deep: bool = False
) -> TwoLayerBody:
    """Two convolutions of stride 2, each twice as wide as the layer before: with stem and head four weight layers.

    At full width it has 3.9 times the multiply-adds of a ResNet-34, at half width as many.

    Args:
        features: C, of the stem.
        classes: number of logits.
        pooling: of the head.
        kernel_size: of the first, odd; the second is 3×3.
        deep: train each as two convolutions, see `modeling.merge`.
    """
    return TwoLayerBody(
        _convolution(features, 2 * features, kernel_size, deep),
        _convolution(2 * features, 4 * features, 3, deep),
        _head(4 * features, classes, pooling),
    )


def matched(
    features: int, classes: int, *, pooling: Pooling = "mean-std", kernel_size: int = 7, deep: bool = False
) -> TwoLayerBody:
    """Two affine maps of a large kernel and low rank, depthwise and 1×1; about as costly as a ResNet-34.

    Args:
        features: C, of the stem.
        classes: number of logits.
        pooling: of the head.
        kernel_size: of the depthwise convolutions, odd.
        deep: train with activations that are annealed between depthwise and 1×1, and each 1×1 as two, see
            `modeling.merge`.
    """
    return TwoLayerBody(
        _separable(features, 2 * features, kernel_size, deep),
        _separable(2 * features, 4 * features, kernel_size, deep),
        _head(4 * features, classes, pooling, norm="out"),
    )


def rrdb(features: int, classes: int, *, pooling: Pooling = "mean-std", growth: int = 24) -> TwoLayerBody:
    """Two RRDBs; `growth` is that of the first, the second has twice as much."""
    return TwoLayerBody(
        RRDB(features, growth),
        nn.Sequential(*_reduction(features, 2 * features), RRDB(2 * features, 2 * growth)),
        _head(2 * features, classes, pooling, norm="in"),
    )


def attention(features: int, classes: int, *, pooling: Pooling = "mean-std") -> TwoLayerBody:
    """Two blocks of self-attention, with a head for every 32 features.

    Raises:
        ValueError: features do not divide by 32.
    """
    return TwoLayerBody(
        _attention(features),
        nn.Sequential(*_reduction(features, 2 * features), _attention(2 * features)),
        _head(2 * features, classes, pooling, norm="in"),
    )


def graph(features: int, classes: int, *, pooling: Pooling = "mean-std", neighbours: int = 9) -> TwoLayerBody:
    """Two graph convolutions, where every position has so many neighbours."""
    return TwoLayerBody(
        GraphBlock(features, neighbours),
        nn.Sequential(*_reduction(features, 2 * features), GraphBlock(2 * features, neighbours)),
        _head(2 * features, classes, pooling, norm="in"),
    )


def rrdb_attention(
    features: int, classes: int, *, pooling: Pooling = "mean-std", growth: int = 24
) -> TwoLayerBody:
    """An RRDB on the fine map, self-attention six times as wide on the coarse one."""
    wide = 6 * features
    return TwoLayerBody(
        RRDB(features, growth),
        nn.Sequential(*_reduction(features, wide), _attention(wide)),
        _head(wide, classes, pooling, norm="in"),
    )


def recurrent(features: int, classes: int, *, pooling: Pooling = "mean-std", steps: int = 4) -> TwoLayerBody:
    """Two convolutional GRUs of so many steps; the second takes in the mean over 2×2 positions."""
    return TwoLayerBody(
        ConvGRU(features, features, steps),
        nn.Sequential(_halve(), ConvGRU(features, 2 * features, steps)),
        _head(2 * features, classes, pooling),
    )


_halve = partial(nn.AvgPool2d, 2, ceil_mode=True)  # an odd row or column counts too


def _attention(features: int) -> AttentionBlock:
    if features % _HEAD_FEATURES:
        raise ValueError(f"{features} features do not divide into heads of {_HEAD_FEATURES}")
    return AttentionBlock(features, features // _HEAD_FEATURES)


def _convolution(planes: int, features: int, kernel_size: int, deep: bool) -> nn.Sequential:
    """Convolution of stride 2, norm, ReLU."""
    return nn.Sequential(
        _conv(planes, features, kernel_size, stride=2),
        nn.BatchNorm2d(features),
        *(_deepening(features) if deep else ()),
        nn.ReLU(inplace=True),
    )


def _separable(planes: int, features: int, kernel_size: int, deep: bool) -> nn.Sequential:
    """Depthwise convolution and 1×1, each with a norm, ReLU, and the maximum over 2×2 positions."""
    return nn.Sequential(
        _conv(planes, planes, kernel_size, groups=planes),
        nn.BatchNorm2d(planes),
        *([AnnealedReLU()] if deep else []),
        _conv(planes, features, 1),
        nn.BatchNorm2d(features),
        *(_deepening(features) if deep else ()),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


def _deepening(features: int) -> tuple[nn.Module, ...]:
    """What makes a convolution two for the time of training."""
    return AnnealedReLU(), _conv(features, features, 1), nn.BatchNorm2d(features)


def _reduction(planes: int, features: int) -> tuple[nn.Module, ...]:
    """Half the resolution and another width, by an affine map."""
    return _halve(), _conv(planes, features, 1), nn.BatchNorm2d(features)


def _conv(planes: int, features: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded by half its kernel, with He's initialisation."""
    conv = nn.Conv2d(planes, features, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


def _head(features: int, classes: int, pooling: Pooling, norm: Literal["", "in", "out"] = "") -> nn.Sequential:
    """Pooling and the classifier.

    Args:
        features: C.
        classes: number of logits.
        pooling: see `modeling.pooling`.
        norm: one before the pooling, for features that are a sum of residuals; or one behind it, for very many,
            which makes what the classifier sees as long as a ResNet's features are: its steps would overshoot.
    """
    pool = POOLINGS[pooling](features)
    parts: dict[str, nn.Module] = {"pool": pool, "fc": nn.Linear(pool.out_features, classes)}
    if norm == "in":
        parts = {"norm": nn.BatchNorm2d(features), **parts}
    elif norm == "out":
        behind = nn.BatchNorm1d(pool.out_features)
        nn.init.constant_(behind.weight, (_COMMON_FEATURES / pool.out_features) ** 0.5)
        parts = {"pool": pool, "norm": behind, "fc": parts["fc"]}
    return nn.Sequential(OrderedDict(parts))
