"""A disk that is full in the middle of a checkpoint."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import assert_nothing_lost, run_ranks
from tiny import train_args


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 100 MB: two checkpoints of 40 MB and what a run writes beside them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", disk]).returncode:
        pytest.skip("file systems can be mounted by root only")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_said_and_loses_nothing(data, undisturbed, small_disk, tmp_path):
    args = train_args(data, small_disk / "run", "--resume")
    assert run_ranks(args, tmp_path / "log") == [2]
    said = (tmp_path / "log").read_text()
    assert "step-00000006 could not be written" in said
    assert "make room, then go on from the checkpoint before it with --resume" in said
    assert "Traceback" not in said
    assert (small_disk / "run/checkpoints/LAST").read_text() == "step-00000005"
    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    assert run_ranks(args, tmp_path / "log") == [0], (tmp_path / "log").read_text()
    assert_nothing_lost(small_disk / "run", undisturbed(1))
