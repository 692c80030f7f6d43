"""What a network costs for each channel set: parameters, multiply-adds, activations, and the price of its kernel.

Counted by fvcore. It counts one multiply-add as one FLOP (ResNet-34 at 224 px: 3.67 G), and as activations the
elements that convolutions and matrix products put out (ResNet-18 at 224 px: 2.48 M), not those of norms, ReLU,
additions and pooling. Attention counts as the two products that it is, though its weights are never put out.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeling.channels import ChannelSet
from modeling.network import ChannelNet
from modeling.stems import Stem


@dataclass(frozen=True)
class Cost:
    """Cost for one channel set.

    Attributes:
        parameters: of the materialised network, which is what inference needs.
        macs: multiply-adds of one image through the materialised network.
        activations: elements put out by its convolutions and matrix products for one image; the kernels that an
            attention mixes for the image are among them.
        kernel_macs: multiply-adds to generate the kernel, once per channel set and not per image.
    """

    parameters: int
    macs: int
    activations: int
    kernel_macs: int


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())


def channel_cost(model: ChannelNet, channels: ChannelSet, size: int) -> Cost:
    """Cost of a model on `size`×`size` images of one channel set."""
    return channel_costs(model, [channels], size)[channels]


def channel_costs(model: ChannelNet, sets: Iterable[ChannelSet], size: int) -> dict[ChannelSet, Cost]:
    """Cost of a model on `size`×`size` images of each channel set; the body, the same for all, counts once."""
    body, of_body, costs = None, {}, {}
    for chosen in sets:
        body = body or model.materialize(chosen).cpu().body
        stem = model.stem.materialize(model.stem.parse(chosen)).cpu().eval()
        image = torch.zeros(1, len(chosen), size, size)
        with torch.no_grad():
            features = stem(image)
        if features.shape not in of_body:
            of_body[features.shape] = _counted(body, features)
        parameters, macs, activations = map(sum, zip(_counted(stem, image), of_body[features.shape], strict=True))
        costs[chosen] = Cost(parameters, macs, activations, _kernel_macs(model, chosen))
    return costs


def _counted(module: nn.Module, image: Tensor) -> tuple[int, int, int]:
    return count_parameters(module), count_macs(module, image), count_activations(module, image)


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one call in inference mode."""
    from fvcore.nn import FlopCountAnalysis

    return _total(FlopCountAnalysis, module, inputs, _attention_macs)


def count_activations(module: nn.Module, *inputs: Tensor) -> int:
    """Elements that convolutions and matrix products put out in one call in inference mode."""
    from fvcore.nn import ActivationCountAnalysis

    return _total(ActivationCountAnalysis, module, inputs, _attention_activations)


_ATTENTION = "aten::scaled_dot_product_attention"


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Q·Kᵀ and attention·V, from the values that fvcore's tracing gives."""
    queries, keys, values = (value.type().sizes() for value in inputs[:3])
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def _attention_activations(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(outputs[0].type().sizes())


def _total(
    analysis: Callable[..., Any],
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    handle: Callable[[list[Any], list[Any]], int],
) -> int:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about Python branches that are fixed here
        counted = analysis(module.eval(), inputs).set_op_handle(_ATTENTION, handle)
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(counted.total())


def _kernel_macs(model: ChannelNet, channels: ChannelSet) -> int:
    return count_macs(_Generate(model.stem, channels), torch.zeros(()))


class _Generate(nn.Module):
    """Kernel generation as a module of its own, for the counter."""

    def __init__(self, stem: Stem, channels: ChannelSet) -> None:
        super().__init__()
        self.stem, self.channels = stem, channels

    def forward(self, _: Tensor) -> Tensor:
        """The kernel."""
        return self.stem.kernel(self.channels)
