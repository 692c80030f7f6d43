"""Exact counts and their uncertainty."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Z = 1.959963984540054  # of a two-sided 95 % interval
FIELDS = ("n", "top1", "top5", "nll")


@dataclass(frozen=True)
class Score:
    """How a model did on n images of one channel set.

    Attributes:
        n: images counted.
        top1, top5: images whose label was the best, or among the best five, guesses.
        nll: mean negative log likelihood of the label, in nats.
    """

    n: int
    top1: int
    top5: int
    nll: float

    @property
    def accuracy(self) -> float:
        """Part of the images that were right, 0 … 1."""
        return self.top1 / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.top1, self.n)


def count(logits: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over a batch's valid rows in the order of FIELDS, float64, (4,), and which rows were right, bool, (N,).

    Args:
        logits: N×classes.
        labels: N, int64.
        valid: N, bool.
    """
    logits = logits.float()
    best = (logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]) & valid[:, None]
    nll = F.cross_entropy(logits[valid], labels[valid], reduction="sum")
    sums = (valid.sum(), best[:, :1].sum(), best.sum(), nll)
    return torch.stack([value.double() for value in sums]), best[:, 0]


def to_score(sums: Tensor) -> Score:
    """A score from sums over all batches and ranks, shape (4,)."""
    n, top1, top5, nll = sums.tolist()
    return Score(int(n), int(top1), int(top5), nll / n if n else math.nan)


def to_hex(right: Tensor) -> str:
    """Booleans, (N,), as hexadecimal digits: eight to two of them, the last ones padded with zeros."""
    return np.packbits(right.numpy()).tobytes().hex()


def from_hex(text: str, n: int) -> np.ndarray:
    """The inverse of `to_hex`, n booleans."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n).astype(bool)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """How likely two models, equally good, would differ as much on the same images or more: the exact p-value.

    Of the images on which just one of the two is right, each model then gets each with probability ½.
    Source: Q. McNemar 1947, Psychometrika 12, p. 153, with the binomial distribution itself.

    Args:
        a, b: whether each was right on each image, bool, (N,).
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (E. B. Wilson 1927, JASA 22, p. 209)."""
    if not n:
        return 0.0, 1.0
    p, z2 = right / n, Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # Exactly 0 or 1 at the ends, where rounding would leave the proportion just outside.
    return (centre - half if right else 0.0), (centre + half if right < n else 1.0)
