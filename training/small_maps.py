"""Convolutions of small maps on a CPU's matrix units, as matrix products.

The last layers of a network have maps of a few positions and many features. There oneDNN's convolutions in
bfloat16 leave Intel's matrix units (AMX) idle for most of the time, above all those for the gradient of the
weights; one product of unfolded maps is quicker, and says the same but for rounding. Its depthwise convolutions
have the gradient of their weights sooner in float32. `training.benchmark train` measures what comes of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]

# Where products were the quicker ones on a Xeon with AMX, by positions of the output and by its features.
_WEIGHTS_POSITIONS, _WEIGHTS_FEATURES = 64, 128  # for the gradient of the weights
_OTHER_POSITIONS, _OTHER_FEATURES = 16, 512  # for the answer, and for the gradient of the input

_CAST = (torch.float32, torch.float16, torch.bfloat16)  # what autocast casts


def has_matrix_units() -> bool:
    """Whether the processor that trains has what `SmallMaps` is for."""
    return not torch.cuda.is_available() and torch.cpu._is_amx_tile_supported()


class SmallMaps(TorchFunctionMode):
    """Within it, `conv2d` under autocast to bfloat16 takes the way that is quick for its shapes.

    Only on a CPU, and only where nothing is compiled or exported; everything else is left as it is. Gradients have
    no gradients of their own, and `torch.func` does not know the way. A product takes memory for k·k times the
    input of its convolution, one after the other.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Intercept convolutions."""
        kwargs = kwargs or {}
        if func is F.conv2d and not torch.compiler.is_compiling():
            quick = _quick(*args, **kwargs)
            if quick is not None:
                return quick
        return func(*args, **kwargs)


def _quick(
    input: Tensor,  # as torch calls it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor | None:
    """The convolution, or None where torch's own is as quick, or is asked for something else."""
    stride, padding, dilation = (v if isinstance(v, Sequence) else (v, v) for v in (stride, padding, dilation))
    as_usual = len(stride) == len(padding) == 2 and min(stride) > 0 and (*dilation,) == (1, 1)
    if not (as_usual and _fit(input, weight, bias, groups) and _is_cast(input, weight, bias)):
        return None
    size = _map_size(input, weight.shape[2:], stride, padding)
    features, planes = len(weight), input.shape[1]
    dense = groups == 1 and math.prod(size) <= _WEIGHTS_POSITIONS and features >= max(_WEIGHTS_FEATURES, planes)
    empty = min(*size, *input.shape) < 1 or min(padding) < 0  # torch knows what to say
    if empty or not (dense or 1 < groups == features == planes):
        return None
    tensors = [None if t is None else t.to(torch.bfloat16) for t in (input, weight, bias)]
    return _Convolution.apply(*tensors, tuple(stride), tuple(padding), groups)


def _fit(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> bool:
    """Whether these are a batch of maps and the weights of a convolution of it."""
    batched = x.dim() == weight.dim() == 4 and x.shape[1] == groups * weight.shape[1]
    return batched and (bias is None or bias.shape == weight.shape[:1])


def _is_cast(*tensors: Tensor | None) -> bool:
    """Whether autocast makes bfloat16 of all these."""
    enabled = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return enabled and all(t is None or (t.is_cpu and t.dtype in _CAST) for t in tensors)


class _Convolution(torch.autograd.Function):
    """A convolution, ordinary or depthwise, whose gradients are taken by the quick way."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding, groups
        if groups > 1 or not _is_tiny(weight, _map_size(x, weight.shape[2:], stride, padding)):
            return F.conv2d(x, weight, bias, stride, padding, 1, groups)
        return _product(x, weight, bias, stride, padding).detach()  # no view, which nobody could change in place

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        return (
            _input_gradient(grad, x, weight, *ctx.settings) if of_x else None,
            _weight_gradient(grad, x, weight, *ctx.settings) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
            *(None,) * 3,
        )


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, groups: int) -> Tensor:
    if groups > 1 or not _is_tiny(weight, grad.shape[2:]):
        return _library(grad, x, weight, stride, padding, groups, (True, False, False))[0]
    kernel, (height, width) = weight.shape[2:], x.shape[2:]
    wide = x.new_zeros(len(x), height + 2 * padding[0], width + 2 * padding[1], x.shape[1], dtype=torch.float32)
    windows = _windows(wide, kernel, stride)
    products = (_rows(grad) @ _kernels(weight)).view(windows.shape)
    for i, j in product(*map(range, kernel)):  # windows overlap, but not at the same place of the kernel
        windows[:, :, :, i, j] += products[:, :, :, i, j]
    inside = wide[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return inside.to(x.dtype, memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, groups: int) -> Tensor:
    if groups > 1:
        precise = grad.float(), x.float(), weight.float()
        return _library(*precise, stride, padding, groups, (False, True, False))[1].to(weight.dtype)
    products = _rows(grad).mT.contiguous() @ _unfold(x, weight.shape[2:], stride, padding)
    return products.unflatten(1, (*weight.shape[2:], -1)).permute(0, 3, 1, 2)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """A convolution as one matrix product."""
    y = F.linear(_unfold(x, weight.shape[2:], stride, padding), _kernels(weight), bias)
    size = _map_size(x, weight.shape[2:], stride, padding)
    return y.view(len(x), *size, len(weight)).permute(0, 3, 1, 2)


def _unfold(x: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair) -> Tensor:
    """N×C×H×W → (N·rows·columns)×(k·k·C): what a kernel sees from each position of its answer."""
    wide = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    return _windows(wide, kernel, stride).flatten(0, 2).flatten(1)


def _windows(x: Tensor, kernel: Sequence[int], stride: Pair) -> Tensor:
    """N×H×W×C → N×rows×columns×k×k×C, all views of the same memory."""
    return x.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1]).permute(0, 1, 2, 4, 5, 3)


def _rows(grad: Tensor) -> Tensor:
    """N×O×rows×columns → (N·rows·columns)×O."""
    return grad.permute(0, 2, 3, 1).flatten(0, 2)


def _kernels(weight: Tensor) -> Tensor:
    """O×C×k×k → O×(k·k·C)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _library(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    groups: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    """The gradients that torch itself would give."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, wanted
    )


def _map_size(x: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair) -> Pair:
    rows, columns = ((x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    return rows, columns


def _is_tiny(weight: Tensor, size: Sequence[int]) -> bool:
    return size[0] * size[1] <= _OTHER_POSITIONS and len(weight) >= _OTHER_FEATURES
