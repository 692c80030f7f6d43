"""An embedded data set: coloured, textured shapes as real JPEG files, for trying out training without a download.

Twelve classes = 3 colours x 2 textures x 2 shapes, in the layout of the brief's ImageNet subset:

    OUT/images/<class-id>/<class-id>_<number>.JPEG
    OUT/train.txt, OUT/val.txt, OUT/test.txt     lines "images/c00/c00_0001.JPEG 0"
    OUT/classes.txt                              lines "c00 red striped disc"

The colours make missing channels cost something, but not everything. An object is brighter than its background
in one channel and darker in the other two, so any two channels tell the three colours apart while a single one
confuses two of them. Shape and texture are drawn with the same contrast in every channel.

Run it as `python -m pipelines.synthetic OUT`.
"""

import argparse
import itertools
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.errors import DataError
from pipelines.progress import track

COLOURS = ("red", "green", "blue")  # the channel of the same index is the bright one
TEXTURES = ("striped", "checked")
SHAPES = ("disc", "triangle")
CLASSES = tuple(itertools.product(COLOURS, TEXTURES, SHAPES))  # label -> (colour, texture, shape)
SPLITS = ("train", "val", "test")

BRIGHT, DARK = 200.0, 56.0  # an object's level in its own channel and in the other two, of 255
BACKGROUND = (100.0, 156.0)  # levels between which the background stays, so that every object stands out
VERSION = 1  # part of the parameters of a set: raise it when the drawing changes


def write_dataset(
    out: Path, *, train_per_class: int = 120, val_per_class: int = 20, test_per_class: int = 50, seed: int = 0
) -> Path:
    """Write the data set and return its folder, which gets its name only when the set is complete.

    The same arguments give the same bytes with the same versions of NumPy and Pillow. An image depends only on
    the seed, its split, its class and its index, so a longer training split leaves the test images as they are.

    Args:
        out: the folder to make; one that holds the set with the same parameters is reused as it is.
        train_per_class, val_per_class, test_per_class: images per class, each at least 1.
        seed: what all randomness follows from, at least 0.

    Raises:
        DataError: a number is out of range, `out` holds anything else, or it cannot be written.
    """
    counts = dict(zip(SPLITS, (train_per_class, val_per_class, test_per_class), strict=True))
    if min(counts.values()) < 1 or seed < 0:
        raise DataError(f"need at least 1 image per class and a seed from 0 up, got {counts} and seed {seed}")
    parameters = {"version": VERSION, "seed": seed, "per_class": counts}
    out = Path(out)
    try:
        if _is_vacant(out):
            _write_and_rename(out, parameters)
    except OSError as error:
        # Two processes may race to write the same set; the one that comes second uses the first one's.
        if not _is_complete(out, parameters):
            raise DataError(f"cannot write {out}: {error}; free some space or choose another path") from error
    if not _is_complete(out, parameters):
        raise DataError(f"{out} holds something else than this data set; choose another path or remove it")
    return out


def _is_vacant(out: Path) -> bool:
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def _is_complete(out: Path, parameters: dict) -> bool:
    """Whether `out` is a set with these parameters and still has all its files."""
    try:
        if json.loads((out / "synthetic.json").read_text()) != parameters:
            return False
    except (OSError, ValueError):
        return False
    images = len(CLASSES) * sum(parameters["per_class"].values())
    lists = (out / f"{name}.txt" for name in (*SPLITS, "classes"))
    return all(path.is_file() for path in lists) and len(list(out.glob("images/*/*.JPEG"))) == images


def _write_and_rename(out: Path, parameters: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        root = Path(scratch, out.name)
        _write_lists(root, parameters["per_class"])
        jobs = list(_entries(parameters["per_class"]))
        what = f"writing {len(jobs)} images to {out}"
        if not sys.stderr.isatty():
            print(what, file=sys.stderr, flush=True)
        for path, split, label, index in track(jobs, len(jobs), what):
            rng = np.random.default_rng([parameters["seed"], split, label, index])
            _save_image(root / path, label, rng)
        (root / "synthetic.json").write_text(json.dumps(parameters, indent=2) + "\n")
        root.rename(out)


def _entries(per_class: dict[str, int]) -> Iterator[tuple[str, int, int, int]]:
    """Yield (path below the root, split index, label, index in the split and class) of every image."""
    for label in range(len(CLASSES)):
        number = itertools.count(1)
        for split, count in enumerate(per_class.values()):
            for index in range(count):
                yield f"images/c{label:02d}/c{label:02d}_{next(number):04d}.JPEG", split, label, index


def _write_lists(root: Path, per_class: dict[str, int]) -> None:
    """Make the folders and write classes.txt and one list for each split."""
    for label in range(len(CLASSES)):
        (root / "images" / f"c{label:02d}").mkdir(parents=True)
    names = (f"c{label:02d} {' '.join(names)}\n" for label, names in enumerate(CLASSES))
    (root / "classes.txt").write_text("".join(names))
    entries = list(_entries(per_class))
    for split, name in enumerate(SPLITS):
        lines = (f"{path} {label}\n" for path, of_split, label, _ in entries if of_split == split)
        (root / f"{name}.txt").write_text("".join(lines))


def _save_image(path: Path, label: int, rng: np.random.Generator) -> None:
    pixels = draw_image(label, rng)
    # No chroma subsampling: it would smear the colours, and with them what single channels show.
    Image.fromarray(pixels).save(path, "JPEG", quality=int(rng.integers(85, 96)), subsampling=0)


def draw_image(label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one random image of class `label` as uint8 (H, W, 3), short side 72 to 128, aspect up to 3:2."""
    colour, texture, shape = CLASSES[label]
    height, width = _draw_size(rng)
    image = _draw_background(height, width, rng)

    short = min(height, width)
    radius = short * rng.uniform(0.26, 0.42)
    # The object stays in the central square, at most slightly cut, so that a centre crop does not lose it.
    reach = short / 2 - 0.8 * radius
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x = x - width / 2 - rng.uniform(-reach, reach)
    y = y - height / 2 - rng.uniform(-reach, reach)
    mask = np.clip(0.5 - _distance(shape, *_rotate(x, y, rng.uniform(-0.5, 0.5)), radius), 0, 1)
    pattern = _pattern(texture, *_rotate(x, y, rng.uniform(-0.5, 0.5)), radius * rng.uniform(0.8, 1.2), rng)

    level = np.where(np.arange(3) == COLOURS.index(colour), BRIGHT, DARK) + rng.normal(0, 6, 3)
    contrast = rng.uniform(12, 38)  # half the step between the two shades, the same in every channel
    object_ = level + contrast * pattern[..., None]
    image += mask[..., None] * (object_ - image)

    image *= rng.uniform(0.8, 1.1)
    image += rng.normal(0, rng.uniform(3, 12), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return a random (height, width) in pixels."""
    short = int(rng.integers(72, 129))
    long = round(short * rng.uniform(1, 1.5))
    return (short, long) if rng.random() < 0.5 else (long, short)


def _draw_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return smooth, slightly tinted grey clouds: (H, W, 3) within the limits of BACKGROUND."""
    coarse = rng.normal(0, 16, (5, 5)).astype(np.float32)
    clouds = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    tint = rng.normal(128, 8) + rng.normal(0, 5, 3)
    return np.clip(clouds[..., None] + tint, *BACKGROUND)


def _rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn coordinates by `angle` radians."""
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance in pixels to the edge, negative inside; all shapes have a disc's area."""
    if shape == "disc":
        return np.hypot(x, y) - radius
    slope = np.sqrt(3) / 2 * abs(x)  # an equilateral triangle, symmetric in x, tip up (y runs downwards)
    inradius = radius * np.sqrt(np.pi / 27**0.5)
    return np.maximum(y, slope - y / 2) - inradius


def _pattern(texture: str, x: np.ndarray, y: np.ndarray, period: float, rng: np.random.Generator) -> np.ndarray:
    """Return stripes or a chequerboard with soft edges, from -1 to 1; `period` is in pixels."""
    phase = rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(2 * np.pi * x / period + phase[0])
    if texture == "checked":
        wave = wave * np.sin(2 * np.pi * y / period + phase[1])
    return np.tanh(4 * wave)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 after a DataError."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.synthetic", description=__doc__.split("\n")[0])
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path("data/synthetic"), help="folder to make; %(default)s by default"
    )
    parser.add_argument("--train-per-class", type=int, default=120, metavar="N")
    parser.add_argument("--val-per-class", type=int, default=20, metavar="N")
    parser.add_argument("--test-per-class", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(argv)
    try:
        out = write_dataset(**vars(options))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"data set: {out}")
    print(f"next:     python -m training.train quickstart --data.path {shlex.quote(str(out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
