"""Copies of packed folders on a node's own disk: `python -m pipelines.packed stage PACKED TO`."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.class_names import FILE
from pipelines.errors import DataError
from pipelines.files import check_room, disk_trouble, fresh
from pipelines.progress import track
from pipelines.samples import content_hash
from pipelines.shards import RECORD, Record, read_record

_BLOCK = 16 * 10**6  # bytes copied at once


def stage(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKED")],
    to: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TO")],
) -> Path:
    """Copy a packed folder to a node's own disk, once for all processes there; prints where it lies.

    A copy that stands is used again, and one that was cut short is completed. Nothing deletes it: most clusters
    clear such disks after a job.

    Args:
        folder: Made by `pack`.
        to: A folder on the node's own disk, e.g. /local/scratch.

    Raises:
        DataError: the folder is not a packed one, or there is no room for it.
    """
    record = read_record(folder)
    _check_disk(to)
    copy = to / f"anychannel-{content_hash(record.dump())[:16]}"
    with disk_trouble(copy), _taking_turns(to / f"{copy.name}.lock"):
        missing = _missing(folder, copy, record)
        check_room(to, sum((folder / name).stat().st_size for name in missing))
        (copy / "shards").mkdir(parents=True, exist_ok=True)
        for name in track(missing, len(missing), f"copying {folder} to {copy}"):
            with (folder / name).open("rb") as source, fresh(copy / name) as out:
                shutil.copyfileobj(source, out, _BLOCK)
    return copy


def _missing(folder: Path, copy: Path, record: Record) -> list[str]:
    """Names of the files that a copy lacks, or has cut short; the record last, since it says that all is there."""
    shards = [f"shards/{tar.stem}.{kind}" for kind in ("tar", "idx", "tsv") for tar in record.all_tars(folder)]
    classes = [FILE] if (folder / FILE).exists() else []
    names = [*shards, *classes, *(f"{name}.txt" for name in record.splits), RECORD]
    return [name for name in names if _size(copy / name) != (folder / name).stat().st_size]


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def _check_disk(to: Path) -> None:
    """Make a folder, but not the one that it stands in: a mistyped disk must not become one on the system's."""
    try:
        to.mkdir(exist_ok=True)
    except OSError as error:
        node = os.uname().nodename
        raise DataError(f"{to}: {error.strerror} on {node}; name a folder on that node's own disk") from None


@contextlib.contextmanager
def _taking_turns(lock: Path) -> Iterator[None]:
    """Of all processes of this node, those that name the same file, one at a time."""
    with lock.open("a") as file:  # closing it, as the end of the process does, lets the next one in
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to copy to {lock.parent}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
