"""What tells physically described channels apart: Fourier features of their descriptors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

from modeling.channels import ChannelSet

Descriptor = float | Sequence[float]  # of one channel: a wavelength in µm, or several quantities


class FourierCode:
    """Unit-norm Fourier features of channels' physical descriptors (arXiv 2006.10739).

    Descriptors are measured in the median gap between the vocabulary's own, and frequencies are spread evenly up
    to half a cycle per gap: enough to tell neighbours apart (their codes are about orthogonal) and no more, so
    that a channel between two gets a code between theirs. A vocabulary of one channel has no gap, and descriptors
    count in their own unit. Codes follow from the descriptors; nothing is learned.

    Args:
        descriptors: of all channels of the vocabulary, equally long; finite.

    Raises:
        ValueError: a descriptor that is no finite number or sequence of them, is of another length than the rest,
            or is another channel's too, so that nothing would tell the two apart.
    """

    FREQUENCIES = 32
    LENGTH = 2 * FREQUENCIES  # a cosine and a sine each

    def __init__(self, descriptors: Mapping[str, Descriptor]) -> None:
        self.dimensions = len(_vector(*next(iter(descriptors.items()))))
        vectors = {name: _vector(name, descriptor, self.dimensions) for name, descriptor in descriptors.items()}
        _check_distinct(vectors)
        gaps = [_median_gap(column) for column in zip(*vectors.values(), strict=True)]
        self.units = torch.tensor(gaps, dtype=torch.float64, device="cpu")
        self.frequencies = (_spread(self.FREQUENCIES, self.dimensions).double() - 0.5) / self.units
        self.vectors: dict[str, Tensor] = {}
        self.codes: dict[str, Tensor] = {}
        for name, descriptor in descriptors.items():
            self.add(name, descriptor)

    def add(self, name: str, descriptor: Descriptor) -> None:
        """Make a channel known by its descriptor."""
        vector = torch.tensor(_vector(name, descriptor, self.dimensions), dtype=torch.float64, device="cpu")
        self.vectors[name] = vector
        phase = 2 * math.pi * self.frequencies @ vector
        self.codes[name] = torch.cat([phase.cos(), phase.sin()]) / math.sqrt(self.FREQUENCIES)

    def nearest(self, name: str, among: Iterable[str]) -> str:
        """Which of several channels is nearest to one, in median gaps."""
        return min(
            among, key=lambda other: ((self.vectors[other] - self.vectors[name]) / self.units).norm().item()
        )

    def __call__(self, channels: ChannelSet) -> Tensor:
        """Codes of a set's channels, |S|×LENGTH in float64 on the CPU."""
        return torch.stack([self.codes[name] for name in channels])


def _spread(count: int, dimensions: int) -> Tensor:
    """Points that fill the unit cube evenly, count×dimensions, whatever torch's default device and type are.

    Scrambled points repeat nowhere; on a regular grid distant channels would get each other's codes.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            return torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0).draw(count)
    finally:
        torch.set_default_dtype(default)


def _vector(name: str, descriptor: Descriptor, length: int | None = None) -> tuple[float, ...]:
    try:
        vector = tuple(float(value) for value in _several(descriptor))
    except (TypeError, ValueError):
        vector = ()
    if not vector or not all(map(math.isfinite, vector)):
        raise ValueError(f"descriptor of channel {name!r} is {descriptor!r}; give finite numbers, as 0.56 (µm)")
    if length is not None and len(vector) != length:
        raise ValueError(
            f"descriptor of channel {name!r} has length {len(vector)}, not {length}; describe all channels alike"
        )
    return vector


def _several(descriptor: Descriptor) -> Sequence[float]:
    """The numbers of a descriptor, which may be just one; text is none."""
    if isinstance(descriptor, str):
        return ()
    single = isinstance(descriptor, Real) or (isinstance(descriptor, Tensor) and descriptor.dim() == 0)
    return (descriptor,) if single else descriptor


def _check_distinct(vectors: Mapping[str, tuple[float, ...]]) -> None:
    first: dict[tuple[float, ...], str] = {}
    for name, vector in vectors.items():
        if vector in first:
            raise ValueError(
                f"channels {first[vector]!r} and {name!r} are both described by {', '.join(map(str, vector))}; "
                "add a quantity that tells them apart, as (5.6, 0) and (5.6, 1)"
            )
        first[vector] = name


def _median_gap(values: Sequence[float]) -> float:
    """Between neighbouring values; 1 if all are equal."""
    ordered = sorted(set(values))
    gaps = sorted(high - low for low, high in pairwise(ordered))
    return gaps[(len(gaps) - 1) // 2] if gaps else 1.0
