"""Files that appear under their names only when they are whole, and outlive a power failure."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import DataError

GB = 10**9


@contextlib.contextmanager
def fresh(file: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which takes its own once all of it is on disk."""
    part = file.with_name(f".{file.name}.tmp")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(file.parent)


def write_atomically(file: Path, data: str | bytes) -> None:
    """Write a file so that its name never stands for half of it; a text as UTF-8."""
    with fresh(file) as out:
        out.write(data.encode() if isinstance(data, str) else data)


def flush(path: Path) -> None:
    """Send a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Keep other processes out of what a path stands for, until this one is done with it or ends.

    Args:
        path: a folder, or a file, which is made where there is none and stays.
        busy: what to tell whoever comes second.

    Raises:
        DataError: another process is there.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, path, busy)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, busy: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(busy) from None
    except OSError as error:
        remedy = "see that one process at a time works there"
        print(f"note: {path} cannot be locked ({error.strerror}); {remedy}", file=sys.stderr)


@contextlib.contextmanager
def disk_trouble(file: Path) -> Iterator[None]:
    """Turn trouble with the disk into one line, for programs that can go on where they were stopped."""
    try:
        yield
    except OSError as error:
        name, reason = error.filename or file, error.strerror or error
        raise DataError(f"{name}: {reason}; see to the disk, then the same command goes on") from None


def check_room(folder: Path, needed: float) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        DataError: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{folder}: needs {needed / GB:.2f} GB more, {free / GB:.2f} GB are free; make room")
