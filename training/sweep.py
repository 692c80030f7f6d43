"""Decode each image once and score every channel set while it is on the device."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from modeling.channels import ChannelSet, Vocabulary
from modeling.resnet import ChannelNet
from pipelines.batch import Batch
from training.metrics import FIELDS, Score, count, to_score
from training.runtime import Runtime


def specialise(model: ChannelNet, sets: Sequence[ChannelSet]) -> dict[ChannelSet, nn.Module]:
    """A plain network for each channel set, in inference mode."""
    return {chosen: model.materialize(chosen).to(memory_format=torch.channels_last) for chosen in sets}


@torch.no_grad()
def sweep(
    networks: Mapping[ChannelSet, nn.Module], vocabulary: Vocabulary, batches: Iterable[Batch], runtime: Runtime
) -> dict[str, Score]:
    """Score a network on each channel set; the same result on every rank.

    Args:
        networks: by channel set, from `specialise`.
        vocabulary: channels of the batches.
        batches: this rank's share of the data; padding rows are not counted.
        runtime: sums the counts over the ranks.

    Raises:
        DataError: an image cannot be read; all ranks stop.

    Returns:
        Score by name of the channel set, in the order of `networks`.
    """
    sums = torch.zeros(len(networks), len(FIELDS), dtype=torch.float64, device=runtime.device)
    for batch in runtime.batches(batches):
        for row, (chosen, network) in enumerate(networks.items()):
            with runtime.autocast():
                logits = network(chosen.select(batch.images, vocabulary))
            sums[row] += count(logits, batch.labels, batch.valid)
    sums = runtime.sum(sums)
    return {str(chosen): to_score(sums[row]) for row, chosen in enumerate(networks)}
