"""Ranks that hang, that die under a launcher, and a launcher that is told to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, Fault, assert_nothing_lost, run_ranks
from tiny import train_args

LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
LAUNCH += ["--config_file", "launch/cpu.yaml", "--num_processes", "2"]

# Rank 1 dies in its sixth step, the first time that it is started.
DYING = """
import os, signal, sys
from training import train
from training.cli import run_program
from training.loop import Trainer
step = Trainer._train_step
def die_once(self, batch):
    if self.step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, batch)
Trainer._train_step = die_once
run_program(lambda: train.main(train.parse(sys.argv[1:])))
"""


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named_and_waited_for_no_longer(data, undisturbed, world, tmp_path):
    flags = ("--data.batch-size", "12")  # divides by two and by three
    args = train_args(data, tmp_path / "run", *flags, "--resume", "--schedule.patience", "0.25")
    hang = Fault(7, signal.SIGSTOP, "Trainer._train_step")
    ended = run_ranks(args, tmp_path / "log", {1: hang}, world)
    said = (tmp_path / "log").read_text()
    assert [ended[rank] for rank in range(world) if rank != 1] == [1] * (world - 1), said
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    named = [
        line for line in errors if f"rank 1 on {os.uname().nodename} did not answer; ranks waited 15 s" in line
    ]
    assert named, said
    assert not [line for line in errors if line not in named and "the first rank's message says which" not in line]
    assert run_ranks(args, tmp_path / "log", world=world) == [0] * world
    if world == 2:  # three numbers add up to another one in another order, and DDP's buckets change after a step
        assert_nothing_lost(tmp_path / "run", undisturbed(world, *flags))


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}


def test_a_launcher_starts_dead_ranks_again_and_they_go_on(data, undisturbed, tmp_path):
    """Without --resume: that is for people, who might mean another run."""
    (tmp_path / "dying.py").write_text(DYING)
    args = train_args(data, tmp_path / "run", "--schedule.patience", "1")
    command = [*LAUNCH, "--max_restarts", "2", "-m", "dying", *args]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment(tmp_path), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "from step 5" in done.stdout
    assert_nothing_lost(tmp_path / "run", undisturbed(2))


def test_a_launcher_told_to_stop_loses_steps_only(data, undisturbed, tmp_path):
    args = train_args(data, tmp_path / "run", "--resume", "--schedule.patience", "1")
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [*LAUNCH, "-m", "training.train", *args], cwd=ROOT, stdout=log, stderr=log, env=environment(tmp_path)
        )
    while not (tmp_path / "run/checkpoints/LAST").exists() and launcher.poll() is None:
        try:
            launcher.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=120) != 0
    assert not (tmp_path / "run/model.safetensors").exists()
    assert run_ranks(args, tmp_path / "log", world=2) == [0, 0], (tmp_path / "log").read_text()
    assert_nothing_lost(tmp_path / "run", undisturbed(2))
