"""The batch scripts: what must stand in them, and, where there is a Slurm, that it accepts them."""

import os
import re
import shutil
import subprocess
import sys
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
    assert re.search(
        r'training\.train "\$\{STAGED\[@\]\}" --run-dir "\$run_dir" --resume --processes "\$RANKS"', TRAIN
    )


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


# --- staging ---------------------------------------------------------------------------------------------

FLAGS = {"train": "--data.path", "evaluate": "--data"}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed folder, whose name has a space, and a node's own disk beside it."""
    from images import write_images

    from pipelines.packed import pack

    pack(write_images(tmp_path / "data", 8), tmp_path / "packed images", splits=("train",))
    return tmp_path / "packed images"


def stage(tmp_path: Path, flag: str, *args: str, srun: str = "", env: dict[str, str] | None = None):
    """`stage` outside Slurm, with two tasks of one machine in the nodes' place; what it made of `args`."""
    fake = tmp_path / "bin/srun"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text(srun or '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"$@" && "$@"\n')
    fake.chmod(0o755)
    function = COMMON[COMMON.index("stage() {") : COMMON.index("launch() {")]
    die = next(line for line in COMMON.splitlines() if line.startswith("die() "))
    script = (
        f"set -euo pipefail\nexport BATCH_SHELL=$$\nNODES=2\nSLURM_JOB_ID=7\n{die}\n{function}\n"
        'scontrol() { echo "told scontrol $*"; }\n'
        f'stage {flag} "$@"\nprintf "%s\\n" "${{STAGED[@]}}"\n'
    )
    path = os.pathsep.join([str(fake.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", script, "bash", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": path, "ANYCHANNEL_STAGE": str(tmp_path / "node"), **(env or {})},
    )


def test_batch_scripts_stage_what_their_programs_read():
    for program, flag in FLAGS.items():
        text = (ROOT / f"slurm/{program}.sbatch").read_text()
        assert f'stage {flag} "$@"\n' in text and f'training.{program} "${{STAGED[@]}}"' in text


def test_without_staging_arguments_stay_as_they_are(tmp_path):
    args = ["quickstart", "--data.path", "a b", "--optim.lr", "0.1"]
    done = stage(tmp_path, "--data.path", *args, env={"ANYCHANNEL_STAGE": ""}, srun="#!/bin/bash\nexit 9\n")
    assert (done.returncode, done.stdout.splitlines()) == (0, args), done.stderr


@pytest.mark.parametrize("form", ["apart", "joined", "twice"])
def test_staged_copy_is_named_instead(tmp_path, packed, form):
    wanted = {
        "apart": ["mini", "--data.path", str(packed), "--seed", "1"],
        "joined": ["mini", f"--data.path={packed}", "--seed", "1"],
        "twice": ["mini", "--data.path", "elsewhere", f"--data.path={packed}"],
    }[form]
    done = stage(tmp_path, "--data.path", *wanted)
    assert done.returncode == 0, done.stderr
    (copy,) = (folder for folder in (tmp_path / "node").iterdir() if folder.is_dir())
    assert done.stdout.splitlines() == [arg.replace(str(packed), str(copy)) for arg in wanted]
    assert (copy / "packed.json").read_bytes() == (packed / "packed.json").read_bytes()


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["mini"], "name a packed folder with --data.path"),
        (["mini", "--data.path"], "name a packed folder with --data.path"),
        (["mini", "--data.path", "nowhere"], "nowhere is not packed: make it with python -m pipelines.packed"),
    ],
)
def test_staging_without_a_packed_folder_is_refused(tmp_path, args, why):
    done = stage(tmp_path, "--data.path", *args)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and why in done.stderr
    assert done.stderr.count("\n") == 1


def test_node_that_cannot_copy_ends_the_job(tmp_path, packed):
    (tmp_path / "node").write_text("no folder")
    done = stage(tmp_path, "--data", "run", "--data", str(packed))
    assert done.returncode != 0 and not done.stdout
    assert "own disk" in done.stderr


def test_nodes_that_name_other_places_are_refused(tmp_path, packed):
    done = stage(tmp_path, "--data", "--data", str(packed), srun="#!/bin/bash\necho /tmp\necho /usr\n")
    assert done.returncode == 1 and "not the same folder on all nodes" in done.stderr


def test_signal_while_staging_requeues(tmp_path, packed):
    """It comes to the batch shell alone."""
    srun = "#!/bin/bash\nkill -USR1 $BATCH_SHELL\nsleep 0.2\necho /tmp\n"
    done = stage(tmp_path, "--data", "--data", str(packed), srun=srun)
    assert (done.returncode, done.stdout) == (0, "told scontrol requeue 7\n"), done.stderr


@pytest.mark.skipif(no_slurm() is not None, reason=str(no_slurm()))
@pytest.mark.parametrize("file", SBATCH, ids=lambda file: file.name)
def test_slurm_accepts(file):
    done = subprocess.run(
        ["sbatch", "--test-only", str(file), "quickstart"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
