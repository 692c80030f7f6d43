"""Records: one JSON result with its provenance. Reports are made from these and from nothing else."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import DataError
from pipelines.files import write_atomically

FORMAT = 1
_PACKAGES = ("torch", "torchvision", "accelerate", "nvidia-dali-cuda130")


def provenance(program: str, processes: int) -> dict[str, Any]:
    """Where a result comes from: commit, command, time, hardware and versions.

    Args:
        program: the module that was run, e.g. "training.evaluate".
        processes: how many ranks it ran on.
    """
    return {
        "commit": commit(),
        "command": " ".join(["python -m", program, *map(_portable, sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(processes),
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def commit() -> str:
    """The project's commit, with "+changes" where its code differs from it; "unknown" outside a checkout."""
    root = Path(__file__).parent.parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "modeling", "pipelines", "training")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def hardware(processes: int) -> str:
    """The accelerators, one for each process, or the processor and the cores that this process may use."""
    if torch.cuda.is_available():
        return f"{processes}× {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0))
    return f"{_processor()}, {cores} core{'s' if cores > 1 else ''}"


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write a record atomically."""
    write_atomically(file, json.dumps({"format": FORMAT, **record}, indent=1, ensure_ascii=False) + "\n")


def read_record(file: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        DataError: the file is missing, is not JSON, or is of another format.
    """
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such record; make it with python -m training.evaluate {file.parent}"
        ) from None
    except ValueError as error:
        raise DataError(f"{file}: not a record ({error}); make it again with training.evaluate") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{file}: not a record of format {FORMAT}; make it again with training.evaluate")
    return record


def told_apart(names: Sequence[str], more: Sequence[str]) -> list[str]:
    """Names, where those that several share have something more of their own behind them: `run (folder)`."""
    shared = Counter(names)
    return [f"{name} ({m})" if shared[name] > 1 else name for name, m in zip(names, more, strict=True)]


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _portable(argument: str) -> str:
    """An argument of a command, without the folders of one machine, and quoted where a shell needs it."""
    path = Path(argument)
    return shlex.quote(path.name if path.is_absolute() else argument)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
