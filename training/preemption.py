"""Stopping early without losing work: a stop file in the run directory, seen by all ranks at the same step.

A batch script that is about to lose its nodes touches the file; signals do not reach workers reliably
(launchers kill on them, NCCL catches USR1).
"""

from pathlib import Path

from training.runtime import Runtime

STOP_FILE = "STOP"


class StopFile:
    """Looks for `RUN_DIR/STOP` at step boundaries."""

    def __init__(self, run_dir: Path, runtime: Runtime) -> None:
        self._file, self._runtime = run_dir / STOP_FILE, runtime
        if runtime.is_main:
            self._file.unlink(missing_ok=True)  # one left over from the run that this one continues

    def requested(self) -> bool:
        """Whether to stop now; the same answer on every rank, even where a file system lags."""
        return self._runtime.any(self._file.exists())
