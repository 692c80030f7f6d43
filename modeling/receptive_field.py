"""The effective receptive field: how much each pixel moves what a network sees in the middle of the image.

The theoretical field says which pixels could matter, the effective one how much they do, for given weights and
images. It is measured on the last feature map, at the position in the middle: (H'/2, W'/2), rounded down, so on an
even map the one below and to the right of its centre. That position need not look at the very centre of the image,
as padding and strides put it to one side; hence the field's size is told by squares that may lie anywhere.

The last feature map is what the pooling of the network's head takes in. It is found as the input of the last
module called, of those that pool all positions: a class of `modeling.pooling`, or `nn.AdaptiveAvgPool2d`. So it is
found in every body of ours, and in most convolutional networks of torchvision and timm.

Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", arXiv
1701.04128. They take the gradient of one feature; here it is that of all, squared so that they cannot cancel.
"""

import copy
import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.pooling import POOLINGS

_POOLS = (nn.AdaptiveAvgPool2d, *POOLINGS.values())
_ROUNDING = 1e-6  # of float32 gradients, as a part of the field


def effective_receptive_field(
    network: nn.Module, images: Tensor, *others: Any, batch_size: int = 16, seed: int = 0
) -> Tensor:
    """How much each pixel moves the features at the middle of the last feature map.

    That is (∂ feature / ∂ pixel)², summed over features and the pixel's channels, and averaged over images: the
    part that each pixel has in what faint independent noise does to the features. One backward pass for each image
    estimates it without bias, from the sum of the features with random signs: in its square, products of two
    features cancel on average.

    Args:
        network: any whose last feature map can be found; it is measured in inference mode, and stays as it is.
        images: N×C×H×W, as the network takes them, of any size and on its device.
        others: what else the network takes, a channel set for instance.
        batch_size: images that are worked through at a time.
        seed: of the signs.

    Returns:
        H×W, float64, 0 or more, with a total of 1.

    Raises:
        ValueError: the last feature map cannot be found, or nothing moves it on any image.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    middles = _watch(network)
    signs = torch.Generator().manual_seed(seed)
    field = torch.zeros(images.shape[2:], dtype=torch.float64, device=images.device)
    for part in images.split(batch_size):
        pixels = part.detach().clone().requires_grad_()
        with torch.enable_grad():
            network(pixels, *others)
        if not middles:
            names = ", ".join(pool.__name__ for pool in _POOLS)
            raise ValueError(f"{type(network).__name__} pools no feature map by any of {names}")
        field += _squares(middles[-1], pixels, signs)
        middles.clear()
    total = field.sum().item()
    if not 0 < total < math.inf:
        raise ValueError("no pixel moves the features in the middle of the last feature map, or not by a number")
    return field / total


@dataclass(frozen=True)
class Square:
    """A square of pixels.

    Attributes:
        top, left: its first row and column.
        side: in pixels.
    """

    top: int
    left: int
    side: int


def smallest_square(field: Tensor, share: float) -> Square:
    """The smallest square that holds a share of a field, and of those as small the one that holds most.

    It may lie anywhere, and where the field is not square it may reach beyond the shorter side.

    Args:
        field: H×W, not negative.
        share: of its total, above 0 and at most 1; at 1 all that is more than rounding.

    Raises:
        ValueError: another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} must lie in (0, 1]")
    height, width = field.shape
    longest = max(height, width)
    padded = F.pad(field.double(), (0, longest - width, 0, longest - height))
    wanted = (share - _ROUNDING) * padded.sum().item()
    sides = range(1, longest)
    side = 1 + bisect_left(sides, wanted, key=lambda side: _held(padded, side).max().item())
    held = _held(padded, side)
    top, left = divmod(int(held.argmax()), held.shape[1])
    return Square(top, left, side)


def _watch(network: nn.Module) -> list[Tensor]:
    """A list to which each call of the network adds the middle, N×C, of every map that it pools."""
    middles: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0]
        middles.append(features[:, :, features.shape[2] // 2, features.shape[3] // 2])

    for module in network.modules():
        if isinstance(module, _POOLS):
            module.register_forward_pre_hook(keep)
    return middles


def _squares(features: Tensor, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Squared gradients of features, N×C', summed over images and the pixels' channels: H×W."""
    signs = 2 * torch.randint(2, features.shape, generator=generator) - 1
    (gradient,) = torch.autograd.grad(features, pixels, signs.to(features))
    return gradient.double().square().sum((0, 1))


def _held(field: Tensor, side: int) -> Tensor:
    """Totals of all squares of this side."""
    return field.unfold(0, side, 1).sum(2).unfold(1, side, 1).sum(2)
