"""Decode each image once and let every network see it by every channel set while it is on the device."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling.channels import ChannelSet, Vocabulary
from modeling.network import ChannelNet
from pipelines.batch import Batch
from training.evaluation.looks import Look
from training.evaluation.metrics import FIELDS, LABEL, PREDICTED, Score, judge, right, to_score
from training.runtime import FailedElsewhere, Runtime

Networks = Mapping[Look, nn.Module]


@dataclass(frozen=True)
class Sweep:
    """How a model did on each channel set.

    Attributes:
        answers: by name of the channel set, what it said to each image, 6×images in the order of `metrics.FIELDS`.
    """

    answers: dict[str, Tensor]

    @property
    def scores(self) -> dict[str, Score]:
        """By name of the channel set."""
        return {name: to_score(answers) for name, answers in self.answers.items()}

    @property
    def right(self) -> dict[str, Tensor]:
        """Whether the best guess was right on each image, bool, (images,)."""
        return {name: right(answers) for name, answers in self.answers.items()}

    @property
    def predicted(self) -> dict[str, Tensor]:
        """The best guess on each image, int64, (images,)."""
        return {name: answers[PREDICTED].long() for name, answers in self.answers.items()}

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64, (images,)."""
        return next(iter(self.answers.values()))[LABEL].long()


def specialise(
    model: ChannelNet,
    sets: Iterable[ChannelSet],
    stand_ins: Mapping[str, str] | None = None,
    *,
    fold: bool = True,
) -> dict[ChannelSet, nn.Module]:
    """A plain network for each channel set, in inference mode.

    Args:
        model: the network.
        sets: what images will show.
        stand_ins: by name of a channel that the model does not know, the one that it shall be taken for.
        fold: norms where that is possible, and have one body serve all; else each network has norms of its own.
    """
    names = stand_ins or {}
    networks: dict[ChannelSet, nn.Module] = {}
    for chosen in sets:
        network = model.materialize([names.get(name, name) for name in chosen], fold=fold)
        if fold and networks:
            network.body = next(iter(networks.values())).body
        networks[chosen] = network.to(memory_format=torch.channels_last)
    return networks


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
        runtime: gathers the answers of the ranks.

    Raises:
        DataError: an image cannot be read; all ranks stop.
    """
    looks = {Look(chosen, chosen): network for chosen, network in networks.items()}
    (answers,) = collect([looks], vocabulary, runtime.batches(batches), range(images), runtime)
    if isinstance(answers, Exception):
        raise answers
    return Sweep({str(look): rows for look, rows in zip(looks, answers.cpu(), strict=True)})


@torch.no_grad()
def collect(
    models: Sequence[Networks],
    vocabulary: Vocabulary,
    batches: Iterable[Batch],
    images: range,
    runtime: Runtime,
) -> list[Tensor | Exception]:
    """What several models say to some images, in one pass over them; the same result on every rank.

    A model that fails leaves the others alone. Ranks agree on who failed when the images are through, so that one
    on which a model fails keeps step with the others.

    Args:
        models: of each its networks, by how they are shown the images.
        vocabulary: channels of the batches.
        batches: this rank's share of the images, as many batches on every rank.
        images: which of the list's.
        runtime: gathers the answers of the ranks.

    Returns:
        For each model its answers, looks×6×images float32 on the device, or why it failed, here or elsewhere.
    """
    told = [torch.zeros(len(networks), len(FIELDS), len(images), device=runtime.device) for networks in models]
    failures: dict[int, Exception] = {}
    plan = _plan(models)
    for batch in batches:
        for look, networks in plan.items():
            with _noting(failures, *(model for model, _ in networks)):
                shown = look.show(batch, vocabulary)
                for (model, row), network in networks.items():
                    with _noting(failures, model):
                        if model not in failures:
                            _ask(network, shown, batch, told[model][row], images.start, runtime)
    return [_agree(answers, failures.get(model), runtime) for model, answers in enumerate(told)]


def _plan(models: Sequence[Networks]) -> dict[Look, dict[tuple[int, int], nn.Module]]:
    """By look, so that images are prepared once for each: which model's network, and the row of its answers."""
    plan: dict[Look, dict[tuple[int, int], nn.Module]] = {}
    for model, networks in enumerate(models):
        for row, (look, network) in enumerate(networks.items()):
            plan.setdefault(look, {})[model, row] = network
    return plan


@contextmanager
def _noting(failures: dict[int, Exception], *models: int) -> Iterator[None]:
    """Take down that something went wrong, whatever it is, for some models; the first trouble of each counts."""
    try:
        yield
    except Exception as error:
        failures.update({model: error for model in models if model not in failures})


def _ask(network: nn.Module, shown: Tensor, batch: Batch, answers: Tensor, first: int, runtime: Runtime) -> None:
    """Add what a network says to a batch; padding rows, whose images may be of another part, add zeros."""
    with runtime.autocast():
        logits = network(shown)
    places = torch.where(batch.valid, batch.ids - first, 0)
    answers.index_add_(1, places, judge(logits, batch.labels, batch.valid))


def _agree(answers: Tensor, failure: Exception | None, runtime: Runtime) -> Tensor | Exception:
    """The answers of all ranks, each of which has zeros for the others' images, or why there are none."""
    if runtime.any(failure is not None):
        return failure or FailedElsewhere("another rank failed, and says why")
    return runtime.sum(answers)
