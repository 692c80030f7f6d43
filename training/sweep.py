"""Decode each image once and score every channel set while it is on the device."""

from collections.abc import Iterable, Sequence

import torch

from modeling.channels import ChannelSet
from modeling.resnet import ChannelNet
from pipelines.batch import Batch
from training.metrics import FIELDS, Score, count, to_score
from training.runtime import Runtime


@torch.no_grad()
def sweep(
    model: ChannelNet, batches: Iterable[Batch], sets: Sequence[ChannelSet], runtime: Runtime
) -> dict[str, Score]:
    """Score a model on every channel set; the same result on every rank.

    Args:
        model: unwrapped (a DDP wrapper would wait for the other ranks in every forward pass).
        batches: this rank's share of the data; padding rows are not counted.
        sets: channel sets to score.
        runtime: sums the counts over the ranks.

    Raises:
        DataError: an image cannot be read; all ranks stop.

    Returns:
        Score by name of the channel set, in the order of `sets`.
    """
    vocabulary = model.stem.vocabulary
    plain = [model.materialize(chosen).to(memory_format=torch.channels_last) for chosen in sets]
    sums = torch.zeros(len(sets), len(FIELDS), dtype=torch.float64, device=runtime.device)
    for batch in runtime.batches(batches):
        for row, (chosen, network) in enumerate(zip(sets, plain, strict=True)):
            with runtime.autocast():
                logits = network(chosen.select(batch.images, vocabulary))
            sums[row] += count(logits, batch.labels, batch.valid)
    sums = runtime.sum(sums)
    return {str(chosen): to_score(sums[row]) for row, chosen in enumerate(sets)}
