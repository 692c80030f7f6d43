"""Exact counts and their uncertainty."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_Z = 1.959963984540054  # of a two-sided 95 % interval
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


def count(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Sums over a batch's valid rows in the order of FIELDS, float64, shape (4,).

    Args:
        logits: N×classes.
        labels: N, int64.
        valid: N, bool.
    """
    logits, labels = logits[valid].float(), labels[valid]
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    nll = F.cross_entropy(logits, labels, reduction="sum")
    sums = (torch.tensor(len(labels)), best[:, :1].sum(), best.sum(), nll)
    return torch.stack([value.to(logits.device, torch.float64) for value in sums])


def to_score(sums: Tensor) -> Score:
    """A score from sums over all batches and ranks, shape (4,)."""
    n, top1, top5, nll = sums.tolist()
    return Score(int(n), int(top1), int(top5), nll / n if n else math.nan)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (E. B. Wilson 1927, JASA 22, p. 209)."""
    if not n:
        return 0.0, 1.0
    p, z2 = right / n, _Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # Exactly 0 or 1 at the ends, where rounding would leave the proportion just outside.
    return (centre - half if right else 0.0), (centre + half if right < n else 1.0)
