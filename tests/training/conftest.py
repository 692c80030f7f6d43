"""Tiny runs of the real programs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from images import write_data
from processes import run_ranks
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
    data, run, log = write_data(folder / "data"), folder / "run", folder / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run_ranks(train_args(data, run), log) == [0], log.read_text()
    return folder


@pytest.fixture
def finished_run(first_run: Path, data_dir: Path, tmp_path: Path) -> Path:
    """A run directory of a finished tiny run on `data_dir`; each test has its own."""
    run = tmp_path / "run"
    shutil.copytree(first_run / "run", run)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace(str(first_run / "data"), str(data_dir)))
    return run
