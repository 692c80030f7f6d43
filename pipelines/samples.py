"""Samples: the sound images of a list, and where their bytes lie. What the scan hands to the loaders."""

import hashlib
import os
from collections.abc import Mapping
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
            raise changed_after_scan(self.files[i], error.strerror or str(error)) from None

    def without(self, refused: Mapping[str, str]) -> "Samples":
        """Leave out the images of some paths, for a reason each."""
        kept = np.array([i for i, path in enumerate(self.paths) if path not in refused], dtype=np.int64)
        return replace(
            self,
            paths=[self.paths[i] for i in kept],
            labels=self.labels[kept],
            sizes=self.sizes[kept],
            contents=[self.contents[i] for i in kept],
            pixels=[self.pixels[i] for i in kept],
            quarantined={**self.quarantined, **refused},
            shards=self.shards and self.shards.take(kept),
        )

    def write_quarantine(self, file: Path) -> None:
        """Write one `PATH<tab>REASON` row per refused image."""
        rows = "".join(f"{path}\t{why}\n" for path, why in self.quarantined.items())
        file.write_text(rows, errors="surrogateescape")  # a path may be any bytes


def changed_after_scan(file: str, reason: str) -> DataError:
    """The error of a file that was sound when it was scanned."""
    return DataError(f"{file}: {reason}; it changed after the scan, restore it and use --resume")
