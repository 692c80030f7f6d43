"""A profiler window on demand: what the device and the processor did in a few steps, as a trace to look at."""

import gzip
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipelines.files import write_atomically
from training.config import Schedule
from training.monitor import Monitor

PROFILE_FILE = "PROFILE"
STEPS = 5  # that a file asks for
_ROWS = 15  # of the table of operations


class Profiler:
    """Records steps that a recipe names, or the next ones once somebody touches `RUN_DIR/PROFILE`.

    Args:
        monitor: its run directory gets `profile/step-FIRST-LAST.trace.json.gz` and a table of operations beside
            it; only the rank that writes records, since one is enough.
        schedule: names a window, if any, and how often to look for the file.
    """

    def __init__(self, monitor: Monitor, schedule: Schedule) -> None:
        self._run_dir, self._file, self._active = monitor.run_dir, monitor.run_dir / PROFILE_FILE, monitor.active
        self._window, self._look_steps = schedule.window, schedule.log_steps
        self._recording: profile | None = None
        self._step = 0
        if self._active:
            self._file.unlink(missing_ok=True)  # one left over from the run that this one continues

    def after(self, step: int) -> None:
        """To be called after each step, and before the first: begin or end where it is time to."""
        if not self._active:
            return
        self._step = step
        if self._recording and step + 1 not in self._window:
            self.close()
        if not self._recording and step % self._look_steps == 0 and self._file.exists():
            self._file.unlink(missing_ok=True)
            self._window = range(step + 1, step + 1 + STEPS)
        if not self._recording and self._window and step + 1 == self._window.start:
            self._begin()

    def _begin(self) -> None:
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._recording = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._recording.start()

    def close(self) -> None:
        """Write what there is; also where the training ends within a window."""
        if not self._recording:
            return
        recorded, self._recording = self._recording, None
        recorded.stop()
        first, last = self._window.start, self._step
        name = f"step-{first:08d}-{last:08d}"
        folder = self._run_dir / "profile"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{name}.txt", _table(recorded))
        write_atomically(folder / f"{name}.trace.json.gz", _trace(recorded))
        print(
            f"recorded steps {first} to {last}; {folder / name}.txt names the longest operations; to see all, "
            f"open {name}.trace.json.gz at https://ui.perfetto.dev (it stays in the browser)",
            flush=True,
        )


def _table(recorded: profile) -> str:
    """The operations that took longest, on the GPU where there is one."""
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=order, row_limit=_ROWS)


def _trace(recorded: profile) -> bytes:
    """Everything, as compressed JSON in Chrome's trace format."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        return gzip.compress(file.read_bytes())
