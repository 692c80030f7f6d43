"""The test of a node before training: what it finds, and how it says so."""

import os
import re
import socket
import subprocess
import sys

PROGRAM = [sys.executable, "-m", "training.preflight"]

# Breaks one rank of two, or both, in one way after the other; each rank is a fork, and breaks only itself.
FAULTS = """
import os, signal, time
import torch
import torch.distributed as dist
from training import preflight

check, product, add_up = preflight._check, torch.Tensor.__matmul__, dist.all_reduce
preflight._SPARE = 0.0

def outcome(fault=None, broken=(1,), **settings):
    def check_broken(job, local, file):
        if fault and local in broken:
            fault()
        check(job, local, file)
    preflight._check = check_broken
    try:
        preflight.main(preflight.Preflight(ranks=2, **settings))
    except SystemExit as end:
        print("status", end.code, flush=True)

def wrong_product():
    torch.Tensor.__matmul__ = lambda a, b: product(a, b) + (a.dtype == torch.float32)

def wrong_sum():
    def add(numbers):
        add_up(numbers)
        numbers[-1] += 1
    dist.all_reduce = add

outcome()
outcome(wrong_product)
outcome(wrong_sum)
outcome(lambda: os.kill(os.getpid(), signal.SIGKILL))
outcome(lambda: time.sleep(600), broken=(0, 1), patience=1)
outcome(lambda: time.sleep(600), device="cuda")
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL", **more}


def test_each_fault_is_found_and_named():
    """In one process, since importing torch takes longer than all of them."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=environment(SLURMD_NODENAME="n7", SLURM_NODEID="3", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = [line.removeprefix("preflight: n7 ") for line in done.stdout.splitlines()]
    assert told[:2] == ["ok", "status 0"], done.stderr
    assert told[2::2] == [
        "failed: rank 1: the product of two matrices is wrong on cpu",
        "failed: rank 1: 2 ranks added up to [3.0, 4.0] instead of 3.0",
        "failed: rank 1 died with exit code -9",
        "failed: no answer from rank 0, 1 in 1 s",
        "failed: rank 0: 2 GPU(s) were asked for, but torch can use 0; see nvidia-smi there",
    ]
    assert told[3::2] == ["status 1"] * 5


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start(node: int, address: str, patience: int) -> subprocess.Popen:
    words = ["--ranks", "2", "--nodes", "2", "--address", address, "--patience", str(patience)]
    env = environment(SLURMD_NODENAME=f"n{node}", SLURM_NODEID=str(node))
    return subprocess.Popen([*PROGRAM, *words], env=env, stdout=subprocess.PIPE, text=True)


def test_nodes_that_meet_are_fine():
    address = f"127.0.0.1:{free_port()}"
    nodes = [start(node, address, 60) for node in range(2)]
    assert [node.communicate(timeout=300)[0] for node in nodes] == ["preflight: n0 ok\n", "preflight: n1 ok\n"]
    assert [node.returncode for node in nodes] == [0, 0]


def test_missing_node_is_no_fault_of_one_that_is_there():
    """Nor does the first node, to which all others connect, pass for one that cannot be reached."""
    first, other = start(0, f"127.0.0.1:{free_port()}", 1), start(1, f"127.0.0.1:{free_port()}", 1)
    assert first.communicate(timeout=300)[0] == "preflight: n0 ok by itself, but not all nodes came\n"
    told = other.communicate(timeout=300)[0]
    assert re.fullmatch(r"preflight: n1 failed: rank [01]: 127\.0\.0\.1:\d+ cannot be reached .*\n", told)
    assert (first.returncode, other.returncode) == (1, 1)
