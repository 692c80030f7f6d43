"""Fixtures for all tests: small real JPEG files made on the spot, and a clean accelerate state for each test."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from images import write_data

# A busy machine is no failure: hypothesis would call an example that took 200 ms one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run the slow variants as well")


# Where single tests take long: begun first, so that nobody waits for one of them in the end.
LONG = ("slurm", "faults", "distributed", "training")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device, and there is none here")
    skip_slow = pytest.mark.skip(reason="thorough variant; run with --thorough")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)
        if "slow" in item.keywords and not config.getoption("--thorough"):
            item.add_marker(skip_slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have counted, which they tell as the property "counted"; it comes from all workers."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "counted":
                terminalreporter.write_line(text)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans are cached per user; tests must not see one another's, nor the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps its state for the life of a process; programs expect to be the only one in theirs."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A small data set: 40 training, 13 validation and 13 test images of 3 classes."""
    return write_data(tmp_path / "data")
