"""What people look at while a run goes on: TensorBoard, JSON lines, and lines on the terminal."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from modeling.channels import ChannelSet, Vocabulary
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, RGB
from pipelines.files import write_atomically
from training.metrics import Score


class Monitor:
    """Writes a run's measurements; on ranks other than the first it writes nothing.

    Args:
        run_dir: gets `metrics.jsonl` and `tensorboard/`.
        active: whether this is the rank that writes.
        step: step that the run continues from; what a killed run wrote beyond it is dropped.
    """

    def __init__(self, run_dir: Path, active: bool, step: int = 0) -> None:
        self._lines = run_dir / "metrics.jsonl"
        self._board = None
        if active:
            from torch.utils.tensorboard import SummaryWriter  # imported late: it takes a second

            self._drop_after(step)
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float], **extra: Any) -> None:
        """Record scalars by tag, e.g. "train/loss"; `extra` goes into the JSON line alone."""
        if self._board is None:
            return
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)
        with self._lines.open("a") as file:
            file.write(json.dumps({"step": step, **extra, **values}) + "\n")

    def sweep(self, step: int, split: str, scores: Mapping[str, Score], **extra: Any) -> None:
        """Record top-1 accuracy by channel set as "val/top1/RG", …"""
        self.scalars(step, {f"{split}/top1/{name}": score.accuracy for name, score in scores.items()}, **extra)

    def text(self, tag: str, text: str) -> None:
        """Record a text, such as the recipe."""
        if self._board is not None:
            self._board.add_text(tag, f"```\n{text}\n```")

    def images(self, tag: str, images: Tensor, vocabulary: Vocabulary, step: int = 0) -> None:
        """Record a grid with a row per image and a column per channel set."""
        if self._board is not None:
            self._board.add_image(tag, channel_grid(images, vocabulary), step)

    def close(self) -> None:
        """Flush everything to disk."""
        if self._board is not None:
            self._board.close()

    def _drop_after(self, step: int) -> None:
        if self._lines.is_file():
            kept = [row for row in _rows(self._lines) if step and row["step"] <= step]
            write_atomically(self._lines, "".join(json.dumps(row) + "\n" for row in kept))


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


def channel_grid(images: Tensor, vocabulary: Vocabulary, rows: int = 6) -> Tensor:
    """Images as each channel set shows them, missing channels black: 3×(rows·H)×(sets·W), 0 … 1.

    Args:
        images: N×C×H×W, normalised.
        vocabulary: R, G and B are shown in colour; of other vocabularies each channel by itself, in gray.
        rows: images shown, at most.
    """
    if vocabulary != RGB:
        gray = (images[:rows].float() * fmean(IMAGENET_STD) + fmean(IMAGENET_MEAN)).clamp(0, 1)
        return torch.cat([torch.cat(list(band), dim=0) for band in gray.unbind(1)], dim=1).expand(3, -1, -1)
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    shown = (images[:rows].float() * std + mean).clamp(0, 1)
    columns = []
    for chosen in ChannelSet.all_of(vocabulary):
        mask = torch.zeros(1, len(vocabulary), 1, 1, device=images.device)
        mask[:, chosen.indices(vocabulary)] = 1
        columns.append(torch.cat(list(shown * mask), dim=1))
    return torch.cat(columns, dim=2)
