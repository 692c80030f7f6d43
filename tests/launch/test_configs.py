"""The launch configurations: accelerate accepts each, and the command in its head means what it says."""

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.run import determine_local_world_size

from training import zero

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "launch").glob("*.yaml"))
NAMES = {"cpu", "ddp", "multinode", "single_gpu", "zero1", "zero2", "zero3"}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def command_in_head(file: Path) -> list[str]:
    """Arguments of the one `accelerate launch` command among a configuration's first comments."""
    [line] = [line for line in file.read_text().splitlines() if line.startswith("#   accelerate launch ")]
    return shlex.split(line)[3:]


def resolved(args: list[str]) -> Namespace:
    """What accelerate makes of a command line and the configuration file it names."""
    return _validate_launch_command(launch_command_parser().parse_args(args))[0]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_all_are_there():
    assert {file.stem for file in CONFIGS} == NAMES


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_accepts_it_and_the_command_in_its_head(file):
    config = load_config_from_file(str(file))
    args = resolved(command_in_head(file))
    assert args.config_file == f"launch/{file.name}"
    assert (args.module, args.training_script) == (True, "training.train")
    assert args.mixed_precision == config.mixed_precision == "no"
    kinds = {DistributedType.DEEPSPEED: (False, True), DistributedType.NO: (False, False)}
    assert (args.multi_gpu, args.use_deepspeed) == kinds.get(config.distributed_type, (True, False))


def test_flags_win_over_the_multinode_file():
    flags = "--machine_rank 2 --num_machines 3 --num_processes 6 --main_process_ip host --main_process_port 15001"
    args = resolved(["--config_file", "launch/multinode.yaml", *flags.split(), "-m", "training.train"])
    assert (args.machine_rank, args.num_machines, args.num_processes) == (2, 3, 6)
    assert (args.main_process_ip, args.main_process_port) == ("host", 15001)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_divides_what_its_name_says_and_clips_as_the_recipe_does(stage):
    args = resolved(["--config_file", f"launch/zero{stage}.yaml", "-m", "training.train"])
    assert (args.use_deepspeed, args.zero_stage) == (True, stage)
    assert args.gradient_clipping is None
    config = {"gradient_clipping": "auto"}
    for clip, wanted in ((0.5, 0.5), (None, 1e9)):  # 0 would count as unset, and unset has clipped at 1
        zero.configure(config, "bf16", clip)
        assert config["gradient_clipping"] == wanted


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3"])
def test_every_gpu_gets_a_process_and_without_one_nothing_starts(name, monkeypatch):
    """With a number in the file, a machine without GPUs would train so many times, alone each time."""
    processes = str(resolved(["--config_file", f"launch/{name}.yaml", "-m", "training.train"]).num_processes)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert determine_local_world_size(processes) == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Cuda is not available"):
        determine_local_world_size(processes)


def test_cpu_starts_two_ranks_that_meet(tmp_path):
    script = tmp_path / "meet.py"
    script.write_text(
        "import torch; from training.runtime import Runtime; runtime = Runtime(processes=2)\n"
        "assert runtime.sum(torch.tensor([1.0 + runtime.rank])).item() == 3.0\n"
        "print(f'rank {runtime.rank} of {runtime.world}', flush=True); runtime.close()\n"
    )
    done = subprocess.run(
        [*LAUNCH, "--config_file", "launch/cpu.yaml", str(script)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert "rank 0 of 2" in done.stdout  # anywhere in a line: the ranks write at the same time
    assert "rank 1 of 2" in done.stdout
