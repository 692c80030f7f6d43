"""Checkpoints that survive a kill at any moment, and weights that travel.

A checkpoint is a folder `checkpoints/step-00001234/` of `model.safetensors`, `state.pt` and `digest.json`. It is
written under a temporary name, flushed to disk, renamed, and only then does the file `LAST` point to it.
Loading never unpickles objects: safetensors, and `torch.load(weights_only=True)`.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.errors import DataError
from pipelines.files import flush, write_atomically


class Checkpoints:
    """The checkpoints of one run directory; `LAST` and `BEST` there hold the names of two of them.

    Args:
        folder: where they lie; made on the first save.
        keep: how many of the newest are kept, beside the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], best: bool = False) -> Path:
        """Write a checkpoint, make it the last, and the best where it is, and delete the oldest beyond `keep`.

        Raises:
            DataError: it could not be written, for instance because the disk is full; the one before stands.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        with _writing(final, temporary):
            self._write(temporary, final, weights, state)
            if best:
                write_atomically(self.folder / "BEST", final.name)
        self._prune(step)
        return final

    def _write(self, temporary: Path, final: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_contiguous(weights), temporary / "model.safetensors")
        torch.save(state, temporary / "state.pt")
        digests = {name: _digest(temporary / name) for name in ("model.safetensors", "state.pt")}
        (temporary / "digest.json").write_text(json.dumps(digests))
        for file in temporary.iterdir():
            flush(file)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush(self.folder)
        write_atomically(self.folder / "LAST", final.name)

    def _prune(self, step: int) -> None:
        """Keep the newest; those of later steps are damaged, or the run would have gone on from them."""
        older = [folder for folder in self._all() if int(folder.name.removeprefix("step-")) <= step]
        for folder in {*self._all()} - {*older[-self.keep :], self._named("BEST")}:
            shutil.rmtree(folder, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and state of the newest sound checkpoint, or None where there is none at all.

        Raises:
            DataError: there are checkpoints, but every one is damaged.
        """
        candidates = self._newest_first()
        for folder in candidates:
            reason = _damage(folder)
            if not reason:
                state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
                return load_file(folder / "model.safetensors"), state
            print(f"checkpoint {folder} is damaged ({reason}); trying the one before", file=sys.stderr)
        if candidates:
            raise DataError(f"{self.folder}: every checkpoint is damaged; start a new run with --run-dir")
        return None

    def _newest_first(self) -> list[Path]:
        """LAST first, where it points to something; then the others from new to old."""
        last = self._named("LAST")
        newest_first = self._all()[::-1]
        return sorted(newest_first, key=lambda folder: folder != last)  # stable: only moves LAST to the front

    def _named(self, pointer: str) -> Path | None:
        """What one of the files `LAST` and `BEST` points to, if it is there."""
        file = self.folder / pointer
        return self.folder / file.read_text().strip() if file.is_file() else None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-????????"))


def save_weights(file: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write weights for others to use, atomically, with their recipe and vocabulary in the metadata.

    Raises:
        DataError: they could not be written, for instance because the disk is full.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    with _writing(file, temporary):
        save_file(_contiguous(weights), temporary, metadata=metadata)
        flush(temporary)
        temporary.replace(file)


def load_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not file.is_file():
        raise DataError(f"{file}: not there; finish the training first (training.train … --resume)")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{file}: damaged ({error}); train again or restore it") from None


@contextmanager
def _writing(final: Path, temporary: Path) -> Iterator[None]:
    """Around the writing of a file or folder under a temporary name, which is taken away where that fails."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk has many names
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise DataError(
            f"{final} could not be written ({' '.join(str(error).split())[:200]}); make room, "
            "then go on from the checkpoint before it with --resume"
        ) from error


def _damage(folder: Path) -> str:
    """Why a checkpoint cannot be used, or an empty string."""
    try:
        digests = json.loads((folder / "digest.json").read_text())
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                return f"{name} has changed"
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return ""


def _contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors takes: on the CPU, in plain memory order, sharing nothing."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
