"""Worlds of processes that are told over pipes what to do, so that several can take turns in a measurement."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

Answer = Callable[..., Any]  # what a process does when it is asked
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class _Failure:
    """What a process answers when it fails."""

    traceback: str


class World:
    """Processes of one thread each; more than one see one another as the ranks of a launcher do.

    Args:
        count: how many.
        make: called in each of them with `arguments`; what it returns answers the questions.
        first_gpu: where there are GPUs, the first process gets this one, the next one the next.
    """

    def __init__(self, count: int, make: Callable[..., Answer], *arguments: Any, first_gpu: int = 0) -> None:
        context = multiprocessing.get_context("forkserver")  # imports once, and knows nothing of this process
        context.set_forkserver_preload([__name__, make.__module__])
        port = _free_port()
        self._pipes, self._processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            environment = _environment(rank, count, port, first_gpu)
            process = context.Process(target=_serve, args=(theirs, environment, make, arguments), daemon=True)
            process.start()
            theirs.close()  # so that its end is noticed here
            self._pipes.append(ours)
            self._processes.append(process)

    def close(self) -> None:
        """Let the processes end, and end those that do not."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            process.kill()
            process.join()


def ask(worlds: list[World], *question: Any) -> list[Any]:
    """Put a question to all processes of some worlds at the same time; their answers, in order.

    Raises:
        RuntimeError: one of them failed; the message has what it said.
    """
    pipes = [pipe for world in worlds for pipe in world._pipes]
    try:
        for pipe in pipes:
            pipe.send(question)
        answers = [pipe.recv() for pipe in pipes]
    except (EOFError, OSError):
        raise RuntimeError("a rank of the benchmark failed without a word; was it killed?") from None
    failures = [answer.traceback for answer in answers if isinstance(answer, _Failure)]
    if failures:  # all of them: ranks that waited for the one that failed have something to say too
        raise RuntimeError("a rank of the benchmark failed:\n" + "\n".join(failures))
    return answers


@contextmanager
def closing(worlds: list[World]) -> Iterator[list[World]]:
    """End the worlds after the block."""
    try:
        yield worlds
    finally:
        for world in worlds:
            world.close()


def _serve(pipe: Connection, environment: dict[str, str], make: Callable[..., Answer], arguments: tuple) -> None:
    for name in _LAUNCHED:
        os.environ.pop(name, None)  # of a launcher that started the benchmark itself
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        answer = make(*arguments)
        while True:
            pipe.send(answer(*pipe.recv()))
    except EOFError:
        return  # the benchmark is over
    except Exception:
        pipe.send(_Failure(traceback.format_exc()))
    finally:
        pipe.close()


def _environment(rank: int, count: int, port: int, first_gpu: int) -> dict[str, str]:
    if count == 1:
        return {"CUDA_VISIBLE_DEVICES": str(first_gpu)} if torch.cuda.is_available() else {}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {name: str(value) for name, value in place.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
