"""Is a node fit to train? `python -m training.preflight --ranks N [--device cuda]`, on each node of a job.

Each rank multiplies two matrices on its device and checks the product, then the node's ranks add something up
(NCCL on GPUs, gloo otherwise). With `--nodes` and `--address` the ranks of all nodes do it together. One line says
how it went on this node; slurm/common.sh takes a node whose line is missing for a bad one as well.
"""

import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import tyro

from pipelines.cli import EXIT_FAILED

_SIZE = 1024  # of the matrices, and a thousandth of the numbers that are added up
_OK = "ok"
_SPARE = 10.0  # seconds that a rank has to say why it gave up, before it counts as hung


class NotAllCameError(RuntimeError):
    """Ranks of other nodes are missing, which is no fault of this one."""


@dataclass(kw_only=True)
class Preflight:
    """Check one node, or with --nodes what it can do together with the others."""

    ranks: int
    """Processes on each node; with --device cuda each has a GPU."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What they shall train on."""
    nodes: int = 1
    """How many nodes this is run on."""
    node: int = int(os.environ.get("SLURM_NODEID", "0"))
    """Which of them this is."""
    address: str | None = None
    """HOST:PORT on the first of several nodes."""
    patience: float = 60
    """Seconds after which a rank counts as hung."""

    @property
    def world(self) -> int:
        """All ranks."""
        return self.nodes * self.ranks


def main(job: Preflight) -> None:
    """Check, say how it went, and end with status 1 if something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = _outcome(job, lambda rank: _check(job, rank, Path(folder) / "store"))
    print(f"preflight: {os.environ.get('SLURMD_NODENAME', os.uname().nodename)} {outcome}", flush=True)
    sys.exit(0 if outcome == _OK else EXIT_FAILED)


def _check(job: Preflight, local: int, file: Path) -> None:
    """One rank's part; raises what is wrong."""
    device = _device(job, local)
    multiply(device)
    patience = datetime.timedelta(seconds=job.patience)
    if job.nodes == 1:  # of a job that may well have several
        rank, store = local, dist.FileStore(str(file), job.world)
    else:
        rank = job.node * job.ranks + local
        store = _meet(job, rank, patience)
    backend = "nccl" if job.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=job.world, timeout=patience)
    numbers = torch.full((1000 * _SIZE,), rank + 1.0, device=device)
    dist.all_reduce(numbers)
    total = job.world * (job.world + 1) / 2
    if not bool((numbers == total).all()):
        raise RuntimeError(f"{job.world} ranks added up to {numbers.unique().tolist()[:3]} instead of {total}")
    dist.destroy_process_group()


def _device(job: Preflight, local: int) -> torch.device:
    if job.device == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < job.ranks:
        raise RuntimeError(f"{job.ranks} GPU(s) were asked for, but torch can use {there}; see nvidia-smi there")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def multiply(device: torch.device) -> None:
    """Multiply two matrices on a device.

    Raises:
        RuntimeError: the product is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    # Small whole numbers: float32 and TF32 make no error, so that any difference is the hardware's.
    a, b = torch.randint(-8, 9, (2, _SIZE, _SIZE), generator=generator, dtype=torch.float32)
    if not torch.equal((a.to(device) @ b.to(device)).cpu().double(), a.double() @ b.double()):
        raise RuntimeError(f"the product of two matrices is wrong on {device}")


def _meet(job: Preflight, rank: int, patience: datetime.timedelta) -> dist.Store:
    """Where all ranks of all nodes find one another, once all are there."""
    host, _, port = str(job.address).rpartition(":")
    try:
        store = dist.TCPStore(
            host, int(port), job.world, is_master=rank == 0, timeout=patience, wait_for_workers=False
        )
        store.set(f"here/{rank}", "")
    except dist.DistError as error:
        raise RuntimeError(f"{job.address} cannot be reached ({_first_line(error)})") from error
    try:
        store.wait([f"here/{other}" for other in range(job.world)])
    except dist.DistError as error:
        raise NotAllCameError from error
    return store


def _outcome(job: Preflight, check: Callable[[int], None]) -> str:
    """Runs a check in a process for each rank of this node; how it went."""
    context = get_context("fork")  # torch is imported already, and a CUDA context is not made yet
    ranks: dict[connection.Connection, tuple[int, BaseProcess]] = {}
    for local in range(job.ranks):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(check, local, writer))
        process.start()
        writer.close()  # so that a rank that dies is seen to have closed it
        ranks[reader] = (local, process)
    try:
        return _first_trouble(dict(ranks), job.patience + _SPARE)
    finally:
        for _, process in ranks.values():
            process.kill()


def _report(check: Callable[[int], None], local: int, writer: connection.Connection) -> None:
    try:
        check(local)
        writer.send(_OK)
    except NotAllCameError:
        writer.send(f"{_OK} by itself, but not all nodes came")
    except Exception as error:
        writer.send(f"failed: rank {local}: {_first_line(error)}")


def _first_trouble(waiting: dict[connection.Connection, tuple[int, BaseProcess]], patience: float) -> str:
    """What the first rank to complain says: it has the cause, and the others may only miss it."""
    end = time.monotonic() + patience
    while waiting:
        ready = connection.wait([*waiting], timeout=max(0.0, end - time.monotonic()))
        if not ready:
            names = ", ".join(str(local) for local, _ in waiting.values())
            return f"failed: no answer from rank {names} in {patience:.0f} s"
        for reader in ready:
            outcome = _received(reader, *waiting.pop(reader))
            if outcome != _OK:
                return outcome
    return _OK


def _received(reader: connection.Connection, local: int, process: BaseProcess) -> str:
    try:
        return reader.recv()
    except EOFError:
        process.join()
        return f"failed: rank {local} died with exit code {process.exitcode}"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]


if __name__ == "__main__":
    main(tyro.cli(Preflight))
