"""ChannelSet: which channels an input has, out of the vocabulary that a model knows."""

from collections.abc import Iterable, Iterator, Sequence, Set
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
        ValueError: no name, an empty name or a name given twice; something else than names in an order.
    """
    if isinstance(text, str):
        separated = text.replace(",", "+")
        names = tuple(separated.split("+")) if "+" in separated else tuple(separated)
    else:
        # A set would be stacked in another order in every process.
        named = isinstance(text, Iterable) and not isinstance(text, Set | Tensor)
        names = tuple(text) if named else ()
        if not named or not all(isinstance(name, str) for name in names):
            raise ValueError(f"channels are names in the order in which they are stacked, as RG, not {text!r}")
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
        chosen = cls.read(text, vocabulary)
        for name in chosen:
            if name not in vocabulary:
                raise ValueError(f"unknown channel {name!r} in {text!s}; the model knows {cls(tuple(vocabulary))}")
        return chosen

    @classmethod
    def read(cls, text: "str | Sequence[str] | ChannelSet", vocabulary: Vocabulary) -> Self:
        """A set named by a user, who may know channels that the vocabulary lacks.

        Raises:
            ValueError: empty, or a channel given twice.
        """
        if isinstance(text, str) and _is_one(text, vocabulary):
            return cls((text,))
        return cls(text.names if isinstance(text, ChannelSet) else parse_names(text))

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


def _is_one(text: str, known: Vocabulary) -> bool:
    """Whether a text names one channel, `nir` or `475`, known or not, rather than n, i and r."""
    long = text.isdecimal() or any(len(name) > 1 for name in known)
    letters = all(letter in known for letter in text)
    return text in known or (long and text.isalnum() and not letters)


def check_images(x: Tensor, planes: int, channels: object) -> None:
    """Refuse what cannot be images of a channel set.

    Args:
        x: should be N×|S|×H×W, of floating point.
        planes: |S|.
        channels: the set, as a message calls it.

    Raises:
        ValueError: the input is no batch of images, has integers, or another number of channels than the set.
    """
    if x.dim() != 4:
        raise ValueError(f"images come as N×C×H×W, not in the shape {tuple(x.shape)}; see unsqueeze(0) for one")
    if not x.is_floating_point():
        raise ValueError(f"images are {x.dtype}; normalise them to floating point first")
    if x.shape[1] != planes:
        raise ValueError(
            f"input has {x.shape[1]} channels, but the channel set {channels} has {planes}; "
            "pass the set that the input is made of"
        )
