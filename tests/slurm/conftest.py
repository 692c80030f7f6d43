"""A Slurm for the tests that need one, and a folder that jobs are submitted from."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, why_not
from images import write_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """The repository as a user has it, in a folder with a space in its name, with data and without old logs."""
    folder = tmp_path_factory.mktemp("slurm") / "a checkout"
    (folder / "slurm-logs").mkdir(parents=True)
    for name in ("launch", "modeling", "pipelines", "slurm", "training"):
        (folder / name).symlink_to(ROOT / name)
    for seed, (split, count) in enumerate([("train", 40), ("val", 13), ("test", 13)]):
        write_images(folder / "data", count, split=split, seed=seed)
    return folder


@pytest.fixture(scope="session")
def cluster(checkout, tmp_path_factory) -> Iterator[Cluster]:
    """A real Slurm of two nodes, for all tests of the session: each leaves both nodes up."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    environment = {
        "ANYCHANNEL_VENV": sys.prefix,
        "ANYCHANNEL_PREFLIGHT": "0",  # the tests of the preflight switch it on
        "OMP_NUM_THREADS": "1",  # the two nodes are one machine
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    cluster = Cluster(checkout, environment)
    cluster.start()
    yield cluster
    cluster.stop()
