"""The batch scripts: what must stand in them, and, where there is a Slurm, that it accepts them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SBATCH = sorted((ROOT / "slurm").glob("*.sbatch"))
TRAIN, COMMON = ((ROOT / "slurm" / name).read_text() for name in ("train.sbatch", "common.sh"))


def no_slurm() -> str | None:
    """Why nothing can be submitted here, or None."""
    if not shutil.which("sbatch"):
        return "there is no sbatch here"
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30)
    return None if "UP" in ping.stdout else "no Slurm controller answers here"


def options(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")}


def test_train_is_warned_in_time_and_may_be_requeued():
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= options(TRAIN)


@pytest.mark.parametrize("file", SBATCH, ids=lambda file: file.name)
def test_logs_go_where_the_head_says_to_make_a_folder(file):
    text = file.read_text()
    assert "--output=slurm-logs/%x-%j.out" in options(text)
    assert "#   mkdir -p slurm-logs && sbatch " in text


@pytest.mark.parametrize("file", SBATCH, ids=lambda file: file.name)
def test_options_stand_before_the_first_command(file):
    """Slurm stops reading them there."""
    lines = file.read_text().splitlines()
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(n < first_command for n, line in enumerate(lines) if line.startswith("#SBATCH"))


def test_machine_rank_is_read_on_its_own_node():
    """In double quotes or bare, the first node's rank would be everybody's."""
    assert re.search(r"srun [^']*bash -c '[^']*--machine_rank \"\$SLURM_NODEID\"[^']*'", COMMON)
    assert COMMON.count("$SLURM_NODEID") == 1


def test_the_world_that_was_asked_for_is_checked():
    assert re.search(r'training\.train "\$@" --run-dir "\$run_dir" --resume --processes "\$RANKS"', TRAIN)


def test_stop_file_has_the_name_that_training_looks_for():
    from training.preemption import STOP_FILE

    assert f"local stop=$1/{STOP_FILE} " in COMMON


def run_batch_shell(tmp_path: Path, launcher: str) -> tuple[subprocess.CompletedProcess, str]:
    """`launch_and_requeue` outside Slurm: `launcher` in srun's place, and what scontrol was told."""
    functions = COMMON[COMMON.index("launch() {") :]
    script = (
        "set -euo pipefail\nexport SLURM_JOB_ID=7\n"
        f"{functions}\n"
        f"launch() {{ {launcher}; }}\n"
        'scontrol() { echo "$*" >scontrol.log; }\n'
        "mkdir -p run && touch run/STOP\n"
        "launch_and_requeue run training.train quickstart\n"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30, env=os.environ
    )
    log = tmp_path / "scontrol.log"
    return done, log.read_text().strip() if log.exists() else ""


def test_signal_drops_the_stop_file_and_requeues(tmp_path):
    """The launcher signals the shell as Slurm would, takes the file away once, and must see it come back."""
    wait = "until [[ -e run/STOP ]]; do sleep 0.05; done"
    done, told = run_batch_shell(tmp_path, f"sleep 0.3; kill -USR1 $$; {wait}; rm run/STOP; {wait}")
    assert done.returncode == 0, done.stderr
    assert told == "requeue 7"


def test_run_that_ends_by_itself_is_not_requeued(tmp_path):
    done, told = run_batch_shell(tmp_path, "[[ ! -e run/STOP ]]")  # an old stop file was cleared away
    assert (done.returncode, told) == (0, "")


def test_failure_is_passed_on_and_not_requeued(tmp_path):
    done, told = run_batch_shell(tmp_path, "sleep 0.3; kill -USR1 $$; sleep 0.3; exit 3")
    assert (done.returncode, told) == (3, "")


@pytest.mark.skipif(no_slurm() is not None, reason=str(no_slurm()))
@pytest.mark.parametrize("file", SBATCH, ids=lambda file: file.name)
def test_slurm_accepts(file):
    done = subprocess.run(
        ["sbatch", "--test-only", str(file), "quickstart"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
