"""Verdicts of past scans, in one SQLite file per user, so that a scan looks only at new or changed files.

The store is best effort: without it a scan takes longer, and nothing else changes. Several processes may use
it at once.
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Stamp = tuple[int, int]  # size in bytes, time of change in nanoseconds: a file with the same stamp is unchanged

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS verdicts (
        file BLOB, decoders TEXT, size INTEGER, mtime_ns INTEGER,
        width INTEGER, height INTEGER, content TEXT, pixels TEXT, reason TEXT,
        PRIMARY KEY (file, decoders)
    ) WITHOUT ROWID
"""
_SELECT = """
    SELECT file, size, mtime_ns, width, height, content, pixels, reason
    FROM verdicts WHERE decoders = ? AND file IN ({})
"""
_INSERT = "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ASKED_AT_ONCE = 500  # SQLite may be built to take no more than 999 values in a query
_PATIENCE_S = 20.0  # another scan holds the lock for a moment, to write what it found
# Not a database, a torn one, or one whose table is not ours: none of them mends itself.
_DAMAGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)


@dataclass(frozen=True)
class Verdict:
    """What the scan found out about one file; `reason` is empty where it is sound.

    Width and height are those of the upright image, in pixels; `content` is a hash of the file's bytes, `pixels`
    of the upright RGB image.
    """

    width: int = 0
    height: int = 0
    content: str = ""
    pixels: str = ""
    reason: str = ""
    passing: bool = False  # the trouble may pass (permissions, disk): look again next time


class VerdictStore(AbstractContextManager):
    """The verdicts that one set of decoders gave, by file; for one thread.

    Args:
        folder: where the database stands or will stand.
        decoders: what a verdict depends on besides the file; verdicts of other decoders are not seen.
    """

    def __init__(self, folder: Path, decoders: str) -> None:
        self.file = folder / "verdicts.sqlite"
        self.decoders = decoders
        self._database: sqlite3.Connection | None = None
        self._begun_anew = self._said = False
        self._readable = self._writable = self._attempt(lambda database: True) is not None

    def __exit__(self, *_: object) -> None:
        self._close()

    def look_up(self, stamps: Mapping[str, Stamp]) -> dict[str, Verdict]:
        """The known verdicts among some files, each with its stamp of today."""
        if not self._readable:
            return {}
        found = self._attempt(lambda database: dict(self._select(database, stamps)))
        self._readable = found is not None
        return found or {}

    def keep(self, verdicts: Mapping[str, Verdict], stamps: Mapping[str, Stamp]) -> None:
        """Store verdicts, except of files without a stamp and of trouble that may pass; durable on return."""
        rows = [
            (os.fsencode(file), self.decoders, *stamps[file], *astuple(verdict)[:-1])
            for file, verdict in verdicts.items()
            if file in stamps and not verdict.passing
        ]
        if rows and self._writable:
            self._writable = self._attempt(lambda database: _insert(database, rows)) is not None

    def _select(self, database: sqlite3.Connection, stamps: Mapping[str, Stamp]) -> Iterator[tuple[str, Verdict]]:
        names = map(os.fsencode, stamps)
        while asked := list(islice(names, _ASKED_AT_ONCE)):
            query = _SELECT.format(", ".join("?" * len(asked)))
            for name, size, mtime_ns, *fields in database.execute(query, (self.decoders, *asked)):
                file = os.fsdecode(name)
                if stamps[file] == (size, mtime_ns):
                    yield file, Verdict(*fields)

    def _attempt(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the database; None where that fails, which is said once."""
        try:
            self._database = self._database or self._open()
            return action(self._database)
        except sqlite3.DatabaseError as error:
            self._close()
            damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
            if damaged and not self._begun_anew and self._begin_anew(error):
                return self._attempt(action)
            self._say(str(error))
        except OSError as error:
            self._say(error.strerror or str(error))
        return None

    def _open(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.file, timeout=_PATIENCE_S)
        database.execute(_SCHEMA)
        return database

    def _begin_anew(self, error: sqlite3.DatabaseError) -> bool:
        self._begun_anew = True
        aside = self.file.with_suffix(".damaged")
        try:
            self.file.replace(aside)
        except OSError as trouble:
            self._say(f"{error}, and cannot be renamed: {trouble.strerror}")
            return False
        print(f"{self.file}: {error}; set aside as {aside.name}, scanning anew", file=sys.stderr)
        return True

    def _say(self, reason: str) -> None:
        if not self._said:
            print(
                f"scan results not cached in {self.file.parent}: {reason}; "
                "set XDG_CACHE_HOME to a folder that can be written",
                file=sys.stderr,
            )
        self._said = True

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None


def stamp_of(file: str) -> Stamp | None:
    """A file's stamp; None where there is no such file."""
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/anychannel` or `~/.cache/anychannel`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anychannel"


def _insert(database: sqlite3.Connection, rows: list[tuple]) -> bool:
    with database:  # one transaction: all rows or none
        database.executemany(_INSERT, rows)
    return True
