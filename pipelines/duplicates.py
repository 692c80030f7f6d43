"""Images that a data set holds more than once: the same pixels in two splits, or under two labels.

Training on an image that is also in val or test makes the results better than they are.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from pipelines.samples import Samples

Problem = Literal["leak", "shared", "two labels"]
COLUMNS = ("problem", "split", "path", "label", "twin_split", "twin_path", "twin_label", "reason")


@dataclass(frozen=True)
class Duplicate:
    """An image and its twin; labels as the loaders give them.

    `kind` is "bytes" where the files are equal and "pixels" where only the images in them are.
    """

    split: str
    path: str
    label: int
    twin_split: str
    twin_path: str
    twin_label: int
    kind: Literal["bytes", "pixels"]

    @property
    def problem(self) -> Problem:
        """A "leak" from val or test into train, "shared" by val and test, or "two labels" within a split."""
        if self.split == self.twin_split:
            return "two labels"
        return "leak" if self.split == "train" else "shared"

    @property
    def reason(self) -> str:
        """What is wrong with the image."""
        what = "file" if self.kind == "bytes" else "pixels"
        label = f" with label {self.twin_label}" if self.label != self.twin_label else ""
        return f"same {what} as {self.twin_path} of {self.twin_split}{label}; keep one of the two rows"


class _Image(NamedTuple):
    split: str
    path: str
    label: int
    content: str


def find_duplicates(splits: Mapping[str, Samples]) -> list[Duplicate]:
    """Compare the images of all splits.

    Args:
        splits: in the order train, val, test; an image is held against the splits after its own.

    Returns:
        One entry per image and later split that holds it too, and one per image that has another label than the
        first of its pixels in the same split. Equal images of one label in one split are no trouble.
    """
    counts = Counter(chain.from_iterable(samples.pixels for samples in splits.values()))
    groups: dict[str, list[_Image]] = defaultdict(list)
    for split, samples in splits.items():
        rows = zip(samples.pixels, samples.paths, samples.labels.tolist(), samples.contents, strict=True)
        for pixels, *image in rows:
            if counts[pixels] > 1:
                groups[pixels].append(_Image(split, *image))
    return [duplicate for group in groups.values() for duplicate in _pairs(group)]


def leaks(found: Iterable[Duplicate]) -> dict[str, str]:
    """Training images that are also in val or test: path → reason."""
    return {twin.path: twin.reason for twin in found if twin.problem == "leak"}


def summary(found: Iterable[Duplicate]) -> dict[Problem, str]:
    """For each problem one line: how many images have it, and the first of them."""
    wording = {
        "leak": "training images that are also in val or test",
        "shared": "val images that are also in test",
        "two labels": "images that stand in one list under two labels",
    }
    by_problem: dict[Problem, dict[tuple[str, str], Duplicate]] = defaultdict(dict)
    for twin in found:
        by_problem[twin.problem].setdefault((twin.split, twin.path), twin)
    lines = {}
    for problem, images in by_problem.items():
        first = next(iter(images.values()))
        lines[problem] = (
            f"{wording[problem]}: {len(images)}; the first is {first.path} of {first.split}: {first.reason}"
        )
    return lines


def write_report(file: Path, splits: Mapping[str, Samples], found: Iterable[Duplicate]) -> None:
    """Write refused images and duplicates as one table of tab-separated values."""
    refused = (
        {"problem": "unusable", "split": split, "path": path, "reason": reason}
        for split, samples in splits.items()
        for path, reason in samples.quarantined.items()
    )
    twins = ({column: getattr(twin, column) for column in COLUMNS} for twin in found)
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out:  # names may be any bytes
        table = csv.DictWriter(out, COLUMNS, dialect="excel-tab", lineterminator="\n")
        table.writeheader()
        table.writerows(chain(refused, twins))


def _pairs(group: list[_Image]) -> Iterator[Duplicate]:
    """The entries of images with the same pixels."""
    splits: dict[str, list[_Image]] = defaultdict(list)
    for image in group:
        splits[image.split].append(image)
    copies = {(image.split, image.content): image for image in group}
    names = list(splits)
    for image in group:
        first = splits[image.split][0]
        if image.label != first.label:
            yield _pair(image, first)
        for later in names[names.index(image.split) + 1 :]:
            yield _pair(image, copies.get((later, image.content), splits[later][0]))


def _pair(image: _Image, twin: _Image) -> Duplicate:
    kind = "bytes" if image.content == twin.content else "pixels"
    return Duplicate(*image[:3], *twin[:3], kind)
