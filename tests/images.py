"""Small real JPEG files and lists, made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int, height: int) -> Image.Image:
    """A smooth random picture, so that JPEG and resizing treat it like a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_images(folder: Path, count: int, classes: int = 3, split: str = "train", seed: int = 0) -> Path:
    """`count` JPEG files of varied size under folder/images, and the list folder/SPLIT.txt that names them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        width, height = 40 + (7 * i) % 31, 40 + (11 * i) % 23
        name = f"images/{split}_{i:04d}.JPEG"
        picture(seed * 10_000 + i, width, height).save(folder / name, quality=92)
        rows.append(f"{name} {i % classes}")
    (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


def write_data(folder: Path) -> Path:
    """A small data set: 40 training, 13 validation and 13 test images of 3 classes."""
    for seed, (split, count) in enumerate([("train", 40), ("val", 13), ("test", 13)]):
        write_images(folder, count, split=split, seed=seed)
    return folder
