"""Rates of several contenders, measured in turns in one process: only their ratios are worth keeping.

Each round times every contender once, so that whatever slows the machine down for a while meets them alike; a
ratio is taken within a round, and the median over the rounds is told with its spread.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

Clock = Literal["wall", "processor"]
Contender = Iterator[int]  # endless; each step works through a batch and yields how many images it held
WARM_UP = 8  # batches: more than any contender prefetches, so that none starts with a full store


def measure(
    contenders: Mapping[str, Callable[[], Contender]],
    *,
    rounds: int,
    seconds: float,
    warm_up: int = WARM_UP,
    clock: Clock = "wall",
) -> dict[str, list[float]]:
    """Images per second of each contender in each round.

    Args:
        contenders: name → what starts it; one at a time is alive, so that none works in another's time.
        rounds: how often each is timed.
        seconds: how long it is timed in a round, warm-up not counted.
        warm_up: batches before that.
        clock: what counts as time.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, start in contenders.items():
            gc.collect()  # networks refer to themselves, so that the last one may still be there
            rates[name].append(_rate(start(), seconds, warm_up, clock))
            print(f"round {turn + 1}/{rounds}  {name}: {rates[name][-1]:.0f} images/s", flush=True)
    return rates


def _rate(contender: Contender, seconds: float, warm_up: int, clock: Clock) -> float:
    for _ in itertools.islice(contender, warm_up):
        pass
    wait_for_gpu()
    start, images = now(clock), 0
    while now(clock) - start < seconds:
        images += next(contender)
    wait_for_gpu()
    return images / (now(clock) - start)


def now(clock: Clock) -> float:
    """Seconds on a clock: the wall's, or that of the processor, which stands still while others have it."""
    return time.perf_counter() if clock == "wall" else time.process_time()


def wait_for_gpu() -> None:
    """Until all that was asked of it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(rates: Mapping[str, list[float]], baseline: str) -> dict[str, dict[str, Any]]:
    """For each contender its median rate with minimum and maximum, and likewise its ratio to the baseline's."""
    ratios = {
        name: [ours / theirs for ours, theirs in zip(row, rates[baseline], strict=True)]
        for name, row in rates.items()
    }
    return {name: {"images_per_s": _spread(rates[name]), "ratio": _spread(ratios[name])} for name in rates}


def shares(rates: Mapping[str, list[float]], whole: str) -> dict[str, dict[str, float]]:
    """For each contender its time in percent of the whole's: median, minimum and maximum.

    The whole is one of the contenders, and the others are parts of its work.
    """
    return {
        name: _spread([100 * theirs / ours for ours, theirs in zip(row, rates[whole], strict=True)])
        for name, row in rates.items()
        if name != whole
    }


def show(title: str, rows: Mapping[str, Mapping[str, Any]], baseline: str) -> None:
    """Print a summary as a table."""
    table = Table(title=title)
    table.add_column("")
    for column in ("images/s", f"÷ {baseline}", "min – max"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        ratio = row["ratio"]
        spread = f"{ratio['min']:.2f} – {ratio['max']:.2f}"
        table.add_row(name, f"{row['images_per_s']['median']:.0f}", f"{ratio['median']:.2f}", spread)
    Console().print(table)


def show_shares(title: str, rows: Mapping[str, Mapping[str, float]], whole: str) -> None:
    """Print shares as a table."""
    table = Table(title=title)
    table.add_column("")
    for column in (f"% of a {whole}", "min – max"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, f"{row['median']:.2f}", f"{row['min']:.2f} – {row['max']:.2f}")
    Console().print(table)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
