"""ChannelSet: which channels an input has, out of the vocabulary that a model knows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Self

import torch
from torch import Tensor

Vocabulary = tuple[str, ...]  # the ordered channel names a model knows, e.g. ("R", "G", "B")


def parse_names(text: str | Sequence[str]) -> tuple[str, ...]:
    """Channel names from `"RGB"`, `"red+nir"`, `"red,nir"` or a sequence of names.

    Raises:
        ValueError: no name, an empty name or a name given twice.
    """
    if isinstance(text, str):
        separated = text.replace(",", "+")
        names = tuple(separated.split("+")) if "+" in separated else tuple(separated)
    else:
        names = tuple(text)
    names = tuple(name.strip() for name in names)
    if not names or not all(names):
        raise ValueError(f"empty channel name in {text!r}; write for instance RGB, RG or red+nir")
    if len(set(names)) < len(names):
        raise ValueError(f"channel given twice in {text!r}; each channel may stand once")
    return names


@dataclass(frozen=True)
class ChannelSet:
    """The channels of an input in the order in which they are stacked: N×C×H×W with C = len(set).

    `ChannelSet(("R", "G"))` prints as `RG`; names longer than a letter print as `red+nir`.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        parse_names(self.names)

    @classmethod
    def parse(cls, text: "str | Sequence[str] | ChannelSet", vocabulary: Vocabulary) -> Self:
        """A set named by a user, checked against a vocabulary.

        Raises:
            ValueError: empty, a channel given twice, or a channel that the vocabulary lacks.
        """
        if isinstance(text, str) and text in vocabulary:  # one channel with a long name
            return cls((text,))
        names = text.names if isinstance(text, ChannelSet) else parse_names(text)
        for name in names:
            if name not in vocabulary:
                known = cls(tuple(vocabulary))
                raise ValueError(f"unknown channel {name!r} in {text!s}; the model knows {known}")
        return cls(names)

    @classmethod
    def full(cls, vocabulary: Vocabulary) -> Self:
        """All channels of a vocabulary, in its order."""
        return cls(tuple(vocabulary))

    @classmethod
    def all_of(cls, vocabulary: Vocabulary) -> list[Self]:
        """All 2^C - 1 sets, largest first, in vocabulary order: RGB, RG, RB, GB, R, G, B."""
        sizes = range(len(vocabulary), 0, -1)
        return [cls(names) for size in sizes for names in combinations(vocabulary, size)]

    @classmethod
    def sample(cls, vocabulary: Vocabulary, rng: Random, largest: int | None = None) -> Self:
        """Hierarchical channel sampling: first a size, uniformly, then a set of that size.

        Source: ChannelViT, arXiv 2309.16108, §3.2.

        Args:
            vocabulary: channels to choose from.
            rng: source of the choice.
            largest: size of the largest set to draw; that of the vocabulary if None.
        """
        size = rng.randint(1, largest or len(vocabulary))
        chosen = set(rng.sample(vocabulary, size))
        return cls(tuple(name for name in vocabulary if name in chosen))

    def indices(self, vocabulary: Vocabulary) -> list[int]:
        """Where each channel stands in the vocabulary, in the set's own order."""
        return [vocabulary.index(name) for name in self.names]

    def select(self, images: Tensor, vocabulary: Vocabulary) -> Tensor:
        """These channels of N×C×H×W images of the whole vocabulary: N×|S|×H×W in channels_last memory."""
        if self.names == vocabulary:
            return images
        return images[:, self.indices(vocabulary)].contiguous(memory_format=torch.channels_last)

    def mask(self, vocabulary: Vocabulary) -> int:
        """The set as a bit mask over the vocabulary, 1 … 2^C - 1; blind to the order of its channels."""
        return sum(1 << i for i in self.indices(vocabulary))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __str__(self) -> str:
        return ("+" if any(len(name) > 1 for name in self.names) else "").join(self.names)
