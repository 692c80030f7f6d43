"""The shell scripts: they parse, install once, and say in one line what is missing.

Installing is played by a stub interpreter, in a copy of the repository whose path has a space in it; the real
installation is what runs this suite.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "slurm").iterdir()])

STUB = """#!/bin/bash
# Acts as an interpreter of the version and with the faults that the environment names; logs installs and programs.
case "$*" in
    *version_info\\ *) [[ ${{FAKE_VERSION:-3.11}} != 3.9 ]] ;;
    --version) echo "Python ${{FAKE_VERSION:-3.11}}" ;;
    *ensurepip*) [[ -z ${{FAKE_NO_VENV:-}} ]] ;;
    *"import sys; print("*) echo python3.11-venv ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*) echo "${{@: -1}}" >>"{log}"; echo "${{FAKE_PIP:-}}"; [[ -z ${{FAKE_PIP:-}} ]] ;;
    *"import torchvision"*) [[ -z ${{FAKE_MISFIT:-}} ]] ;;
    "-m pip "*) ;;
    "-m "*) echo "$*" >>"{programs}" ;;
esac
"""


class Copy:
    """A repository of nothing but the launch scripts and what they read, and a stub to install it with."""

    def __init__(self, folder: Path) -> None:
        self.root, self.python, self.log = folder / "a tree", folder / "python", folder / "installs"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        self.programs = folder / "programs"
        self.python.write_text(STUB.format(log=self.log, programs=self.programs))
        self.python.chmod(0o755)
        self.log.touch()
        self.folder = folder

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(self.root / "launch" / script), *args],
            cwd=self.folder,
            env=os.environ | {"PYTHON": str(self.python)} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def fails(self, script: str, *args: str, **env: str) -> str:
        """The last line said, after checking that the script failed."""
        done = self.run(script, *args, **env)
        assert done.returncode != 0
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    @property
    def installs(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_parses(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_stops_at_the_first_failure(script):
    assert "\nset -euo pipefail\n" in script.read_text()


def test_installs_once(copy):
    assert copy.run("venv.sh", "test").returncode == 0
    assert copy.run("venv.sh", "test").stdout == ""
    assert copy.run("venv.sh").stdout == ""  # the bare project is part of it
    assert copy.installs == [".[test]"]


def test_installs_again_when_the_requirements_or_the_place_change(copy):
    copy.run("venv.sh")
    with (copy.root / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    copy.run("venv.sh")
    copy.root = copy.root.rename(copy.folder / "moved")
    copy.run("venv.sh")
    assert copy.installs == [".", ".", "."]
    assert len(list((copy.root / ".venv").glob(".installed-*"))) == 1


def test_makes_a_half_made_environment_again(copy):
    copy.fails("venv.sh", FAKE_PIP="interrupted")
    leftover = copy.root / ".venv" / "leftover"
    leftover.touch()
    assert copy.run("venv.sh").returncode == 0
    assert not leftover.exists()


def test_installs_into_an_environment_that_somebody_else_made(copy):
    theirs = copy.root / ".venv" / "bin"
    theirs.mkdir(parents=True)
    shutil.copy(copy.python, theirs)
    (theirs / "tool").touch()
    assert copy.run("venv.sh").returncode == 0
    assert (theirs / "tool").exists()


def test_no_venv_module_names_the_package(copy):
    line = copy.fails("quickstart.sh", FAKE_NO_VENV="1")
    assert "ensurepip" in line and "apt-get install python3.11-venv" in line
    assert not (copy.root / ".venv").exists()


def test_old_python_is_named(copy):
    line = copy.fails("test.sh", FAKE_VERSION="3.9")
    assert "3.11 or newer" in line and "is Python 3.9" in line and "PYTHON=" in line


def test_no_python_is_said(copy):
    assert "was not found" in copy.fails("venv.sh", PYTHON="no-such-python")


def test_too_little_disk_is_said(copy):
    df = copy.folder / "bin" / "df"
    df.parent.mkdir()
    df.write_text("#!/bin/sh\necho Avail\necho 3145728\n")
    df.chmod(0o755)
    line = copy.fails("venv.sh", PATH=f"{df.parent}:{os.environ['PATH']}")
    assert "12 GB" in line and "there are 3 GB" in line


@pytest.mark.parametrize(
    ("pip", "said"),
    [
        ("broken by 'NewConnectionError(<...>: Failed to establish a new connection')", "no network"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: subprocess-exited-with-error", "pip could not install"),
    ],
)
def test_pip_failures_are_told_apart_and_shown(copy, pip, said):
    assert said in copy.fails("venv.sh", FAKE_PIP=pip)
    assert pip in copy.run("venv.sh", FAKE_PIP=pip).stderr


def test_builds_of_torch_that_do_not_fit_are_noticed(copy):
    assert "torch and torchvision do not fit together" in copy.fails("test.sh", FAKE_MISFIT="1")


def test_data_dir_must_be_a_directory(copy):
    assert copy.fails("quickstart.sh", "no such place") == "error: DATA_DIR is not a directory: no such place"
    assert copy.installs == []


STUDIES = sorted(file.stem for file in (ROOT / "launch" / "studies").iterdir())


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_a_study_is_a_recipe_of_its_own(copy, study):
    """The stub writes down what it was asked to run; the real parser must take all of it."""
    from training import evaluate, train

    (copy.folder / "mini").mkdir()
    done = copy.run("study.sh", study, "mini")
    assert done.returncode == 0, done.stderr
    trained, evaluated = {}, []
    for line in copy.programs.read_text().splitlines():
        _, module, *words = line.split()
        if module == "training.train":
            job = train.parse(words)
            trained[job.name] = job
        else:
            evaluated.append(evaluate.parse(words))
    names = re.findall(r"^[a-zA-Z]\S*", (ROOT / f"launch/studies/{study}.txt").read_text(), re.MULTILINE)
    assert sorted(trained) == sorted(names)
    differing = {str(replace(job, name="", run_dir=None)) for job in trained.values()}
    assert len(differing) == len(trained), "two runs are the same"
    assert {str(job.run_dirs[0]) for job in evaluated} == {f"runs/study-{study}/{name}" for name in trained}
    assert len({(job.run_dirs, job.record) for job in evaluated}) == len(evaluated), "records overwrite each other"


def test_a_study_runs_what_it_is_asked_for(copy):
    (copy.folder / "mini").mkdir()
    done = copy.run("study.sh", "a", "mini", "table", "taught", JOBS="2", RECIPE="mini-imagenet")
    assert done.returncode == 0, done.stderr
    lines = copy.programs.read_text().splitlines()
    assert sum("training.train mini-imagenet --name" in line for line in lines) == 2
    assert sum("training.evaluate runs/study-a/taught" in line for line in lines) == 2
    assert any(line.endswith("runs/study-a/taught --recalibrate 2000") for line in lines)
    assert sum("--schedule.teacher runs/study-a/naive" in line for line in lines) == 1
    assert len(lines) == 5
    assert copy.run("study.sh", "a", "mini", "taught", RUNS="else  where & /a").returncode == 0
    assert "--schedule.teacher else  where & /a/naive" in copy.programs.read_text()
    assert copy.fails("study.sh", "a", "mini", "tabel").startswith("error: no run is called tabel")
    assert copy.fails("study.sh", "z", "mini").startswith("error: no study is called z; launch/studies holds a ")
    assert copy.fails("study.sh", "a").startswith("error: usage: bash")


def test_quickstart_runs_the_main_job(copy):
    done = copy.run("quickstart.sh")
    assert copy.programs.read_text().splitlines() == [
        "-m pipelines.synthetic data/synthetic",
        "-m training.train quickstart --run-dir runs/quickstart/any-channel --data.path data/synthetic --resume",
        "-m training.train quickstart-naive --run-dir runs/quickstart/naive --data.path data/synthetic --resume",
        "-m training.evaluate runs/quickstart/any-channel runs/quickstart/naive --split test",
        "-m training.report runs/quickstart/any-channel runs/quickstart/naive --out runs/quickstart/report.html",
    ]
    assert f"{copy.root}/runs/quickstart/report.html" in done.stdout
    assert ".venv/bin/tensorboard --logdir runs/quickstart --host 127.0.0.1" in done.stdout


def test_quickstart_takes_a_folder_relative_to_the_caller(copy):
    (copy.folder / "my images").mkdir()
    assert copy.run("quickstart.sh", "my images").returncode == 0
    first, *_ = copy.programs.read_text().splitlines()  # nothing is synthesised
    data = re.escape(f"{copy.folder}/my images")
    assert re.search(rf"--run-dir runs/quickstart-my images-\d+/any-channel --data\.path {data} ", first)


def test_tests_are_linted_before_they_run(copy):
    copy.run("test.sh", "tests/launch", "-x")
    programs = [
        "-m ruff check",
        "-m ruff format --check",
        "-m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder tests/launch -x",
    ]
    assert copy.programs.read_text().splitlines() == programs


def test_this_interpreter_would_do():
    done = subprocess.run(
        ["bash", "-c", f'source "{ROOT}/launch/venv.sh"; find_python'],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == sys.executable
