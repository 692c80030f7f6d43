"""The batch scripts without a Slurm: what must stand in them, and what they do when its commands are played."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SBATCH = sorted((ROOT / "slurm").glob("*.sbatch"))
TRAIN, COMMON = ((ROOT / "slurm" / name).read_text() for name in ("train.sbatch", "common.sh"))


def options(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")}


@pytest.mark.parametrize("name", ["train", "experts"])
def test_training_is_warned_in_time_and_may_be_requeued(name):
    text = (ROOT / f"slurm/{name}.sbatch").read_text()
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= options(text)


@pytest.mark.parametrize("file", SBATCH, ids=lambda file: file.name)
def test_logs_go_where_the_head_says_to_make_a_folder(file):
    text = file.read_text()
    job = "%A_%a" if "--array" in text else "%j"
    assert f"--output=slurm-logs/%x-{job}.out" in options(text)
    assert "#   mkdir -p slurm-logs && sbatch " in text


@pytest.mark.parametrize("file", SBATCH, ids=lambda file: file.name)
def test_options_stand_before_the_first_command(file):
    """Slurm stops reading them there."""
    lines = file.read_text().splitlines()
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(n < first_command for n, line in enumerate(lines) if line.startswith("#SBATCH"))


def test_machine_rank_is_read_on_its_own_node():
    """In double quotes or bare, the first node's rank would be everybody's."""
    assert re.search(r"on_each_node [^']*bash -c '[^']*--machine_rank \"\$SLURM_NODEID\"[^']*'", COMMON)
    assert COMMON.count("$SLURM_NODEID") == 1


def test_the_world_that_was_asked_for_is_checked():
    assert re.search(
        r'training\.train "\$\{STAGED\[@\]\}" --run-dir "\$run_dir" --resume --processes "\$RANKS"', TRAIN
    )


def test_stop_file_has_the_name_that_training_looks_for():
    from training.preemption import STOP_FILE

    assert f"local stop=$1/{STOP_FILE} " in COMMON


SRUN = "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"  # what follows is the command of a node
SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") tr , '\\n' <<<"$3" ;;
    "--oneliner show") echo "JobId=7 ExcNodeList=${EXCLUDED:-(null)} NodeList=n1" ;;
    *) echo "$*" >>told ;;
esac
"""
SINFO = "#!/bin/bash\nprintf 'n%s\\n' 1 1 2 3 4 5 6\n"


def batch_shell(
    folder: Path,
    script: str,
    *args: str,
    srun: str = SRUN + '"$@" && "$@"\n',
    commands: dict[str, str] | None = None,
    **env: str,
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """`script` after common.sh, as on nodes n1 and n2, with `srun` in Slurm's place; what scontrol was told."""
    for name, text in {"srun": srun, "scontrol": SCONTROL, "sinfo": SINFO, **(commands or {})}.items():
        command = folder / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n1,n2"}
    job |= {"SLURM_JOB_PARTITION": "main", "ANYCHANNEL_VENV": sys.prefix}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f'set -euo pipefail\nexport BATCH_SHELL=$$\nsource "$COMMON"\n{script}', "bash", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": path, "COMMON": str(ROOT / "slurm/common.sh"), **job, **env},
    )
    told = folder / "told"
    return done, told.read_text().splitlines() if told.exists() else []


def train(folder: Path, launcher: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """`launch_and_requeue` with `launcher` in place of the training."""
    script = f"mkdir run && touch run/STOP\nlaunch() {{ {launcher}; }}\nlaunch_and_requeue run training.train"
    return batch_shell(folder, script)


def test_signal_drops_the_stop_file_and_requeues(tmp_path):
    """The launcher signals the shell as Slurm would, takes the file away once, and must see it come back."""
    wait = "until [[ -e run/STOP ]]; do sleep 0.05; done"
    done, told = train(tmp_path, f"sleep 0.3; kill -USR1 $$; {wait}; rm run/STOP; {wait}")
    assert done.returncode == 0, done.stderr
    assert told == ["requeue 7"]


def test_run_that_ends_by_itself_is_not_requeued(tmp_path):
    done, told = train(tmp_path, "[[ ! -e run/STOP ]]")  # an old stop file was cleared away
    assert (done.returncode, told) == (0, [])


def test_failure_is_passed_on_and_not_requeued(tmp_path):
    done, told = train(tmp_path, "sleep 0.3; kill -USR1 $$; sleep 0.3; exit 3")
    assert (done.returncode, told) == (3, [])


@pytest.mark.parametrize(
    ("task", "job"), [({}, "7"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3")]
)
def test_signal_before_the_training_requeues_this_job_alone(tmp_path, task, job):
    """The id of an array's last task is the whole array's."""
    done, told = batch_shell(tmp_path, "kill -USR1 $$; echo goes on", **task)
    assert told == [f"requeue {job}"]
    assert "goes on" not in done.stdout


# --- preflight -------------------------------------------------------------------------------------------

SAY = "#!/bin/bash\necho >>calls\n"


def preflight(folder: Path, said: str, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """`preflight` where all nodes together say this."""
    return batch_shell(folder, "preflight; echo training", srun=f"{SAY}echo '{said}'\nexit 1\n", **env)


def test_nodes_are_tested_alone_and_together(tmp_path):
    done, told = preflight(tmp_path, "preflight: n2 ok\npreflight: n1 ok")
    assert done.stdout.endswith("training\n") and told == []
    assert (tmp_path / "calls").read_text().count("\n") == 2


def test_preflight_can_be_left_out(tmp_path):
    done, _ = preflight(tmp_path, "", ANYCHANNEL_PREFLIGHT="0")
    assert done.stdout.endswith("training\n") and not (tmp_path / "calls").exists()


@pytest.mark.parametrize("said", ["preflight: n1 ok", "preflight: n2 failed: ok?\npreflight: n1 ok, but alone"])
@pytest.mark.parametrize(("excluded", "then"), [("", "n2"), ("n[5-6]", "n[5-6],n2")])
def test_node_that_failed_or_said_nothing_is_excluded(tmp_path, said, excluded, then):
    """Slurm refuses to change the list while the job runs: after the requeue, then."""
    done, told = preflight(tmp_path, said, EXCLUDED=excluded)
    assert told == ["requeue 7", f"update JobId=7 ExcNodeList={then}"], done.stderr
    assert done.returncode == 0 and "training" not in done.stdout


def test_most_nodes_failing_is_not_the_nodes_fault(tmp_path):
    done, told = preflight(tmp_path, "preflight: n1 failed: NCCL")
    assert (done.returncode, told) == (1, [])
    assert "error: 2 of 2 nodes failed the preflight" in done.stderr and "NCCL_SOCKET_IFNAME" in done.stderr


def test_bad_nodes_are_given_up_on_the_fourth_time(tmp_path):
    for _ in range(3):
        preflight(tmp_path, "preflight: n1 ok")
    done, told = preflight(tmp_path, "preflight: n1 ok")
    assert len(told) == 6  # a requeue and an update for each of the three
    assert done.returncode == 1 and "error: bad nodes again (n2), for the fourth time" in done.stderr


def test_job_is_not_left_waiting_for_nodes_that_are_not_there(tmp_path):
    done, told = preflight(tmp_path, "preflight: n1 ok", EXCLUDED="n3,n4,n5,n6")
    assert (done.returncode, told) == (1, [])
    assert "without n3,n4,n5,n6,n2 partition main has too few nodes (1)" in done.stderr


# --- experts ---------------------------------------------------------------------------------------------

EXPERTS = {
    # "--array" asks for the tasks of the array, "--name" for an evaluation that is queued already.
    "squeue": '#!/bin/bash\n[[ $* == *--array* ]] && printf "6\\n0\\n" || echo -n "$QUEUED"\n',
    "sbatch": '#!/bin/bash\nprintf "%s\\n" "$@" >queued\nenv >inherited\n',
}
ARRAY = {
    "SLURM_ARRAY_JOB_ID": "5",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "6",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_JOB_ACCOUNT": "vision",
    "SLURM_CONF": "where it is",
    "ANYCHANNEL_PREFLIGHT": "0",
    "PYTHONPATH": str(ROOT),
}


@pytest.mark.parametrize(("task", "queued", "queues"), [("0", "", True), ("0", "9", False), ("6", "", False)])
def test_first_task_of_experts_queues_one_evaluation_of_all(tmp_path, task, queued, queues):
    for name in ("slurm", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    srun = "#!/bin/bash\nprintf '%s\\n' \"$@\" >trained\n"
    env = {**ARRAY, "SLURM_ARRAY_TASK_ID": task, "QUEUED": queued}
    script = "source slurm/experts.sbatch"
    args = ["quickstart", "--data.path", "some data", "--run-dir", "runs/my own"]
    done, _ = batch_shell(tmp_path, script, *args, srun=srun, commands=EXPERTS, **env)
    assert done.returncode == 0, done.stderr
    trained = (tmp_path / "trained").read_text().splitlines()
    chosen = {"0": "RGB", "6": "B"}[task]
    assert [trained[trained.index(flag) + 1] for flag in ("--model.plain-channels", "--data.path")] == [
        chosen,
        "some data",
    ]
    assert trained[-4:] == [f"runs/my own-{chosen}", "--resume", "--processes", "4"]
    assert (tmp_path / "queued").exists() == queues
    if queues:
        told = (tmp_path / "queued").read_text().splitlines()
        assert told[-3:] == ["slurm/evaluate.sbatch", "runs/my own-RGB", "runs/my own-B"]
        options = {"--dependency=afterok:5", "--partition=main", "--account=vision", "--gpus-per-node=2"}
        assert options <= {*told}
        inherited = (tmp_path / "inherited").read_text()
        assert re.findall("^SLURM_.*", inherited, re.MULTILINE) == ["SLURM_CONF=where it is"]


# --- staging ---------------------------------------------------------------------------------------------

PROGRAMS = {
    "train": ("train", "--data.path"),
    "experts": ("train", "--data.path"),
    "evaluate": ("evaluate", "--data"),
}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed folder, whose name has a space, and a node's own disk beside it."""
    from images import write_images

    from pipelines.packed import pack

    pack(write_images(tmp_path / "data", 8), tmp_path / "packed images", splits=("train",))
    return tmp_path / "packed images"


def stage(folder: Path, flag: str, *args: str, **changed: object) -> tuple[subprocess.CompletedProcess, list[str]]:
    """`stage` with two tasks of one machine in the nodes' place; also what it made of `args`."""
    script = f'stage {flag} "$@"\nprintf "staged %s\\n" "${{STAGED[@]}}"'
    changed = {"ANYCHANNEL_STAGE": str(folder / "node"), "PYTHONPATH": str(ROOT), **changed}
    done, _ = batch_shell(folder, script, *args, **changed)
    lines = done.stdout.splitlines()
    return done, [line.removeprefix("staged ") for line in lines if line.startswith("staged ")]


def test_batch_scripts_stage_what_their_programs_read():
    for script, (program, flag) in PROGRAMS.items():
        text = (ROOT / f"slurm/{script}.sbatch").read_text()
        assert f'stage {flag} "$@"\n' in text and f'training.{program} "${{STAGED[@]}}"' in text


def test_without_staging_arguments_stay_as_they_are(tmp_path):
    args = ["quickstart", "--data.path", "a b", "--optim.lr", "0.1"]
    done, staged = stage(tmp_path, "--data.path", *args, ANYCHANNEL_STAGE="", srun="#!/bin/bash\nexit 9\n")
    assert (done.returncode, staged) == (0, args), done.stderr


@pytest.mark.parametrize("form", ["apart", "joined", "twice"])
def test_staged_copy_is_named_instead(tmp_path, packed, form):
    wanted = {
        "apart": ["mini", "--data.path", str(packed), "--seed", "1"],
        "joined": ["mini", f"--data.path={packed}", "--seed", "1"],
        "twice": ["mini", "--data.path", "elsewhere", f"--data.path={packed}"],
    }[form]
    done, staged = stage(tmp_path, "--data.path", *wanted)
    assert done.returncode == 0, done.stderr
    (copy,) = (folder for folder in (tmp_path / "node").iterdir() if folder.is_dir())
    assert staged == [arg.replace(str(packed), str(copy)) for arg in wanted]
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
    done, _ = stage(tmp_path, "--data.path", *args)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and why in done.stderr
    assert done.stderr.count("\n") == 1


def test_node_that_cannot_copy_ends_the_job(tmp_path, packed):
    (tmp_path / "node").write_text("no folder")
    done, staged = stage(tmp_path, "--data", "run", "--data", str(packed))
    assert done.returncode != 0 and not staged
    assert "own disk" in done.stderr


def test_nodes_that_name_other_places_are_refused(tmp_path, packed):
    done, _ = stage(tmp_path, "--data", "--data", str(packed), srun="#!/bin/bash\necho /tmp\necho /usr\n")
    assert done.returncode == 1 and "not the same folder on all nodes" in done.stderr


def test_signal_while_staging_requeues(tmp_path, packed):
    """It comes to the batch shell alone."""
    srun = "#!/bin/bash\nkill -USR1 $BATCH_SHELL\nsleep 0.2\necho /tmp\n"
    done, staged = stage(tmp_path, "--data", "--data", str(packed), srun=srun)
    assert (done.returncode, staged) == (0, []), done.stderr
    assert (tmp_path / "told").read_text() == "requeue 7\n"
