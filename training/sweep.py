"""Decode each image once and score every channel set while it is on the device."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling.channels import ChannelSet, Vocabulary
from modeling.network import ChannelNet
from pipelines.batch import Batch
from training.metrics import FIELDS, Score, count, to_score
from training.runtime import Runtime


@dataclass(frozen=True)
class Sweep:
    """How a model did on each channel set.

    Attributes:
        scores: by name of the channel set.
        right: by name of the channel set, whether the best guess was right on each image, bool, (images,).
        predicted: by name of the channel set, the best guess for each image, int64, (images,).
    """

    scores: dict[str, Score]
    right: dict[str, Tensor]
    predicted: dict[str, Tensor]


def specialise(
    model: ChannelNet, sets: Iterable[ChannelSet], stand_ins: Mapping[str, str] | None = None
) -> dict[ChannelSet, nn.Module]:
    """A plain network for each channel set, in inference mode.

    Args:
        model: the network.
        sets: what images will show.
        stand_ins: by name of a channel that the model does not know, the one that it shall be taken for.
    """
    names = stand_ins or {}

    def plain(chosen: ChannelSet) -> nn.Module:
        network = model.materialize([names.get(name, name) for name in chosen])
        return network.to(memory_format=torch.channels_last)

    return {chosen: plain(chosen) for chosen in sets}


@torch.no_grad()
def sweep(
    networks: Mapping[ChannelSet, nn.Module],
    vocabulary: Vocabulary,
    batches: Iterable[Batch],
    images: int,
    runtime: Runtime,
) -> Sweep:
    """Score a network on each channel set; the same result on every rank.

    Args:
        networks: by channel set, from `specialise`.
        vocabulary: channels of the batches.
        batches: this rank's share of the data; padding rows are not counted.
        images: in the list, over all ranks.
        runtime: sums the counts over the ranks.

    Raises:
        DataError: an image cannot be read; all ranks stop.
    """
    sums = torch.zeros(len(networks), len(FIELDS), dtype=torch.float64, device=runtime.device)
    right = torch.zeros(len(networks), images, dtype=torch.int32, device=runtime.device)
    guesses = torch.zeros(len(networks), images, dtype=torch.int64, device=runtime.device)
    for batch in runtime.batches(batches):
        for row, (chosen, network) in enumerate(networks.items()):
            with runtime.autocast():
                logits = network(chosen.select(batch.images, vocabulary))
            counts, hits = count(logits, batch.labels, batch.valid)
            sums[row] += counts
            guesses[row].index_add_(0, batch.ids, logits.argmax(1) * batch.valid)
            right[row].index_add_(0, batch.ids, hits.int())  # padding rows repeat images, and add nothing
    names = [str(chosen) for chosen in networks]
    scores = [to_score(row) for row in runtime.sum(sums)]
    answers = runtime.sum(right).bool().cpu()
    predicted = runtime.sum(guesses).cpu()
    return Sweep(*(dict(zip(names, values, strict=True)) for values in (scores, answers, predicted)))
