"""Runs that nothing disturbed, to compare with."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from images import write_images
from processes import calls_of, run_ranks
from tiny import train_args


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate([("train", 40), ("val", 8), ("test", 8)]):
        write_images(folder, count, split=split, seed=seed)
    return folder


@pytest.fixture(scope="session")
def calls(data, tmp_path_factory) -> list[str]:
    """Every call of an undisturbed run, the first one without a cache of scanned images."""
    folder = tmp_path_factory.mktemp("whole")
    return calls_of(train_args(data, folder / "run"), folder / "log")


@pytest.fixture(scope="session", params=[1, 2])
def whole(request, undisturbed) -> tuple[int, Path]:
    """A number of ranks, and the run directory of an undisturbed run of that many."""
    return request.param, undisturbed(request.param)


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory) -> Callable[..., Path]:
    """Run directories of undisturbed runs, by number of ranks and further flags."""

    def run(world: int, *flags: str) -> Path:
        folder = tmp_path_factory.mktemp(f"whole{world}")
        assert run_ranks(train_args(data, folder / "run", *flags), folder / "log", world=world) == [0] * world
        return folder / "run"

    return functools.cache(run)
