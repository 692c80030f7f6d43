"""What a network costs for each channel set: parameters, multiply-adds, and the price of making its kernel.

Counted by fvcore, which counts one multiply-add as one FLOP (ResNet-34 at 224 px: 3.67 G).
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling.channels import ChannelSet
from modeling.resnet import ChannelNet
from modeling.stems import Stem


@dataclass(frozen=True)
class Cost:
    """Cost for one channel set.

    Attributes:
        parameters: of the materialised network, which is what inference needs.
        macs: multiply-adds of one image through the materialised network.
        kernel_macs: multiply-adds to generate the kernel, once per channel set and not per image.
    """

    parameters: int
    macs: int
    kernel_macs: int


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())


def channel_cost(model: ChannelNet, channels: ChannelSet, size: int) -> Cost:
    """Cost of a model on `size`×`size` images of one channel set."""
    plain = model.materialize(channels).cpu()
    image = torch.zeros(1, len(channels), size, size)
    return Cost(count_parameters(plain), count_macs(plain, image), _kernel_macs(model, channels))


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one call in inference mode."""
    from fvcore.nn import FlopCountAnalysis

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about Python branches that are fixed here
        counted = FlopCountAnalysis(module.eval(), inputs)
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
