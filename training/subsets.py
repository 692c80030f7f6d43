"""Which channel sets a training step sees: a pure function of seed and step, so alike on every rank and resume."""

from collections.abc import Callable
from random import Random

from modeling.channels import ChannelSet, Vocabulary
from training.config import STRATEGIES, Recipe


def channel_sets(recipe: Recipe, step: int) -> list[ChannelSet]:
    """The channel set of each group of a step's batch; one group where all images share a set.

    A strategy's name, or the channel sets themselves, stand in `recipe.schedule.channel_sets`.
    """
    vocabulary, schedule = recipe.model.channels, recipe.schedule
    rng = Random(f"channel sets {recipe.seed} {step}")
    if listed := listed_sets(recipe):
        return rng.sample(listed, min(schedule.groups, len(listed)))
    return _STRATEGIES[schedule.channel_sets](vocabulary, rng, schedule.groups)


def listed_sets(recipe: Recipe) -> list[ChannelSet]:
    """The channel sets that a recipe names one by one; none where it names a strategy."""
    wanted = recipe.schedule.channel_sets
    if wanted in STRATEGIES:
        return []
    return [ChannelSet.parse(name, recipe.model.channels) for name in wanted.split()]


def _full(vocabulary: Vocabulary, rng: Random, groups: int) -> list[ChannelSet]:
    return [ChannelSet.full(vocabulary)]


def _sampled(vocabulary: Vocabulary, rng: Random, groups: int) -> list[ChannelSet]:
    """Hierarchical channel sampling as published: the whole batch shares a set. Source: arXiv 2309.16108, §3.2."""
    return [ChannelSet.sample(vocabulary, rng)]


def _mixed(vocabulary: Vocabulary, rng: Random, groups: int) -> list[ChannelSet]:
    """Hierarchical channel sampling by group, so that the body's BatchNorm sees a mixture."""
    return [ChannelSet.sample(vocabulary, rng) for _ in range(groups)]


def _sandwich(vocabulary: Vocabulary, rng: Random, groups: int) -> list[ChannelSet]:
    """Always the largest set and one of the smallest, and random ones between.

    Source: Yu and Huang, "Universally Slimmable Networks", arXiv 1903.05134.
    """
    single = ChannelSet.sample(vocabulary, rng, largest=1)
    smaller = max(1, len(vocabulary) - 1)  # all channels have their group already
    between = [ChannelSet.sample(vocabulary, rng, smaller) for _ in range(groups - 2)]
    return [ChannelSet.full(vocabulary), single, *between]


def trained_sets(recipe: Recipe) -> list[ChannelSet]:
    """All channel sets that a recipe's training may meet, largest first where a strategy draws them."""
    vocabulary = recipe.model.channels
    if recipe.schedule.channel_sets == "full":
        return [ChannelSet.full(vocabulary)]
    return listed_sets(recipe) or ChannelSet.all_of(vocabulary)


_STRATEGIES: dict[str, Callable[[Vocabulary, Random, int], list[ChannelSet]]] = {
    "sandwich": _sandwich,
    "mixed": _mixed,
    "sampled": _sampled,
    "full": _full,
}
