"""Tiny runs of the real programs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from images import write_data
from processes import evaluate as evaluate_runs
from processes import run_ranks
from processes import train as train_run
from tiny import train_args

from training import benchmark, evaluate, receptive_field, report, train
from training.cli import run_program


@pytest.fixture
def program(fresh_accelerate, monkeypatch) -> Callable[..., int]:
    """Runs `python -m training.NAME ARGS…` in this process; returns its exit status."""
    from accelerate.state import AcceleratorState

    programs = {"train": train, "evaluate": evaluate, "report": report, "benchmark": benchmark}
    programs["receptive_field"] = receptive_field

    def run(name: str, *args: object) -> int:
        AcceleratorState._reset_state(reset_partial_state=True)
        module = programs[name]
        words = [str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", [f"training/{name}.py", *words])
        try:
            run_program(lambda: module.main(module.parse(words)))
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data that `data_dir` makes and a finished tiny run on them; not to be written to."""
    folder = tmp_path_factory.mktemp("first")
    _once(folder, train_run, train_args(write_data(folder / "data"), folder / "run"))
    return folder


@pytest.fixture(scope="session")
def first_pair(first_run: Path) -> Path:
    """The same folder with an ordinary network beside the first, both of them evaluated."""
    _once(first_run, train_run, train_args(first_run / "data", first_run / "naive", recipe="quickstart-naive"))
    _once(first_run, evaluate_runs, [str(first_run / name) for name in ("run", "naive")])
    return first_run


@pytest.fixture
def finished_run(first_run: Path, data_dir: Path, tmp_path: Path) -> Path:
    """A run directory of a finished tiny run on `data_dir`; each test has its own."""
    return _copied(first_run, "run", data_dir, tmp_path, shutil.ignore_patterns("sweep*", ".sweep*"))


@pytest.fixture
def evaluated(first_pair: Path, data_dir: Path, tmp_path: Path) -> list[Path]:
    """Run directories of an any-channel and an ordinary network on `data_dir`, both evaluated."""
    return [_copied(first_pair, name, data_dir, tmp_path) for name in ("run", "naive")]


def _once(folder: Path, main: Callable[[list[str]], None], args: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run_ranks(args, folder / "log", main=main) == [0], (folder / "log").read_text()


def _copied(folder: Path, name: str, data_dir: Path, tmp_path: Path, ignore: Callable | None = None) -> Path:
    """A run directory of its own for a test, as if it had been trained on its data."""
    run = tmp_path / name
    shutil.copytree(folder / name, run, ignore=ignore)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace(str(folder / "data"), str(data_dir)))
    return run
