"""Answers on disk while an evaluation goes on, so that one that was killed goes on where it stood."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipelines.files import disk_trouble, write_atomically


@dataclass(frozen=True)
class Partial:
    """The parts that are there of a model's answers, each a file in a folder; the first rank alone looks into it.

    Attributes:
        folder: `RUN_DIR/sweep-SPLIT.partial`.
        question: what identifies the answers: weights, data, channel sets, precision, …; parts of another question
            count for nothing.
    """

    folder: Path
    question: str

    def save(self, first: int, answers: Tensor, seconds: float) -> None:
        """Keep the answers to images `first` and following, looks×6×N; seconds is what they took."""
        self.folder.mkdir(exist_ok=True)
        told = {"question": self.question, "first": first, "seconds": seconds}
        data = safetensors.torch.save({"answers": answers.cpu()}, {"part": json.dumps(told)})
        file = self.folder / f"{first:012d}.safetensors"
        with disk_trouble(file):
            write_atomically(file, data)

    @property
    def done(self) -> int:
        """Images from the list's first on that have answers, without a gap."""
        done = 0
        for _, first, count, _ in self._parts():
            if first <= done:
                done = max(done, first + count)
        return done

    def read(self) -> tuple[Tensor, float]:
        """The answers to all images, looks×6×N, and the seconds that they took."""
        parts, total = self._parts(), self.done
        answers, seconds = None, 0.0
        for file, first, count, took in parts:
            part = safetensors.torch.load_file(file)["answers"]
            answers = torch.zeros(*part.shape[:2], total) if answers is None else answers
            answers[:, :, first : first + count] = part  # parts of runs on other numbers of ranks may overlap
            seconds += took
        return answers, seconds

    def remove(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _parts(self) -> list[tuple[Path, int, int, float]]:
        """File, first image, images and seconds of each part, first images first; others are taken away."""
        found = []
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as opened:
                    told = json.loads(opened.metadata()["part"])
                    count = opened.get_slice("answers").get_shape()[2]
            except (SafetensorError, KeyError, TypeError, ValueError):
                told = {"question": None}
            if told["question"] == self.question:
                found.append((file, told["first"], count, told["seconds"]))
            else:
                file.unlink()
        return found
