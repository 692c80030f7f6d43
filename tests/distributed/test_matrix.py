"""Every feature, on one rank and on several, gives what one process gives without any."""

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from features import FEATURES, IMAGES, MORE_FEATURES, RESUMED, Feature
from images import write_images
from safetensors.torch import load_file

from training.monitor import read_metrics

ROOT = Path(__file__).parents[2]
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}  # of a loss of about 1; bf16 keeps eight bits

pytest.importorskip("deepspeed", reason="pip install -e '.[deepspeed]'")


def run_world(ranks: int, data: Path, out: Path, more: bool) -> Path:
    """All rows on a world of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(data), str(out), *["more"] * more]
    out.mkdir(parents=True)
    running = []
    for rank in range(ranks):
        environment = {k: str(v) for k, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        log = (out / f"rank{rank}.log").open("w")
        running.append(subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log))
    try:
        for rank, process in enumerate(running):
            log = out / f"rank{rank}.log"
            assert process.wait(timeout=600) == 0, log.read_text()[-3000:]
    finally:
        for process in running:
            process.kill()
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate([("train", IMAGES), ("val", 4), ("test", 4)]):
        write_images(folder, count, split=split, seed=seed)
    return folder


@pytest.fixture(scope="module")
def worlds(data, tmp_path_factory, request) -> Callable[[int], Path]:
    """The folder of all rows' run directories, by number of ranks; each world runs once."""
    more = request.config.getoption("--thorough")
    return functools.cache(lambda ranks: run_world(ranks, data, tmp_path_factory.mktemp("world") / "runs", more))


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run) if "train/loss" in row]


def assert_same_run(ours: Path, theirs: Path, precision: str) -> None:
    assert len(losses(ours)) == 4
    assert losses(ours) == pytest.approx(losses(theirs), abs=TOLERANCE[precision])
    weights, wanted = (load_file(run / "model.safetensors") for run in (ours, theirs))
    assert weights.keys() == wanted.keys()
    for name, weight in weights.items():
        # On average: where a gradient is next to nothing, AdamW makes a step of rounding.
        assert (weight - wanted[name]).float().abs().mean() < TOLERANCE[precision], name


WORLDS = [1, 2, pytest.param(3, marks=pytest.mark.slow)]
ROWS = [pytest.param(feature, id=feature.name) for feature in FEATURES]
ROWS += [pytest.param(feature, id=feature.name, marks=pytest.mark.slow) for feature in MORE_FEATURES]


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("feature", ROWS)
def test_same_run_as_one_process_without_any_of_it(worlds, ranks, feature):
    plain = Feature(precision=feature.precision, extra=feature.extra)
    assert_same_run(worlds(ranks) / feature.name, worlds(1) / plain.name, feature.precision)


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("pair", RESUMED, ids=lambda pair: f"{pair[0].name} to {pair[1].name}")
def test_a_run_goes_on_however_its_state_is_divided(worlds, ranks, pair):
    first, second = pair
    assert_same_run(worlds(ranks) / f"{first.name}-{second.name}", worlds(1) / Feature().name, "fp32")


def test_precisions_and_extras_make_a_difference(worlds):
    """Else the rows would compare nothing."""
    plain = losses(worlds(1) / Feature().name)
    for feature in FEATURES:
        if feature.stage == 0 and (feature.extra or feature.precision != "fp32"):
            assert losses(worlds(1) / feature.name) != pytest.approx(plain, abs=1e-5)
