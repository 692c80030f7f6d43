"""Work of a network on images that are on the device already, as contenders."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet
from modeling.network import ChannelNet
from training.benchmarks.harness import Contender
from training.config import Optim
from training.optim import build_optimizer
from training.runtime import Runtime

CLASSES = 100  # of the networks that are measured
WARM_UP = 3  # batches; nothing is prefetched here


def noise(count: int, channels: int, size: int, device: torch.device) -> Tensor:
    """Images of noise in the memory format of the loaders' batches."""
    return torch.randn(count, channels, size, size, device=device).to(memory_format=torch.channels_last)


def training_steps(model: ChannelNet, images: Tensor, channels: ChannelSet, precision: str) -> Contender:
    """Steps of the training loop, without loading and logging.

    Args:
        model: a network with fresh weights.
        images: the batch of every step; their channels are `channels`.
        channels: the set that the network is told.
        precision: see `Runtime`.
    """
    runtime = Runtime(precision)  # one of its own: accelerate keeps what it prepared, and networks would pile up
    model, optimizer = runtime.prepare(model, build_optimizer(model, Optim()))
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    while True:
        with runtime.autocast():
            loss = F.cross_entropy(model([images], [channels]).float(), labels)
        runtime.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield len(images)


@torch.no_grad()
def forward_passes(network: nn.Module, inputs: tuple, runtime: Runtime) -> Contender:
    """Inference on the same inputs again and again.

    Args:
        network: in inference mode.
        inputs: what it is called with; images first.
        runtime: precision.
    """
    while True:
        with runtime.autocast():
            network(*inputs)
        yield len(inputs[0])
