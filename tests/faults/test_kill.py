"""A rank killed at any moment: what is resumed ends with the very weights of a run that nothing disturbed."""

from pathlib import Path
from random import Random

import pytest
import torch
from processes import Fault, calls_of, run_ranks
from safetensors.torch import load_file
from tiny import train_args

from training.monitor import read_metrics

QUICK, ALL = 3, 10  # moments in each test; all of them with --thorough


def moments(count: int, where: range | list[int], seed: str) -> list[int]:
    return sorted(Random(seed).sample(list(where), count))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from images import write_images

    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate([("train", 40), ("val", 8), ("test", 8)]):
        write_images(folder, count, split=split, seed=seed)
    return folder


@pytest.fixture(scope="module")
def calls(data, tmp_path_factory) -> list[str]:
    """Every call of an undisturbed run, the first one without a cache of scanned images."""
    folder = tmp_path_factory.mktemp("whole")
    return calls_of(train_args(data, folder / "run"), folder / "log")


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, data, tmp_path_factory) -> tuple[int, Path]:
    """A number of ranks, and the run directory of an undisturbed run of that many."""
    folder = tmp_path_factory.mktemp(f"whole{request.param}")
    assert run_ranks(train_args(data, folder / "run"), folder / "log", world=request.param) == [0] * request.param
    return request.param, folder / "run"


def kill_and_resume(data: Path, folder: Path, world: int, rank: int, call: int) -> None:
    """Kill one rank at a moment, see the others end, and resume until the end."""
    args = train_args(data, folder / "run", "--resume", "--schedule.patience", "1")
    ended = run_ranks(args, folder / "log", {rank: Fault(call)}, world)
    assert ended[rank] == -9, (folder / "log").read_text()
    assert all(status == 1 for other, status in enumerate(ended) if other != rank), (folder / "log").read_text()
    assert run_ranks(args, folder / "log", world=world) == [0] * world, (folder / "log").read_text()


def assert_nothing_lost(run: Path, whole: Path) -> None:
    ours, theirs = load_file(run / "model.safetensors"), load_file(whole / "model.safetensors")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    steps = [(row["step"], sorted(row)) for row in read_metrics(run)]
    assert steps == [(row["step"], sorted(row)) for row in read_metrics(whole)]  # nothing twice, nothing missing
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


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
def test_killed_ranks_lose_nothing(data, calls, whole, kind, tmp_path, request):
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
    print(f"{count} of {count} killed runs of {world} rank(s), {kind}, ended with the same weights")
