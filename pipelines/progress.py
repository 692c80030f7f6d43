"""Progress a person can follow: a bar with time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
What = str | Callable[[], str]  # a function where the description changes on the way
LINE_EVERY_S = 15.0


def track(items: Iterable[T], total: int, what: What, *, quiet: bool = False) -> Iterator[T]:
    """Pass items through and report on stderr how many of `total` went by and how long the rest takes.

    Args:
        items: whatever is worked through.
        total: how many there will be.
        what: what is being done, e.g. "scanning train.txt".
        quiet: report nothing (ranks other than the first).
    """
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, total, what)
    else:
        yield from _lines(items, total, what)


def _bar(items: Iterable[T], total: int, what: What) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(_text(what), total=total)
        for item in items:
            yield item
            progress.update(task, advance=1, description=_text(what))


def _lines(items: Iterable[T], total: int, what: What) -> Iterator[T]:
    start = told = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - told >= LINE_EVERY_S:
            told = now
            left = (now - start) / done * (total - done)
            print(f"{_text(what)}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)


def _text(what: What) -> str:
    return what if isinstance(what, str) else what()
