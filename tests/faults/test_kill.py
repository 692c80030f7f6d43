"""A rank killed at any moment: what is resumed ends with the very weights of a run that nothing disturbed."""

from pathlib import Path
from random import Random

import pytest
from processes import Fault, assert_nothing_lost, run_ranks
from tiny import train_args

QUICK, ALL = 3, 10  # moments in each test; all of them with --thorough


def moments(count: int, where: range | list[int], seed: str) -> list[int]:
    return sorted(Random(seed).sample(list(where), count))


def kill_and_resume(data: Path, folder: Path, world: int, rank: int, call: int) -> None:
    """Kill one rank at a moment, see the others end, and resume until the end."""
    args = train_args(data, folder / "run", "--resume", "--schedule.patience", "1")
    ended = run_ranks(args, folder / "log", {rank: Fault(call)}, world)
    assert ended[rank] == -9, (folder / "log").read_text()
    assert all(status == 1 for other, status in enumerate(ended) if other != rank), (folder / "log").read_text()
    assert run_ranks(args, folder / "log", world=world) == [0] * world, (folder / "log").read_text()


def within(calls: list[str], function: str) -> list[int]:
    """Calls from which on a checkpoint is being written, until the training goes on."""
    inside, found = False, []
    for number, call in enumerate(calls, start=1):
        inside = call.endswith(function) or (inside and not call.endswith("Trainer._train_step"))
        if inside:
            found.append(number)
    return found


def test_moments_are_what_they_are_called(calls):
    """The tests below would pass for want of anything to disturb."""
    writing = within(calls, "Checkpoints.save")
    assert 50 < len(writing) < len(calls)
    names = {calls[number - 1].partition(":")[2] for number in writing}
    assert {"Checkpoints._write", "flush", "Checkpoints._prune", "write_atomically"} <= names


@pytest.mark.parametrize("kind", ["anywhere", "while or after writing a checkpoint"])
def test_killed_ranks_lose_nothing(data, calls, whole, kind, tmp_path, request, record_property):
    world, wanted = whole
    where = range(1, len(calls) - 5) if kind == "anywhere" else within(calls, "Checkpoints.save")[:-5]
    count = ALL if request.config.getoption("--thorough") else QUICK - (world > 1)
    for number, call in enumerate(moments(count, where, f"{kind} {world}")):
        # Others than the first write no checkpoints, and call other functions: their moments are only seeded.
        rank = number % world
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_and_resume(data, folder, world, rank, call if rank == 0 else call // 4 + 1)
        assert_nothing_lost(folder / "run", wanted)
        survived = number + 1
    assert survived == count
    told = f"{survived} of {count} killed runs of {world} rank(s), {kind}, ended with the same weights"
    record_property("counted", told)
