"""Ranks as children of a fork server that has imported everything: a run costs seconds, not imports."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.monitor import read_metrics

ROOT = Path(__file__).parents[1]
OURS = (str(ROOT / "training"), str(ROOT / "pipelines"))
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["processes", "training.train", "training.evaluate", "torch.utils.tensorboard", "timm.optim"]
)


@dataclass(frozen=True)
class Fault:
    """A signal that a process sends to itself when it makes its `call`-th call of a function of ours, from 1.

    With `function`, a qualified name, only calls of that one count.

    Calls, not seconds: the same moment on every machine, and none between two lines is out of reach.
    """

    call: int
    signal: int = signal.SIGKILL
    function: str = ""


def train(args: list[str]) -> None:
    """What `python -m training.train ARGS` does."""
    from training import train

    train.main(train.parse(args))


def evaluate(args: list[str]) -> None:
    """What `python -m training.evaluate ARGS` does."""
    from training import evaluate

    evaluate.main(evaluate.parse(args))


def run_ranks(
    args: list[str],
    log: Path,
    faults: dict[int, Fault] | None = None,
    world: int = 1,
    main: Callable[[list[str]], None] = train,
) -> list[int]:
    """Run a program in a world of its own; exit statuses by rank, negative for a signal.

    Where one rank dies the others are left to end by themselves, as on machines of their own. A rank that a fault
    has stopped is ended when the others are through.

    Args:
        args: of the program.
        log: gets what all ranks print.
        faults: by rank.
        world: number of ranks.
        main: the program, a function that a child can import.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(world):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank} if world > 1 else {}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        fault = (faults or {}).get(rank)
        ranks.append(_FORKED.Process(target=_run, args=(main, args, log, environment, fault)))
    for process in ranks:
        process.start()
    stopped = {rank for rank, fault in (faults or {}).items() if fault.signal == signal.SIGSTOP}
    try:
        for rank, process in enumerate(ranks):
            if rank not in stopped:
                process.join(timeout=300)
                assert process.exitcode is not None, f"rank {rank} goes on for ever: {log.read_text()[-2000:]}"
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def calls_of(args: list[str], log: Path) -> list[str]:
    """What functions of ours a run of one rank calls, one after the other, as `file:function`."""
    ours, theirs = _FORKED.Pipe()
    process = _FORKED.Process(target=_listen, args=(args, log, theirs))
    process.start()
    theirs.close()
    calls = ours.recv()
    process.join()
    assert process.exitcode == 0, log.read_text()[-2000:]
    return calls


def assert_nothing_lost(run: Path, whole: Path) -> None:
    """A run that was disturbed ended like one that was not, and left nothing lying about."""
    ours, theirs = load_file(run / "model.safetensors"), load_file(whole / "model.safetensors")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    steps = [(row["step"], sorted(row)) for row in read_metrics(run)]
    assert steps == [(row["step"], sorted(row)) for row in read_metrics(whole)]  # nothing twice, nothing missing
    assert board_steps(run) == board_steps(whole)
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def board_steps(run: Path) -> dict[str, list[int]]:
    """What TensorBoard shows of a run: by tag the steps of its curve or of its pictures."""
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = board.Tags()
    curves = {tag: [event.step for event in board.Scalars(tag)] for tag in tags["scalars"]}
    return curves | {tag: [event.step for event in board.Images(tag)] for tag in tags["images"]}


def _listen(args: list[str], log: Path, out: Any) -> None:
    calls: list[str] = []
    _watch(lambda frame: calls.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}"))
    _guarded(train, args, log)
    sys.setprofile(None)
    out.send(calls)


def _run(main: Callable, args: list[str], log: Path, environment: dict[str, str], fault: Fault | None) -> None:
    os.environ.clear()  # the fork server's are those of its first caller
    os.environ.update(environment)
    if fault:
        left = fault.call

        def count(frame: FrameType) -> None:
            nonlocal left
            left -= fault.function in ("", frame.f_code.co_qualname)
            if not left:
                os.kill(os.getpid(), fault.signal)

        _watch(count)
    _guarded(main, args, log)


def _watch(act: Callable[[FrameType], None]) -> None:
    """Have `act` see each call of a function of ours, in this thread."""

    def see(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            act(frame)

    sys.setprofile(see)


def _guarded(main: Callable[[list[str]], None], args: list[str], log: Path) -> None:
    from training.cli import run_program

    with log.open("a") as file:  # what libraries print, too
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    torch.set_num_threads(1)
    run_program(lambda: main(args))
