"""Runs that fail while others go on."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from pipelines.errors import DataError
from training.config import ConfigError
from training.runtime import FailedElsewhere, Runtime

T = TypeVar("T")


class FailedRunsError(RuntimeError):
    """Some runs failed; the message says which."""


class Failures:
    """Which run directories failed, the same on every rank; each is told in one line when it happens.

    Args:
        runtime: what the ranks do together.
        run_dirs: all of them. A failure of the only one is raised at once.
    """

    def __init__(self, runtime: Runtime, run_dirs: tuple[Path, ...]) -> None:
        self.runtime, self.run_dirs = runtime, run_dirs
        self.failed: set[Path] = set()

    def attempt(self, work: Callable[[], T], *run_dirs: Path) -> T | None:
        """Let every rank do some work for runs; None where it failed on any of them."""
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others go on
            failure = error
        first = self._first_to_fail(failure)
        if first is None:
            return result
        self._note(failure if first == self.runtime.rank else FailedElsewhere(f"rank {first} failed"), run_dirs)
        return None

    def left(self, run_dirs: Iterable[Path]) -> list[Path]:
        """Those of some runs that have not failed."""
        return [run_dir for run_dir in run_dirs if run_dir not in self.failed]

    def _first_to_fail(self, failure: Exception | None) -> int | None:
        """The lowest rank with a failure of its own; it speaks for all."""
        failed = torch.zeros(self.runtime.world)
        failed[self.runtime.rank] = failure is not None and not isinstance(failure, FailedElsewhere)
        elsewhere = self.runtime.any(failure is not None)
        ranks = self.runtime.sum(failed).nonzero().flatten().tolist()
        return ranks[0] if ranks else 0 if elsewhere else None

    def _note(self, error: Exception, run_dirs: Sequence[Path]) -> None:
        """Take down that runs failed, and say why where this rank knows."""
        expected = isinstance(error, ConfigError | DataError | OSError | FailedElsewhere | FailedRunsError)
        text = str(error) if expected else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if len(self.run_dirs) == 1 and expected:
            raise error
        if len(self.run_dirs) == 1:
            raise FailedRunsError(f"{run_dirs[0]}: {text}") from error
        self.failed.update(run_dirs)
        if not isinstance(error, FailedElsewhere):
            print(f"error: {', '.join(map(str, run_dirs))}: {text}", file=sys.stderr, flush=True)

    def conclude(self) -> None:
        """End the program where runs failed.

        Raises:
            FailedRunsError: on the first rank; FailedElsewhere on the others.
        """
        if self.failed:
            names = ", ".join(str(run_dir) for run_dir in self.run_dirs if run_dir in self.failed)
            rest = "; the others are done" if self.left(self.run_dirs) else ""
            said = f"{len(self.failed)} of {len(self.run_dirs)} runs failed: {names}{rest}"
            raise FailedRunsError(said) if self.runtime.is_main else FailedElsewhere(said)
