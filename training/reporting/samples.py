"""A few of the images that were scored, small, with what a model took them for on each channel set."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD
from pipelines.errors import DataError
from pipelines.samples import Samples
from training.build import first_images, read_samples
from training.config import Data
from training.recipe_file import load_recipe
from training.reporting.answers import Record, class_names, predictions
from training.reporting.blocks import Cell
from training.reporting.source import Absent

_SIDE = 96  # pixels of a picture, at most


def sample_rows(record: Record, run_dir: Path | None, count: int) -> list[list[str | Cell]]:
    """Per image: its picture and class, and the best guess on each channel set.

    Args:
        record: of a sweep.
        run_dir: where its recipe lies, which says where the images are.
        count: images, evenly spread over the list.

    Raises:
        Absent: the images, or what they were taken for, are not at hand.
    """
    if run_dir is None:
        raise Absent("a record file does not say where its images are; name the run directory")
    if not record.get("predicted"):
        raise Absent(f"its record holds no guesses; python -m training.evaluate {run_dir.name} writes them")
    samples, data = _scored_images(record, run_dir)
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int))
    images = first_images(data, samples.take(chosen), count=len(chosen))
    found = predictions(record)
    names = class_names(record, 1 + max(int(samples.labels.max()), *(int(g.max()) for g in found.values())))
    rows: list[list[str | Cell]] = [["image", *found]]
    for i, image in zip(chosen, images, strict=True):
        label = samples.labels[i]
        told = [_guess(names[guess[i]], bool(guess[i] == label)) for guess in found.values()]
        rows.append([Cell(names[label], picture=_jpeg(image)), *told])
    return rows


def _guess(name: str, right: bool) -> Cell:
    return Cell(f"{'✓' if right else '✗'}\u00a0{name}", right=right)


def _scored_images(record: Record, run_dir: Path) -> tuple[Samples, Data]:
    """The images that the record is about, and how the network saw them."""
    try:
        data = load_recipe(run_dir / "config.yaml").data
        samples = read_samples(data, record["split"])
    except DataError as error:
        raise Absent(f"its images are not at hand ({error})") from None
    if samples.fingerprint != record["fingerprint"][record["split"]]:
        raise Absent(f"the images in {data.path} are not those that were scored")
    return samples, data


def _jpeg(image: Tensor) -> bytes:
    """A normalised image, 3×H×W, as a JPEG file of at most `_SIDE` pixels a side."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((image.float() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture, out = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(out, "JPEG", quality=85, subsampling=0)  # colours are what it is about
    return out.getvalue()
