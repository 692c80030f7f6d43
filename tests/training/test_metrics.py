import base64
import math
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.metrics import (
    class_accuracy,
    confusion,
    decode_classes,
    encode_classes,
    from_hex,
    judge,
    mcnemar,
    reliability,
    to_hex,
    to_score,
    wilson,
)
from training.evaluation.metrics import right as hits


@given(st.data())
def test_wilson_interval_holds_the_proportion(data):
    n = data.draw(st.integers(1, 5000))
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1


def test_wilson_against_published_values():
    """60 % of 450 images: 55.4 to 64.4; and the textbook case 0 of 10."""
    assert [round(100 * bound, 1) for bound in wilson(270, 450)] == [55.4, 64.4]
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 9), st.integers(2, 8))
def test_counts_equal_a_plain_loop(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(11, classes, generator=generator)
    labels = torch.randint(classes, (11,), generator=generator)
    valid = torch.rand(11, generator=generator) < 0.7
    n = top1 = top5 = nll = 0.0
    right = []
    for row, label, use in zip(logits.double(), labels, valid, strict=True):
        right.append(bool(use) and int(row.argmax()) == int(label))
        if use:
            n += 1
            better = int((row > row[label]).sum())
            top1, top5 = top1 + (better == 0), top5 + (better < 5)
            nll -= float(row[label] - row.logsumexp(0))
    answers = judge(logits, labels, valid)
    got = to_score(answers)
    assert hits(answers).tolist() == right
    assert [got.n, got.top1, got.top5] == [n, top1, top5]
    # Of no images there is no mean.
    assert n * got.nll == pytest.approx(nll if n else math.nan, abs=1e-4, nan_ok=True)


@given(st.integers(0, 20))
def test_macro_and_calibration_equal_a_plain_loop(seed):
    """Bins as the paper has them, (m - 1) / 15 < p ≤ m / 15; classes without images count for nothing."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (60,), generator=generator)
    logits = torch.randn(60, 6, generator=generator) + 2 * torch.eye(6)[labels]
    answers = judge(logits, labels, torch.ones(60, dtype=torch.bool))
    sure, guess = logits.softmax(1).max(1)
    by_class = [float((guess == c)[labels == c].float().mean()) for c in range(6) if (labels == c).any()]
    error, bins = 0.0, reliability(answers)
    for m in range(1, 16):
        members = [i for i in range(60) if (m - 1) / 15 < float(sure[i]) <= m / 15]
        right = sum(int(guess[i]) == int(labels[i]) for i in members)
        confidence = sum(float(sure[i]) for i in members)
        assert (bins.count[m - 1], bins.right[m - 1]) == (len(members), right)
        assert bins.confidence[m - 1] == pytest.approx(confidence)
        error += abs(right - confidence) / 60
    score = to_score(answers)
    assert score.macro == pytest.approx(sum(by_class) / len(by_class))
    assert score.ece == pytest.approx(error, abs=1e-9)


def test_an_answer_that_is_no_number_is_seen():
    logits = torch.tensor([[1.0, 2.0], [math.inf, 0.0], [0.0, -math.inf], [math.nan, 0.0]])
    answers = judge(logits, torch.zeros(4, dtype=torch.int64), torch.tensor([True, True, True, False]))
    assert answers.isfinite().all(0).tolist() == [True, False, False, True]  # padding rows count for nothing


def test_confusion_has_rows_by_label():
    labels, predicted = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 1, 1, 0])
    assert confusion(labels, predicted).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert class_accuracy(labels, predicted, 4).nan_to_num(-1).tolist() == [0.5, 1, -1, 0]


@given(st.lists(st.integers(0, 65535), max_size=20))
def test_classes_survive_a_record(classes):
    assert decode_classes(encode_classes(torch.tensor(classes, dtype=torch.float32))).tolist() == classes


def test_classes_are_little_endian():
    assert base64.b64decode(encode_classes(torch.tensor([1, 256]))) == b"\x01\x00\x00\x01"


def test_score_of_nothing_is_not_zero():
    score = to_score(torch.zeros(6, 4))
    assert score.n == 0
    assert score.accuracy != score.accuracy  # not a number


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_answers_survive_a_record(answers):
    assert from_hex(to_hex(torch.tensor(answers)), len(answers)).tolist() == answers


def answers(only_a: int, only_b: int, both: int = 50) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, False, True], [only_a, only_b, both])
    b = np.repeat([False, True, True], [only_a, only_b, both])
    return a, b


def test_mcnemar_counts_only_what_differs():
    """Ten against two: of 2^12 ways, 1 + 12 + 66 are at least as lopsided on one side, as many on the other."""
    assert mcnemar(*answers(10, 2)) == pytest.approx(2 * 79 / 2**12)
    assert mcnemar(*answers(10, 2, both=0)) == mcnemar(*answers(2, 10, both=500))
    assert mcnemar(*answers(0, 0)) == mcnemar(*answers(7, 7)) == 1
    assert mcnemar(*answers(700, 300)) < 1e-30


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_a_two_sided_binomial_test(only_a, only_b):
    n = only_a + only_b
    ways = [comb(n, k) for k in range(n + 1)]
    wanted = sum(w for w in ways if w <= ways[only_a]) / 2**n
    assert mcnemar(*answers(only_a, only_b)) == pytest.approx(wanted)
