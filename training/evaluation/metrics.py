"""What a network said to each image, and what follows from it: exact counts, calibration, uncertainty.

Answers are kept image by image until all are there. What is summed up of them then is the same, to the digit,
however many ranks gave them and however often the work was stopped.
"""

import base64
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Z = 1.959963984540054  # of a two-sided 95 % interval
BINS = 15  # of a reliability diagram, equally wide
# Of an answer: 1 where there is one, the label, the best guess, whether the label is among the best five, its
# negative log likelihood in nats, and the best guess's probability. Float32 holds any of them exactly.
FIELDS = ("seen", "label", "predicted", "top5", "nll", "confidence")
SEEN, LABEL, PREDICTED, TOP5, NLL, CONFIDENCE = range(len(FIELDS))


@dataclass(frozen=True)
class Score:
    """How a model did on n images of one channel set.

    Attributes:
        n: images counted.
        top1, top5: images whose label was the best, or among the best five, guesses.
        nll: mean negative log likelihood of the label, in nats.
        macro: mean over the classes that occur of the part of their images that were right, 0 … 1.
        ece: expected calibration error, 0 … 1, see `Reliability`.
    """

    n: int
    top1: int
    top5: int
    nll: float
    macro: float
    ece: float

    @property
    def accuracy(self) -> float:
        """Part of the images that were right, 0 … 1."""
        return self.top1 / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.top1, self.n)


@dataclass(frozen=True)
class Reliability:
    """How sure a model was, and how often it was right, by bins of the best guess's probability.

    Bin k holds the images with a probability in (k / 15, (k + 1) / 15]. All are sums, so that they add up.
    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    Attributes:
        count: images in each bin.
        confidence: sums of the best guesses' probabilities.
        right: how many of the best guesses were right.
    """

    count: list[int]
    confidence: list[float]
    right: list[int]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of accuracy and probability, weighed by the bins' images."""
        gaps = sum(abs(right - sure) for right, sure in zip(self.right, self.confidence, strict=True))
        return gaps / sum(self.count) if any(self.count) else math.nan


def judge(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """The answers of a batch, 6×N float32 in the order of FIELDS; zeros on padding rows, NaN where logits are.

    Args:
        logits: N×classes.
        labels: N, int64.
        valid: N, bool.
    """
    logits = logits.float()
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    finite = logits.isfinite().all(1)
    rows = [
        valid,
        labels,
        best[:, 0],
        (best == labels[:, None]).any(1),
        torch.where(finite, F.cross_entropy(logits, labels, reduction="none"), math.nan),
        logits.softmax(1).amax(1),
    ]
    return torch.where(valid, torch.stack([row.float() for row in rows]), 0.0)


def right(answers: Tensor) -> Tensor:
    """Which images' best guess was right, bool, (N,), of answers 6×N."""
    return (answers[PREDICTED] == answers[LABEL]) & (answers[SEEN] > 0)


def to_score(answers: Tensor) -> Score:
    """A score from the answers to all images, 6×N; those without an answer are not counted."""
    answers = answers[:, answers[SEEN] > 0]
    n, hits = answers.shape[1], right(answers)
    per_class = class_accuracy(answers[LABEL].long(), answers[PREDICTED].long())
    return Score(
        n=n,
        top1=int(hits.sum()),
        top5=int(answers[TOP5].sum()),
        nll=float(answers[NLL].double().mean()),
        macro=float(per_class[per_class.isfinite()].mean()),
        ece=reliability(answers).error,
    )


def reliability(answers: Tensor) -> Reliability:
    """Bins of the answers to all images, 6×N."""
    answers = answers[:, answers[SEEN] > 0].double().cpu()
    sure = answers[CONFIDENCE]
    place = ((sure * BINS).ceil().long() - 1).clamp(0, BINS - 1)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, values)

    counts, hits = (total(row).long().tolist() for row in (torch.ones_like(sure), right(answers).double()))
    return Reliability(counts, total(sure).tolist(), hits)


def confusion(labels: Tensor, predicted: Tensor, classes: int | None = None) -> Tensor:
    """How often images of each class (row) were taken for each class (column), classes×classes int64.

    Args:
        labels, predicted: N, int64.
        classes: how many there are; as many as occur if None.
    """
    classes = classes or int(torch.cat([labels, predicted]).max()) + 1
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def class_accuracy(labels: Tensor, predicted: Tensor, classes: int | None = None) -> Tensor:
    """Part of each class's images that were right, float64; not a number for classes without images."""
    if not len(labels):
        return torch.zeros(0, dtype=torch.float64)
    table = confusion(labels, predicted, classes).double()
    return table.diagonal() / table.sum(1)


def encode_classes(classes: Tensor) -> str:
    """Classes, (N,), as base64 of little-endian uint16."""
    return base64.b64encode(classes.cpu().numpy().astype("<u2").tobytes()).decode()


def decode_classes(text: str) -> Tensor:
    """The inverse of `encode_classes`, int64; ValueError where the text is no such thing."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<u2").astype(np.int64))


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
