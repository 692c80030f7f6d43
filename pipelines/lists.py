"""Lists for a folder of images: `python -m pipelines.lists DIR [--val 0.1] [--test 0.1] [--out DIR]`

DIR has one folder for each class, and the images are in these folders or below. The program writes `train.txt`,
`val.txt`, `test.txt` and `classes.txt`; it changes no image.
"""

import hashlib
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from pipelines import class_names
from pipelines.cli import run_program
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.manifest import LIST_NAMES, SUFFIXES, format_row

_EPOCHS, _ENOUGH = 24, 1440  # what the recipe quickstart is made for: so many passes over so many images
_MOST_EPOCHS = 600
_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass(kw_only=True)
class Listing:
    """Make train.txt, val.txt, test.txt and classes.txt from a folder with one folder of images for each class.

    Each class is divided alike. Which images go where is decided by their names and the seed, so that the same
    folder gives the same lists, and few images change places when others are added.
    """

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """One folder in it for each class; images are searched at any depth below."""
    val: float = 0.1
    """Part of each class that val gets, above 0; at least one image of every class with three or more."""
    test: float = 0.1
    """Likewise test; 0 for no test list."""
    seed: int = 0
    """Another one divides them otherwise."""
    out: Path | None = None
    """Where the lists go; DIR by default. Elsewhere, training needs --data.root DIR too."""
    force: bool = False
    """Replace lists that are there already."""

    def __post_init__(self) -> None:
        if self.val <= 0 or self.test < 0 or self.val + self.test >= 1:
            parts = f"--val {self.val:g} --test {self.test:g}"
            raise DataError(f"{parts}: give parts of 1 that leave some to train; only --test may be 0")


def main(job: Listing) -> None:
    """Write the lists.

    Raises:
        DataError: the folder holds no classes, or there are lists already.
    """
    out = job.out or job.folder
    if not job.folder.is_dir():
        raise DataError(f"{job.folder}: no such folder; give one that has a folder of images for each class")
    _check_vacant(out, job.force)
    classes = find_classes(job.folder)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, paths in enumerate(classes.values()):
        for split, chosen in divide(paths, job.val, job.test, job.seed).items():
            splits[split] += [format_row(path, label) for path in sorted(chosen)]
    if not splits["val"]:
        raise DataError(f"{job.folder}: no class has 3 images, so val would be empty; add images")
    out.mkdir(parents=True, exist_ok=True)
    _write(out, list(classes), splits)
    _show(classes, splits)
    print(f"wrote {', '.join(_written(splits))} to {out}; next:")
    print(f"python -m training.train quickstart {_flags(job.folder, out, len(splits['train']))}")


def find_classes(folder: Path) -> dict[str, list[str]]:
    """Images of each class, by the name of its folder and in order of these names; paths are relative to `folder`.

    Images whose names a list cannot hold are left out, and so are folders without any; a line on stderr says so.

    Raises:
        DataError: there are not two classes.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if folders and {path.name.lower() for path in folders} <= _SPLITS:
        raise DataError(
            f"{folder}: its folders {', '.join(path.name for path in folders)} look like splits, not classes; "
            "put the images of a class together, or write train.txt and val.txt yourself, rows 'PATH LABEL'"
        )
    classes = {path.name: _images(path, folder) for path in folders}
    for name in [name for name, paths in classes.items() if not paths]:
        print(f"note: {folder / name} holds no images ({', '.join(SUFFIXES)}) and is no class", file=sys.stderr)
        del classes[name]
    if len(classes) < 2:
        found = f"{len(classes)} folder{'s' if len(classes) != 1 else ''} with images"
        raise DataError(f"{folder}: {found}, and two classes are the least{_meant(folder, classes)}")
    return classes


def _meant(folder: Path, classes: Collection[str]) -> str:
    """Which folder may hold the classes: the one within that has images, or the one around those that lie here."""
    if classes:
        return f"; did you mean {folder / next(iter(classes))}?"
    own = any(file.suffix.lower() in SUFFIXES for file in folder.iterdir())
    return f"; {folder} looks like one class: give the folder around it" if own else ""


def divide(paths: Sequence[str], val: float, test: float, seed: int) -> dict[str, list[str]]:
    """The images of one class by split, decided by a hash of each path.

    Of three images or more, val and test (unless it is 0) get at least one each; of fewer, train gets all.
    """
    order = sorted(
        paths, key=lambda path: hashlib.blake2b(f"{seed} {path}".encode(errors="surrogateescape")).digest()
    )
    counts = [max(1, round(part * len(order))) if part and len(order) >= 3 else 0 for part in (test, val)]
    while sum(counts) >= len(order) > 0:  # train is never left without
        counts[counts.index(max(counts))] -= 1
    first, second = counts[0], sum(counts)
    return {"test": order[:first], "val": order[first:second], "train": order[second:]}


def _images(folder: Path, root: Path) -> list[str]:
    found = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            path = file.relative_to(root).as_posix()
            try:
                format_row(path, 0)
                found.append(path)
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr)
    return found


def _check_vacant(out: Path, force: bool) -> None:
    there = [name for names in LIST_NAMES.values() for name in names if (out / name).exists()]
    there += [class_names.FILE] if (out / class_names.FILE).exists() else []
    if there and not force:
        raise DataError(
            f"{out} has {', '.join(there)} already; choose another --out, or replace them with --force"
        )


def _written(splits: dict[str, list[str]]) -> list[str]:
    return [class_names.FILE, *(f"{split}.txt" for split, rows in splits.items() if rows)]


def _write(out: Path, names: list[str], splits: dict[str, list[str]]) -> None:
    """All files, and none of an earlier division beside them."""
    for name in {name for names in LIST_NAMES.values() for name in names} - {*_written(splits)}:
        (out / name).unlink(missing_ok=True)
    for file, rows in {
        class_names.FILE: names,
        **{f"{split}.txt": rows for split, rows in splits.items()},
    }.items():
        if rows:
            text = "".join(f"{row}\n" for row in rows)
            write_atomically(out / file, text.encode(errors="surrogateescape"))  # file names may be any bytes


def _show(classes: dict[str, list[str]], splits: dict[str, list[str]]) -> None:
    table = Table("images")
    for split in splits:
        table.add_column(split, justify="right")
    table.add_row(f"of {len(classes)} classes", *(str(len(rows)) for rows in splits.values()))
    Console().print(table)
    small = [name for name, paths in classes.items() if len(paths) < 3]
    if small:
        print(f"note: fewer than 3 images, so all of them train: {', '.join(small)}", file=sys.stderr)


def _flags(folder: Path, out: Path, images: int) -> str:
    """What tells the training of these lists, names its run after the folder, and shows few images more often."""
    name = folder.resolve().name
    flags = {"name": name, "run-dir": f"runs/{name}", "data.path": out}
    if out.resolve() != folder.resolve():
        flags["data.root"] = folder
    epochs = min(_MOST_EPOCHS, round(_EPOCHS * _ENOUGH / images))
    if epochs > _EPOCHS:
        flags |= {"schedule.epochs": epochs, "schedule.eval-epochs": epochs // 6}
    return " ".join(f"--{flag} {shlex.quote(str(value))}" for flag, value in flags.items())


def parse(args: list[str] | None = None) -> Listing:
    """The job that the command line describes."""
    return tyro.cli(Listing, args=args, prog="python -m pipelines.lists")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes
    run_program(lambda: main(parse(sys.argv[1:])))
