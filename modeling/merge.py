"""Train deep, then merge: layers that exist in training only, and fold into their neighbours afterwards.

A convolution is trained as two, k×k and 1×1, with an activation between them that is annealed to the identity.
Then nothing nonlinear is left between the two, and they are one convolution: training has had the greater depth,
and inference pays for the smaller. The second one is 1×1, since padding between the two would not commute.
Source: "deep training" of VanillaNet, Chen et al., arXiv 2305.12972, §3.1.
"""

import copy
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)

# By type of a module: its convolutions, each with the norm that follows it, where no `nn.Sequential` tells.
NORMS_BEHIND: dict[type[nn.Module], dict[str, str]] = {}


class AnnealedReLU(nn.Module):
    """A ReLU that becomes the identity: (1 - λ) · relu(x) + λ · x, which is a leaky ReLU of slope λ.

    λ is a buffer, saved with the weights. It starts at 0; training raises it by calling `anneal(progress)`.
    Source: VanillaNet, arXiv 2305.12972, eq. 1.

    Shape:
        any; output as input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(0.0))

    def anneal(self, progress: float) -> None:
        """Set λ to the part of the annealing that is over, 0 to 1; below and beyond it stays there."""
        self.slope.fill_(min(1.0, max(0.0, progress)))

    @property
    def is_identity(self) -> bool:
        """Whether the annealing is over."""
        return self.slope.item() == 1

    def forward(self, x: Tensor) -> Tensor:
        """Negative values times λ."""
        return torch.where(x > 0, x, self.slope * x)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return "" if self.slope.is_meta else f"slope={self.slope.item():g}"


def anneal(module: nn.Module, progress: float) -> None:
    """Anneal every `AnnealedReLU` within a module; others have none, and do not mind."""
    for part in module.modules():
        if isinstance(part, AnnealedReLU):
            part.anneal(progress)


@torch.no_grad()
def merged(module: M) -> M:
    """A copy for inference, in which what follows a convolution in an `nn.Sequential` is folded into it.

    That is a BatchNorm, also within a ResNet's basic blocks, and a 1×1 convolution from which no activation
    separates it any more. A grouped convolution keeps its 1×1: as one dense convolution the two would compute the
    same (see `compose`), but slower. An activation whose annealing is not over stays, and so does what is behind
    it. A linear map takes in the BatchNorm of vectors before it.
    """
    return _merge(copy.deepcopy(module).eval())


@torch.no_grad()
def compose(first: nn.Conv2d, pointwise: nn.Conv2d) -> nn.Conv2d:
    """One convolution that computes `pointwise(first(x))`.

    Args:
        first: of any kernel, padding and number of groups.
        pointwise: 1×1, without groups.
    """
    mixing = pointwise.weight.flatten(1).unflatten(1, (first.groups, -1))  # O×G×M/G
    kernels = first.weight.unflatten(0, (first.groups, -1))  # G×M/G×C/G×k×k
    conv = nn.Conv2d(
        first.in_channels,
        pointwise.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        first.dilation,
        padding_mode=first.padding_mode,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    conv.weight.copy_(torch.einsum("ogm,gmchw->ogchw", mixing, kernels).flatten(1, 2))
    conv.bias.zero_()
    if first.bias is not None:
        conv.bias += pointwise.weight.flatten(1) @ first.bias
    if pointwise.bias is not None:
        conv.bias += pointwise.bias
    return conv.train(first.training)


def _merge(module: M) -> M:
    for name, child in module._modules.items():  # `named_children` leaves out what stands there twice
        if child is not None:
            setattr(module, name, _merge(child))
    for conv, norm in NORMS_BEHIND.get(type(module), {}).items():
        both = _joined(getattr(module, conv), getattr(module, norm))
        if both is not None:
            setattr(module, conv, both)
            setattr(module, norm, nn.Identity())
    return _simplified(module) if type(module) is nn.Sequential else module


def _simplified(layers: nn.Sequential) -> nn.Sequential:
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in layers._modules.items():
        if isinstance(layer, AnnealedReLU) and layer.is_identity:
            continue
        last = next(reversed(kept), None)
        both = None if last is None else _joined(kept[last], layer)
        if both is None:
            kept[name] = layer
        else:
            kept[last] = both
    return nn.Sequential(kept).train(layers.training)


def _joined(first: nn.Module, second: nn.Module) -> nn.Conv2d | nn.Linear | None:
    """The layer that does the work of both, if there is one that costs no more."""
    if isinstance(first, nn.BatchNorm1d) and isinstance(second, nn.Linear) and first.running_mean is not None:
        return _absorb(first, second) if first.affine else None
    if not isinstance(first, nn.Conv2d):
        return None
    if isinstance(second, nn.BatchNorm2d) and second.running_mean is not None:
        return fuse_conv_bn_eval(first, second)
    if first.groups == 1 and _is_pointwise(second):
        return compose(first, second)
    return None


def _absorb(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """A linear map that normalises what it takes in."""
    gain = (norm.running_var + norm.eps).rsqrt() * norm.weight
    shift = norm.bias - norm.running_mean * gain
    both = copy.deepcopy(linear)
    both.bias = nn.Parameter(linear.weight @ shift + (0 if linear.bias is None else linear.bias))
    both.weight.mul_(gain)
    return both


def _is_pointwise(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
    )
