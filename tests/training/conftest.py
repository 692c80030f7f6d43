"""Tiny runs of the real programs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
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


@pytest.fixture
def finished_run(data_dir, tmp_path, program) -> Path:
    """A run directory of a finished tiny run."""
    run_dir = tmp_path / "run"
    assert program("train", *train_args(data_dir, run_dir)) == 0
    return run_dir
