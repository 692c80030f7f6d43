import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import count, to_score, wilson


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
    for row, label, use in zip(logits.double(), labels, valid, strict=True):
        if use:
            n += 1
            better = int((row > row[label]).sum())
            top1, top5 = top1 + (better == 0), top5 + (better < 5)
            nll -= float(row[label] - row.logsumexp(0))
    got = count(logits, labels, valid)
    assert got[:3].tolist() == [n, top1, top5]
    assert float(got[3]) == pytest.approx(nll, abs=1e-4)


def test_score_of_nothing_is_not_zero():
    score = to_score(torch.zeros(4))
    assert score.n == 0
    assert score.accuracy != score.accuracy  # not a number
