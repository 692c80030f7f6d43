from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sharding import batches_left, epoch_order, share

SIZES = {"samples": st.integers(1, 200), "world": st.integers(1, 5), "batch": st.integers(1, 33)}


def shares(order, world, batch, position=0):
    """All shares of an epoch: a list of rounds, each with one share per rank."""
    rounds = range(batches_left(len(order), position, world * batch))
    return [[share(order, position + r * world * batch, rank, batch) for rank in range(world)] for r in rounds]


@given(**SIZES, epoch=st.integers(0, 3))
def test_each_sample_is_valid_exactly_once(samples, world, batch, epoch):
    order = epoch_order(samples, shuffle=True, seed=1, epoch=epoch)
    seen = Counter()
    for one_round in shares(order, world, batch):
        for part in one_round:
            assert part.ids.shape == part.valid.shape == (batch,)  # padding keeps every batch whole
            seen.update(part.ids[part.valid].tolist())
    assert seen == Counter(range(samples))


@given(samples=st.integers(1, 200), global_batch=st.sampled_from([12, 24]))
def test_order_does_not_depend_on_world_size(samples, global_batch):
    order = epoch_order(samples, shuffle=True, seed=3, epoch=0)
    seen = [
        [np.concatenate([p.ids for p in one]).tolist() for one in shares(order, world, global_batch // world)]
        for world in (1, 2, 3)
    ]
    assert seen[0] == seen[1] == seen[2]


@given(**SIZES, start=st.integers(0, 250))
def test_rest_of_an_epoch_after_any_position(samples, world, batch, start):
    order = epoch_order(samples, shuffle=True, seed=0, epoch=5)
    rest = [i for one in shares(order, world, batch, start) for part in one for i in part.ids[part.valid]]
    assert sorted(rest) == sorted(order[start:].tolist())


def test_epochs_differ_and_lists_stay_in_order():
    first, second = (epoch_order(100, shuffle=True, seed=0, epoch=epoch) for epoch in (0, 1))
    assert (first != second).any()
    assert (epoch_order(100, shuffle=True, seed=0, epoch=0) == first).all()
    assert (epoch_order(100, shuffle=True, seed=1, epoch=0) != first).any()
    assert (epoch_order(5, shuffle=False, seed=0, epoch=7) == np.arange(5)).all()
