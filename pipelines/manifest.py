"""List files become manifests: which images there are, and which class each belongs to.

A list has one `PATH LABEL` row per image, with LF or CRLF line ends, as in mini-ImageNet's `train.txt`.
Paths are relative to a root folder, by default the folder the list stands in.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LIST_NAMES = {"train": ("train.txt",), "val": ("val.txt", "validation.txt"), "test": ("test.txt",)}


@dataclass(frozen=True)
class Manifest:
    """What a list file says.

    Attributes:
        root: folder that the paths are relative to.
        paths: one relative POSIX path per image.
        labels: class of each image, 0 … classes - 1.
        classes: number of classes; may exceed the labels that occur.
        source: the list file it was read from.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: int
    source: Path

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def files(self) -> list[str]:
        """Absolute file names, in list order."""
        return [str(self.root / path) for path in self.paths]

    @cached_property
    def label_array(self) -> np.ndarray:
        """Labels as int64, shape (N,)."""
        return np.asarray(self.labels, dtype=np.int64)

    def only_labels(self, labels: Collection[int]) -> "Manifest":
        """Keep some classes, renumbered 0 … n - 1 in ascending order of their old labels.

        Raises:
            DataError: a wanted label does not occur in the list.
        """
        missing = sorted(set(labels) - set(self.labels))
        if missing:
            raise DataError(
                f"{self.source}: no image has label {missing[0]} (wanted by --data.labels); "
                f"the list has labels {min(self.labels)} to {max(self.labels)}"
            )
        new_label = {old: new for new, old in enumerate(sorted(set(labels)))}
        kept = self._take([i for i, label in enumerate(self.labels) if label in new_label])
        return replace(kept, labels=tuple(new_label[x] for x in kept.labels), classes=len(new_label))

    def _take(self, indices: Iterable[int]) -> "Manifest":
        indices = list(indices)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
        )


def has_list(folder: Path, split: str) -> bool:
    """Whether the folder has a list for a split."""
    return any((folder / name).is_file() for name in LIST_NAMES[split])


def find_list(folder: Path, split: str) -> Path:
    """The list file of a split ("train", "val" or "test"); `validation.txt` also serves for val.

    Raises:
        DataError: the folder or its list is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of the lists with --data.path")
    for name in LIST_NAMES[split]:
        if (folder / name).is_file():
            return folder / name
    wanted = " or ".join(LIST_NAMES[split])
    bare = not any(has_list(folder, other) for other in LIST_NAMES)
    maker = "; where each class has a folder of images, python -m pipelines.lists makes it" if bare else ""
    raise DataError(f"{folder}: no {wanted}; write one row 'PATH LABEL' per image into it{maker}")


def read_manifest(list_file: Path, root: Path | None = None, classes: int | None = None) -> Manifest:
    """Read a list file.

    Args:
        list_file: rows of `PATH LABEL`, UTF-8, LF or CRLF; blank lines are passed over. Names that are not
            UTF-8 are taken as they are.
        root: folder the paths are relative to; the list's own folder if None.
        classes: number of classes, against which labels are checked; the highest label + 1 if None.

    Raises:
        DataError: the list is missing or empty, or a row is wrong; it names file, line and reason.
    """
    if not list_file.is_file():
        raise DataError(f"{list_file}: no such list file; see --data.path")
    try:
        text = list_file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names are bytes
    except OSError as error:
        raise DataError(f"{list_file}: cannot be read ({error.strerror}); check its permissions") from None
    if "\0" in text:
        raise DataError(f"{list_file}: not a text file, or UTF-16; save the list as UTF-8")
    rows: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            path, label = _parse_row(line, classes)
            if path in rows:
                raise ValueError(f"{path!r} is listed twice; delete one row")
        except ValueError as error:
            raise DataError(f"{list_file}:{number}: {error}") from None
        rows[path] = label
    if not rows:
        raise DataError(f"{list_file}: the list is empty; it needs one row 'PATH LABEL' per image")
    labels = tuple(rows.values())
    root = (root or list_file.parent).absolute()
    return Manifest(root, tuple(rows), labels, classes or max(labels) + 1, list_file)


def read_split(
    folder: Path,
    split: str,
    *,
    root: Path | None = None,
    labels: Collection[int] | None = None,
) -> Manifest:
    """Read one split of a data folder; val and test must keep to the classes of train.

    Args:
        folder: holds `train.txt`, `val.txt` or `validation.txt`, and `test.txt`.
        split: "train", "val" or "test".
        root: folder the paths are relative to; `folder` if None.
        labels: keep only these classes, renumbered from 0.
    """
    train = read_manifest(find_list(folder, "train"), root)
    manifest = train
    if split != "train":
        manifest = read_manifest(find_list(folder, split), root, classes=train.classes)
    if labels is not None:
        return manifest.only_labels(labels)
    absent = next((label for label, seen in enumerate(sorted(set(train.labels))) if label != seen), None)
    if absent is not None:
        raise DataError(
            f"{train.source}: no image has label {absent}, but labels go up to {train.classes - 1}; "
            "number the classes without gaps, or choose some with --data.labels"
        )
    return manifest


def read_folder(folder: Path) -> Manifest:
    """All images below a folder, without a list; each folder of images is a class, in order of name.

    Raises:
        DataError: there are none.
    """
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise DataError(f"{folder}: no images ({', '.join(SUFFIXES)}) in it or below")
    classes = {parent: label for label, parent in enumerate(sorted({file.parent for file in found}))}
    paths = tuple(file.relative_to(folder).as_posix() for file in found)
    labels = tuple(classes[file.parent] for file in found)
    return Manifest(folder.absolute(), paths, labels, len(classes), folder)


def parse_labels(text: str) -> list[int]:
    """`"0-19,40"` → [0, …, 19, 40].

    Raises:
        DataError: the text is not of that form.
    """
    labels: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            several = range(int(first), int(last or first) + 1)
            if not several or several[0] < 0:
                raise ValueError(part)
            labels.extend(several)
    except ValueError:
        raise DataError(f"--data.labels {text!r}: write numbers and ranges, like 0-19,40") from None
    return sorted(set(labels))


def format_row(path: str, label: int) -> str:
    """The row of a list that says which class an image belongs to.

    Raises:
        ValueError: a list cannot hold that path, or would refuse it.
    """
    row = f"{path} {label}"
    if "\n" in path or "\0" in path or _parse_row(row, None) != (path, label):
        raise ValueError(f"{path!r} has a line break, or blanks at an end; rename it")
    return row


def _parse_row(line: str, classes: int | None) -> tuple[str, int]:
    """One row → (path, label); ValueError says what is wrong with it."""
    fields = line.strip().rsplit(None, 1)  # from the right: paths may hold spaces
    if len(fields) != 2:
        raise ValueError(f"expected 'PATH LABEL', got {line.strip()!r}")
    path, label_text = fields
    if not label_text.isdecimal():
        raise ValueError(f"label {label_text!r} is not a whole number from 0 on")
    label = int(label_text)
    if classes is not None and label >= classes:
        raise ValueError(f"label {label} is out of range; train has classes 0 to {classes - 1}")
    return _inside_root(path), label


def _inside_root(path: str) -> str:
    """The path, normalised; refused where it is absolute or climbs out of the root with `..`."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"path {path!r} leaves the data folder; write it relative to it, with '/'")
    return str(PurePosixPath(path))
