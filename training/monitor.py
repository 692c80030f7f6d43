"""What people look at while a run goes on: TensorBoard, JSON lines, and lines on the terminal."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from pipelines.files import write_atomically
from training.evaluation.metrics import Score

# The tab "custom scalars": what the tags of a chart's curves begin with, by group and title.
LAYOUT = {
    "validation": {
        "top-1 accuracy by channel set, 0 to 1": ["Multiline", ["val/top1/"]],
        "best, mean and worst channel set, 0 to 1": ["Multiline", ["accuracy/"]],
    },
    "training": {
        "loss, nats": ["Multiline", ["train/loss"]],
        "learning rate": ["Multiline", ["train/lr"]],
        "norm of the gradient": ["Multiline", ["train/grad_norm"]],
    },
    "speed": {
        "images per second, all ranks": ["Multiline", ["train/images_per_s"]],
        "waiting for data, part of the time": ["Multiline", ["train/data_wait"]],
        "memory of the first rank, GiB": ["Multiline", ["memory/"]],
    },
}


class Monitor:
    """Writes a run's measurements; on ranks other than the first it writes nothing.

    Args:
        run_dir: gets `metrics.jsonl` and `tensorboard/`.
        active: whether this is the rank that writes.
        step: step that the run continues from; what a killed run wrote beyond it is dropped.
    """

    def __init__(self, run_dir: Path, active: bool, step: int = 0) -> None:
        self.run_dir, self.active = run_dir, active
        self._lines = run_dir / "metrics.jsonl"
        self._board = None
        if active:
            from torch.utils.tensorboard import SummaryWriter  # imported late: it takes a second

            self._drop_after(step)
            # Of a run that left no checkpoint, nothing counts.
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else 0)

    def scalars(self, step: int, values: Mapping[str, float], **extra: Any) -> None:
        """Record scalars by tag, e.g. "train/loss"; `extra` goes into the JSON line alone."""
        if self._board is None:
            return
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)
        with self._lines.open("a") as file:
            file.write(json.dumps({"step": step, **extra, **values}) + "\n")

    def sweep(self, step: int, split: str, scores: Mapping[str, Score], **extra: Any) -> None:
        """Record top-1 accuracy by channel set as "val/top1/RG", …, and what the table of runs shows first."""
        accuracies = {f"{split}/top1/{name}": score.accuracy for name, score in scores.items()}
        self.scalars(step, accuracies, **extra)
        if self._board is not None:
            for name, of in {"best_set": max, "mean": fmean, "worst_set": min}.items():
                self._board.add_scalar(f"accuracy/{name}", of(accuracies.values()), step)

    def begin(self, recipe: str, settings: Mapping[str, Any]) -> None:
        """Record what the run is.

        Args:
            recipe: the text of `config.yaml`.
            settings: by name, for the table of runs.
        """
        if self._board is not None:
            self._board.add_text("recipe", f"```yaml\n{recipe}\n```")
            self._board.add_custom_scalars(LAYOUT)
            self._session({name: _plain(value) for name, value in settings.items()}, ended=False)

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """Record a picture, H×W×3, uint8."""
        if self._board is not None:
            self._board.add_image(tag, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring to disk what was recorded so far, so that a run that goes on from here lacks nothing."""
        if self._board is not None:
            self._board.flush()

    def close(self, finished: bool = False) -> None:
        """Flush everything to disk, and mark a finished run as such in the table of runs."""
        if self._board is not None:
            if finished:
                self._session({}, ended=True)
            self._board.close()

    def _session(self, settings: Mapping[str, float | str], *, ended: bool) -> None:
        """Record the run's row in the table of runs, or that it has ended.

        `SummaryWriter.add_hparams` would make a run of its own for it, and list only the columns of the first run.
        """
        from torch.utils.tensorboard.summary import hparams

        _, begin, end = hparams(dict(settings), {})
        self._board.file_writer.add_summary(end if ended else begin)

    def _drop_after(self, step: int) -> None:
        if self._lines.is_file():
            kept = [row for row in _rows(self._lines) if step and row["step"] <= step]
            write_atomically(self._lines, "".join(json.dumps(row) + "\n" for row in kept))


def _plain(value: Any) -> float | str:
    """A value as the table of runs wants it."""
    return value if type(value) in (int, float) else str(value)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, oldest first; none where the file is missing."""
    file = run_dir / "metrics.jsonl"
    return _rows(file) if file.is_file() else []


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a last one torn by a crash is dropped."""
    rows = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
