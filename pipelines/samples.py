"""Samples: the sound images of a list, and where their bytes lie. What the scan hands to the loaders."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.errors import DataError


class Shards(Protocol):
    """Encoded images in a few large files instead of one file each; see `pipelines.packed`."""

    def read(self, i: int) -> np.ndarray:
        """Encoded bytes of the i-th sample, uint8."""
        ...

    def name(self, i: int) -> str:
        """The large file that holds the i-th sample."""
        ...

    def take(self, indices: np.ndarray) -> "Shards":
        """Only some of the samples, in the order of `indices`."""
        ...


@dataclass(frozen=True)
class Samples:
    """The sound images of a manifest: all that a loader needs.

    Attributes:
        root: folder that the paths are relative to.
        paths: as in the list, N of them.
        labels: (N,) int64.
        sizes: (N, 2) int32, width and height of the upright image in pixels.
        contents: hash of each file's bytes, hexadecimal.
        pixels: hash of each image's upright RGB pixels, hexadecimal.
        classes: number of classes.
        quarantined: refused path → reason.
        shards: where the bytes lie, unless each image is a file under `root`.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    contents: list[str]
    pixels: list[str]
    classes: int
    quarantined: Mapping[str, str] = field(default_factory=dict)
    shards: Shards | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def files(self) -> list[str]:
        """Absolute file names."""
        return [str(self.root / path) for path in self.paths]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of paths, labels and file contents, 16 hex digits; the same on every machine."""
        digest = hashlib.sha256()
        for path, label, content in zip(self.paths, self.labels, self.contents, strict=True):
            digest.update(b"%b\t%d\t%b\n" % (os.fsencode(path), label, content.encode()))
        return digest.hexdigest()[:16]

    def name(self, i: int) -> str:
        """What to call the i-th image in a message."""
        return self.files[i] if self.shards is None else f"{self.shards.name(i)}: {self.paths[i]}"

    def read(self, i: int) -> np.ndarray:
        """Encoded bytes of the i-th image, uint8.

        Raises:
            DataError: the file is gone or cannot be read.
        """
        if self.shards is not None:
            return self.shards.read(i)
        try:
            return np.fromfile(self.files[i], np.uint8)
        except OSError as error:
            raise changed_after_scan(self.name(i), error.strerror or str(error)) from None

    def take(self, indices: Sequence[int]) -> "Samples":
        """Only some of the images, in the order of `indices`; repetitions are fine."""
        index = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            paths=[self.paths[i] for i in index],
            labels=self.labels[index],
            sizes=self.sizes[index],
            contents=[self.contents[i] for i in index],
            pixels=[self.pixels[i] for i in index],
            shards=None if self.shards is None else self.shards.take(index),
        )

    def without(self, refused: Mapping[str, str]) -> "Samples":
        """Leave out the images of some paths, for a reason each."""
        kept = self.take([i for i, path in enumerate(self.paths) if path not in refused])
        return replace(kept, quarantined={**self.quarantined, **refused})

    def write_quarantine(self, file: Path) -> None:
        """Write one `PATH<tab>REASON` row per refused image."""
        rows = "".join(f"{path}\t{why}\n" for path, why in self.quarantined.items())
        file.write_text(rows, errors="surrogateescape")  # a path may be any bytes


def content_hash(data: bytes | np.ndarray) -> str:
    """Hash of a file's bytes, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def changed_after_scan(file: str, reason: str) -> DataError:
    """The error of a file that was sound when it was scanned."""
    return DataError(f"{file}: {reason}; it changed after the scan, restore it and use --resume")
