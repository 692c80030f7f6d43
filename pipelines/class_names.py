"""What the classes are called: by `classes.txt` beside the lists, or else by the folders of their images."""

import sys
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from pipelines.manifest import Manifest, find_list, read_manifest

FILE = "classes.txt"


def class_names(folder: Path, labels: Collection[int] | None = None) -> list[str] | None:
    """A name for each class in the order of labels, or None where nothing names them.

    `classes.txt` has a row for each label from 0 on, `NAME` or `FOLDER NAME`, where FOLDER is the one that holds
    the images of that class. Without it the folders themselves are the names, where each class has one of its own.

    Args:
        folder: of the lists; `train.txt` says which folders belong to which label.
        labels: keep only these classes, as `Manifest.only_labels` does.

    Raises:
        DataError: `train.txt` is missing or wrong.
    """
    manifest = read_manifest(find_list(folder, "train"))
    folders = _folders(manifest)
    wanted = sorted(set(manifest.labels if labels is None else labels))
    names = _listed(folder / FILE, manifest.classes, folders)
    if names is None:
        own = len(set(folders.values())) == len(folders)
        names = {label: name for label, name in folders.items() if name} if own else {}
    return [names[label] for label in wanted] if names.keys() >= set(wanted) else None


def listed_names(folder: Path, labels: Collection[int] | None = None) -> str | None:
    """What `classes.txt` would say beside lists of these classes alone; None where there is none that is of use.

    Args:
        folder, labels: see `class_names`.

    Raises:
        DataError: `train.txt` is missing or wrong.
    """
    names = class_names(folder, labels) if (folder / FILE).is_file() else None
    if names is None:
        return None
    manifest = read_manifest(find_list(folder, "train"))
    folders = _folders(manifest)
    wanted = sorted(set(manifest.labels if labels is None else labels))
    # With its folder before it no name loses a first word that happens to be the folder's.
    rows = (f"{folders.get(label, '')} {name}".strip() for label, name in zip(wanted, names, strict=True))
    return "".join(f"{row}\n" for row in rows)


def _listed(file: Path, classes: int, folders: dict[int, str]) -> dict[int, str] | None:
    """The rows of `classes.txt` without the folders' names, where it is there and has a row for every class."""
    if not file.is_file():
        return None
    rows = file.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    rows = [row.strip() for row in rows if row.strip()]
    if len(rows) < classes:
        print(f"note: {file} names {len(rows)} of {classes} classes and is not used", file=sys.stderr)
        return None
    return {label: _without(row, folders.get(label, "")) for label, row in enumerate(rows)}


def _without(row: str, folder: str) -> str:
    """The name in a row that may begin with the folder's."""
    rest = row.removeprefix(folder)
    return rest.strip() if rest != rest.lstrip() else row


def _folders(manifest: Manifest) -> dict[int, str]:
    """The folder that holds the images of a label; an empty string where they lie in several, or in none."""
    found: dict[int, set[str]] = defaultdict(set)
    for path, label in zip(manifest.paths, manifest.labels, strict=True):
        found[label].add(path.rpartition("/")[0])
    return {label: _printable(paths.pop()) if len(paths) == 1 else "" for label, paths in found.items()}


def _printable(path: str) -> str:
    """A folder's own name; bytes that are not UTF-8 are replaced."""
    return path.rpartition("/")[2].encode(errors="surrogateescape").decode(errors="replace")
