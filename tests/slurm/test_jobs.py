"""The batch scripts as jobs of a real Slurm of two nodes: see cluster.py."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from cluster import Cluster, wait_until
from safetensors.torch import load_file
from tiny import TINY_WORDS

# Forty steps, so that there is time to interrupt them; of a network that is quick to train.
STEPS = 40
SETTINGS = ["--data.path", "data", *TINY_WORDS, "--model.body", "matched", "--model.width", "0.25"]
SETTINGS += ["--schedule.epochs", "8", "--schedule.eval-epochs", "8", "--schedule.checkpoint-steps", "100"]
TRAIN = ["slurm/train.sbatch", "quickstart", *SETTINGS]
TWO_NODES = ["--nodes=2", "--cpus-per-task=1"]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Job:
    """A job of the cluster: NUMBER, or ARRAY_TASK."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    def __getitem__(self, field: str) -> str:
        """What `scontrol show job` says, e.g. of JobState."""
        shown = self.cluster.run("scontrol", "--oneliner", "show", "job", self.name).stdout
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)[field]

    @property
    def log(self) -> str:
        return "".join(file.read_text() for file in (self.cluster.root / "slurm-logs").glob(f"*-{self.name}.out"))

    def says(self, line: str) -> None:
        """Wait for words in the log of a job that has not ended."""
        wait_until(lambda: line in self.log or self["JobState"] in ENDED, f"no {line!r} in {self.log}", 240)
        assert line in self.log, self.log

    def warn(self) -> None:
        """Slurm's warning that a job's time, or its place, is nearly lost."""
        self.cluster.run("scancel", "--batch", "--signal=USR1", self.name)

    def ends(self, state: str = "COMPLETED") -> str:
        """Wait for the end; returns the log."""
        wait_until(lambda: self["JobState"] in ENDED, f"job {self.name} does not end", 300)
        assert self["JobState"] == state, self.log
        return self.log


def submit(cluster: Cluster, *words: str, **env: str) -> Job:
    return Job(cluster, cluster.run("sbatch", "--parsable", *words, **env).stdout.strip())


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model.safetensors")


def steps_of_stops(log: str) -> list[int]:
    return [int(line.split()[3].strip(",")) for line in log.splitlines() if line.startswith("stopped at step ")]


# --- training --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained(cluster) -> Path:
    """The run directory of a training on two nodes that nothing has disturbed."""
    job = submit(cluster, *TWO_NODES, *TRAIN, "--run-dir", "runs/un disturbed", ANYCHANNEL_PREFLIGHT="60")
    log = job.ends()
    assert "any-channel matched on 2 × cpu" in log
    assert f"{STEPS} steps, from step 0" in log
    for node in ("n1", "n2"):
        assert log.count(f"preflight: {node} ok\n") == 2  # by itself, and together
    return cluster.root / "runs/un disturbed"


def test_two_nodes_train_one_network(trained):
    assert all(tensor.isfinite().all() for tensor in weights(trained).values())


def test_warned_job_saves_is_requeued_and_ends_where_it_would_have(cluster, trained):
    job = submit(cluster, *TWO_NODES, *TRAIN, "--run-dir", "runs/warned")
    job.says("from step 0")
    job.warn()
    log = job.ends()
    assert job["Restarts"] == "1"
    [stopped] = steps_of_stops(log)
    assert 0 < stopped < STEPS
    assert f"{STEPS} steps, from step {stopped};" in log
    expected, found = weights(trained), weights(cluster.root / "runs/warned")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_lost_node_costs_an_epoch_and_not_the_run(cluster):
    """The first node, on which the batch script runs and the ranks meet; the other is enough for --nodes=1-2."""
    run_dir = cluster.root / "runs/lost"
    cluster.until_idle()  # else the job would start on one node
    job = submit(cluster, "--nodes=1-2", "--cpus-per-task=1", *TRAIN, "--run-dir", str(run_dir))
    try:
        wait_until((run_dir / "checkpoints/LAST").exists, "no checkpoint", 240)
        cluster.fail("n1")
        log = job.ends()
    finally:
        cluster.repair("n1")
    assert (job["Restarts"], job["NodeList"]) == ("1", "n2")
    first, second = log.split("from step 0;")
    assert "on 2 × cpu" in first and "on 1 × cpu" in second
    assert re.search(rf"{STEPS} steps, from step [1-3]?[05];", second)  # an epoch has five
    assert weights(run_dir)


# --- experts ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_experts_are_trained_as_an_array_and_then_evaluated(cluster):
    """One of them is warned before it trains: the other must not be requeued with it."""
    experts = ["slurm/experts.sbatch", "quickstart", *SETTINGS, "--schedule.epochs", "1"]
    array = submit(cluster, "--array=0,6", "--cpus-per-task=1", *experts).name
    tasks = {"RGB": Job(cluster, f"{array}_0"), "B": Job(cluster, f"{array}_6")}
    tasks["B"].says("no GPU was asked for")
    tasks["B"].warn()
    for task in tasks.values():
        task.ends()
    assert (tasks["RGB"]["Restarts"], tasks["B"]["Restarts"]) == ("0", "1")

    jobs = cluster.run(
        "squeue", "--noheader", "--states=all", f"--name=anychannel-evaluate-{array}", "--format=%i"
    )
    [evaluation] = (Job(cluster, name) for name in jobs.stdout.split())
    evaluation.ends()
    assert all(evaluation["StartTime"] >= task["EndTime"] for task in tasks.values())
    assert {folder.name for folder in (cluster.root / "runs").glob("quickstart-expert-*")} == {
        f"quickstart-expert-{chosen}" for chosen in tasks
    }
    for chosen in tasks:
        record = json.loads((cluster.root / f"runs/quickstart-expert-{chosen}/sweep-test.json").read_text())
        assert list(record["scores"]) == [chosen]


# --- preflight -------------------------------------------------------------------------------------------


def test_node_that_fails_the_preflight_is_left_out(cluster, trained, tmp_path):
    """Its interpreter is broken, and only its own."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'Illegal instruction' >&2; exit 132\n")
    broken.chmod(0o755)
    python = str(Path(sys.prefix, "bin/python").resolve())
    cluster.on("n1", "mount", "--bind", str(broken), python)
    try:
        job = submit(cluster, *TRAIN, "--run-dir", str(trained), ANYCHANNEL_PREFLIGHT="60")
        log = job.ends()
    finally:
        cluster.fail("n1")
        cluster.repair("n1")
    assert "n1 failed the preflight" in log
    assert "preflight: n2 ok" in log
    assert f"{trained} is finished" in log
    assert (job["Restarts"], job["ExcNodeList"], job["BatchHost"]) == ("1", "n1", "n2")
    assert (cluster.root / f"slurm-logs/bad-nodes-{job.name}").read_text().split()[1:] == ["n1"]


# --- wrong requests --------------------------------------------------------------------------------------


WRONG_JOBS = {
    "name a recipe: sbatch slurm/train.sbatch RECIPE": (["slurm/train.sbatch"], {}),
    "name a recipe: sbatch slurm/experts.sbatch RECIPE": (["--array=0", "slurm/experts.sbatch"], {}),
    "name a run: sbatch slurm/evaluate.sbatch RUN_DIR": (["slurm/evaluate.sbatch"], {}),
    "submit from the repository root, not from /": (["--chdir=/", "slurm/train.sbatch", "quickstart"], {}),
    "no environment in /nowhere: make it once": (TRAIN, {"ANYCHANNEL_VENV": "/nowhere"}),
    "ANYCHANNEL_PREFLIGHT is a number of seconds, or 0": (TRAIN, {"ANYCHANNEL_PREFLIGHT": "yes"}),
    "the recipe has 7 channel sets, and no number 7: --array=0-6": (
        ["--array=7", "slurm/experts.sbatch", "quickstart"],
        {},
    ),
}


def test_jobs_that_cannot_work_fail_in_a_line(cluster):
    jobs = {}
    for why, (words, env) in WRONG_JOBS.items():
        jobs[why] = submit(cluster, f"--output={cluster.root}/slurm-logs/wrong-%j.out", *words, **env)
    for why, job in jobs.items():
        log = job.ends("FAILED")
        lines = [line for line in log.splitlines() if not line.startswith("no GPU was asked for")]
        assert len(lines) == 1 and lines[0].startswith("error: ") and why in lines[0], log


@pytest.mark.parametrize("script", ["train", "evaluate", "experts"])
def test_place_and_hardware_are_chosen_without_editing(cluster, script):
    file = f"slurm/{script}.sbatch"
    taken = cluster.run("sbatch", "--test-only", "--gpus-per-node=h100:2", file, "x", SBATCH_PARTITION="other")
    assert "in partition other" in taken.stderr
    for wrong in ("--gpus-per-node=a100:2", "--partition=nowhere"):
        assert cluster.run("sbatch", wrong, file, "x", check=False).returncode != 0
