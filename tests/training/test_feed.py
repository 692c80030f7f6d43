"""Batches of ranks that go on together: what one does whose loader has failed, and when the others hear of it."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipelines.errors import DataError
from training.feed import Feed


def failing(after: int) -> Iterator[int]:
    yield from range(after)
    raise DataError("torn")


def feed(world: int) -> tuple[Feed, list[str]]:
    """A feed, and what it does at which time: `meet`."""
    told: list[str] = []

    def meet(work):
        told.append("meet")
        work()

    return Feed(SimpleNamespace(world=world, meet=meet)), told


def take(feed: Feed, told: list[str], loader: Iterator[int], count: int, meet_after: int | None = None) -> None:
    for i, batch in enumerate(feed.batches(loader, count), 1):
        told.append(str(batch))
        if i == meet_after:
            feed.meet()


def test_ranks_meet_after_the_first_batch_and_at_the_end_of_an_epoch():
    one, told = feed(world=2)
    take(one, told, iter(range(4)), 4)
    assert told == ["meet", "0", "1", "2", "3", "meet"]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_rank_that_fails_stays_with_the_others_to_the_end_of_the_epoch(after):
    one, told = feed(world=2)
    with pytest.raises(DataError, match="torn"):
        take(one, told, failing(after), 4)
    again = [str(after - 1)] * (4 - after)
    assert told == ["meet", *map(str, range(after)), *again, "meet"]


def test_others_hear_of_it_where_they_meet():
    one, told = feed(world=2)
    with pytest.raises(DataError, match="torn"):
        take(one, told, failing(2), 9, meet_after=5)
    assert told == ["meet", "0", "1", "1", "1", "1", "meet"]


def test_a_rank_with_nothing_to_take_again_says_so_at_once():
    one, told = feed(world=2)
    with pytest.raises(DataError, match="torn"):
        take(one, told, failing(0), 4)
    assert told == ["meet"]


def test_one_process_waits_for_nobody():
    one, told = feed(world=1)
    with pytest.raises(DataError, match="torn"):
        take(one, told, failing(2), 4)
    assert [word for word in told if word != "meet"] == ["0", "1"]
