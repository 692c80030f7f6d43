from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import count, from_hex, mcnemar, to_hex, to_score, wilson


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
    got, hits = count(logits, labels, valid)
    assert hits.tolist() == right
    assert got[:3].tolist() == [n, top1, top5]
    assert float(got[3]) == pytest.approx(nll, abs=1e-4)


def test_score_of_nothing_is_not_zero():
    score = to_score(torch.zeros(4))
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
