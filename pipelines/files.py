"""Files that appear under their names only when they are whole, and outlive a power failure."""

import contextlib
import os
import shutil
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
