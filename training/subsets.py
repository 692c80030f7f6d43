"""Which channel sets a training step sees: a pure function of seed and step, so alike on every rank and resume."""

from collections.abc import Callable, Sequence
from random import Random

from modeling.channels import ChannelSet, Vocabulary
from modeling.rivals import PlainStem
from modeling.stems import Stem
from training.config import STRATEGIES, Recipe

MOST_CHANNELS = 6  # whose sets are all scored by default


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


def scored_sets(stem: Stem) -> list[ChannelSet]:
    """The channel sets to score a network on: all that it takes, of many channels always the same sample.

    Up to six channels have at most 63 sets. Of more there are 63 too: all channels, each channel alone, and others
    by hierarchical sampling, seeded by 0.
    """
    vocabulary = stem.vocabulary
    if len(vocabulary) <= MOST_CHANNELS or isinstance(stem, PlainStem):
        return stem.sets()
    alone = [ChannelSet((name,)) for name in vocabulary]
    chosen, rng = dict.fromkeys([ChannelSet.full(vocabulary), *alone]), Random("scored sets 0")
    while len(chosen) < max(2**MOST_CHANNELS - 1, len(vocabulary) + 1):
        chosen[ChannelSet.sample(vocabulary, rng)] = None
    return sorted(chosen, key=lambda s: (-len(s), s.indices(vocabulary)))


def is_sample(sets: Sequence[ChannelSet], stem: Stem) -> bool:
    """Whether these are `scored_sets`, and not all that the stem takes."""
    return len(stem.vocabulary) > MOST_CHANNELS and len(sets) > 1 and list(sets) == scored_sets(stem)


_STRATEGIES: dict[str, Callable[[Vocabulary, Random, int], list[ChannelSet]]] = {
    "sandwich": _sandwich,
    "mixed": _mixed,
    "sampled": _sampled,
    "full": _full,
}
