"""Running statistics of a network's norms, taken anew for one channel set.

The body's BatchNorm has one set of statistics, a mixture over all channel sets that it was trained on, and so has
a stem's norm that all sets share. A network that was specialised to one set may measure its own; whether that
helps is a question of the training strategy.
Source: Yu and Huang, "Universally Slimmable Networks", arXiv 1903.05134.
"""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import nn

from modeling.channels import ChannelSet, Vocabulary
from pipelines.batch import Batch
from training.runtime import Runtime


@torch.no_grad()
def recalibrate(
    networks: Mapping[ChannelSet, nn.Module], vocabulary: Vocabulary, batches: Iterable[Batch], runtime: Runtime
) -> None:
    """Replace the statistics of each network's norms by means over some batches, in place.

    Gains and shifts stay, and so does what was folded into a convolution, see `ChannelNet.materialize`.

    Args:
        networks: by the channel set that each was specialised to.
        vocabulary: channels of the batches.
        batches: training images as evaluation sees them, each rank's share; what fills up the last batch counts.
        runtime: averages over the ranks.
    """
    kinds = nn.BatchNorm1d | nn.BatchNorm2d  # of features behind the pooling, and of maps
    norms = [m for network in networks.values() for m in network.modules() if isinstance(m, kinds)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches, each weighing the same
        norm.train()
    for batch in runtime.batches(batches):
        runtime.together(partial(_look_at, batch, networks, vocabulary, runtime))
    for network in networks.values():
        runtime.average_buffers(network)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _look_at(
    batch: Batch, networks: Mapping[ChannelSet, nn.Module], vocabulary: Vocabulary, runtime: Runtime
) -> None:
    """One batch, of which the norms in training mode take their statistics."""
    for chosen, network in networks.items():
        with runtime.autocast():
            network(chosen.select(batch.images, vocabulary))
