"""Pictures for people who watch a run: images by channel set, kernels, confusion matrices.

Drawn by Pillow, since they are made while the training waits: a picture takes some hundredths of a second.
"""

import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from modeling.channels import ChannelSet, Vocabulary
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, RGB

RIGHT, WRONG = "#0072B2", "#D55E00"  # told apart by colour-blind readers (Okabe and Ito)
_TILE = 80  # pixels, at least, of an image's side, so that what is written below it fits
_KERNEL = 20  # pixels, at least, of a kernel's side
_FILTERS, _FILTERS_PER_ROW = 64, 32
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # classes between the numbers at a confusion matrix's sides
_LINE = 16  # pixels of a line of text
_LEFT = 104  # pixels beside images for what their classes are called
_WIDEST = 180  # pixels of a class's name beside a confusion matrix
_LETTERS = 15  # of a line of a name, as many as are as wide as the smallest image
_SCALE = np.array([[255, 255, 255], [86, 180, 233], [0, 114, 178], [10, 20, 60]])  # of shares; darker is more


def visible(images: Tensor, chosen: ChannelSet, vocabulary: Vocabulary) -> Tensor:
    """Images as a channel set shows them, N×3×H×W, 0 … 1.

    Args:
        images: N×C×H×W, normalised.
        chosen: the channel set.
        vocabulary: of R, G and B, missing channels are black; of others the mean of those present stands in gray.
    """
    if vocabulary != RGB:
        present = images[:, chosen.indices(vocabulary)].float().mean(1, keepdim=True)
        return (present * fmean(IMAGENET_STD) + fmean(IMAGENET_MEAN)).clamp(0, 1).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    mask = torch.zeros(1, 3, 1, 1, device=images.device)
    mask[:, chosen.indices(vocabulary)] = 1
    return (images.float() * std + mean).clamp(0, 1) * mask


def channel_grid(images: Tensor, vocabulary: Vocabulary, rows: int = 6) -> Tensor:
    """Images as each channel set shows them, missing channels black: 3×(rows·H)×(sets·W), 0 … 1.

    Args:
        images: N×C×H×W, normalised.
        vocabulary: R, G and B are shown in colour; of other vocabularies each channel by itself, in gray.
        rows: images shown, at most.
    """
    sets = ChannelSet.all_of(vocabulary) if vocabulary == RGB else [ChannelSet((name,)) for name in vocabulary]
    columns = [visible(images[:rows], chosen, vocabulary) for chosen in sets]
    return torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)


def answers(
    images: Tensor,
    labels: Sequence[int],
    predicted: Mapping[ChannelSet, Sequence[int]],
    vocabulary: Vocabulary,
    names: Sequence[str],
) -> np.ndarray:
    """Images as channel sets show them, and what a network takes each for: a row per image, a column per set.

    Args:
        images: N×C×H×W, normalised.
        labels: class of each image.
        predicted: the best guess for each image, by channel set.
        vocabulary: channels of the images.
        names: of the classes.

    Returns:
        H×W×3, uint8.
    """
    images = sized(images)
    sets = [textwrap.fill(str(chosen).replace("+", " "), 13) for chosen in predicted]
    head, left, side = _LINE * (1 + max(name.count("\n") for name in sets)) + 4, _LEFT, images.shape[-1]
    words = [
        [
            "right" if guess == label else _folded(names[guess], 2, side)
            for guess, label in zip(row, labels, strict=True)
        ]
        for row in predicted.values()
    ]
    row, column = side + _LINE * (1 + max(word.count("\n") for of_set in words for word in of_set)) + 6, side + 6
    canvas, draw = _paper(left + len(predicted) * column, head + len(images) * row)
    for i, label in enumerate(labels):
        place = (4, head + i * row + side // 2)
        draw.text(place, _folded(names[label], 4, _LEFT - 8), "black", _font(), anchor="lm")
    for j, chosen in enumerate(predicted):
        draw.text((left + j * column, 2), sets[j], "black", _font())
        for i, image in enumerate(visible(images, chosen, vocabulary)):
            x, y = left + j * column, head + i * row
            canvas.paste(_to_image(image), (x, y))
            colour = RIGHT if predicted[chosen][i] == labels[i] else WRONG
            draw.text((x, y + side + 1), words[j][i], colour, _font())
    return np.asarray(canvas)


def kernels(by_set: Mapping[ChannelSet, Tensor], vocabulary: Vocabulary) -> np.ndarray:
    """The first filters of a stem for each channel set; gray is a weight of 0.

    Args:
        by_set: kernels by channel set, O×|S|×k×k; each set has a scale of its own, to three standard deviations.
        vocabulary: sets of two or three of R, G and B are drawn in colour, a missing channel as weights of 0; in
            all others each channel gets a row, in gray.

    Returns:
        H×W×3, uint8.
    """
    bands = []
    for chosen, kernel in by_set.items():
        most = max(3 * kernel.square().mean().sqrt().item(), 1e-12)
        shown = (0.5 + kernel.float().cpu() / (2 * most)).clamp(0, 1)
        bands.append((f"{chosen}   ± {most:.2g}", _filters(shown, chosen, vocabulary)))
    width = max(band.width for _, band in bands)
    canvas, draw = _paper(width, sum(_LINE + 6 + band.height for _, band in bands))
    y = 0
    for title, band in bands:
        draw.text((2, y + 3), title, "black", _font())
        canvas.paste(band, (0, y + _LINE + 4))
        y += _LINE + 6 + band.height
    return np.asarray(canvas)


def _filters(shown: Tensor, chosen: ChannelSet, vocabulary: Vocabulary) -> Image.Image:
    """A set's filters side by side; shown: O×|S|×k×k, 0 … 1."""
    if vocabulary == RGB and len(chosen) > 1:
        coloured = torch.full((len(shown), 3, *shown.shape[2:]), 0.5)
        coloured[:, chosen.indices(vocabulary)] = shown
        parts = [coloured[:_FILTERS]]
    else:
        parts = [channel[:_FILTERS_PER_ROW, None].expand(-1, 3, -1, -1) for channel in shown.unbind(1)]
    grids = [make_grid(sized(part, _KERNEL), nrow=_FILTERS_PER_ROW, padding=2, pad_value=1.0) for part in parts]
    return _to_image(torch.cat(grids, dim=1))


def confusion_picture(counts: Tensor, title: str, names: Sequence[str]) -> np.ndarray:
    """A confusion matrix as shares of each true class, coloured by their square roots, so that rare ones show.

    Args:
        counts: classes×classes, see `metrics.confusion`.
        title: what is written above.
        names: of the classes, written beside the rows where each has room for it; the longest are cut.

    Returns:
        H×W×3, uint8.
    """
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    classes = len(shares)
    cell = max(1, (300 if classes < 50 else 480) // classes)  # small enough for the cards that show it
    every_row = cell >= _LINE - 2
    rows = [_row_name(name, i, _WIDEST if every_row else _LEFT - 40) for i, name in enumerate(names)]
    left, top, side = 14 + int(max(map(_font().getlength, rows))), 3 * _LINE, cell * classes
    canvas, draw = _paper(max(left + side + 70, 360), top + side + 8)
    draw.text((4, 2), title, "black", _font())
    draw.text((4, _LINE + 2), "rows: true class; columns: predicted; % of the true class", "black", _font())
    canvas.paste(Image.fromarray(_coloured(shares).repeat(cell, 0).repeat(cell, 1)), (left, top))
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline="#7f7f7f")
    tick = next(step for step in _TICKS if step * cell >= 20)
    for i in range(0, classes, tick):
        draw.text((left + i * cell + cell // 2, top - 4), str(i), "black", _font(), anchor="mb")
    for i in range(0, classes, 1 if every_row else tick):
        place = (left - 6, top + i * cell + cell // 2)
        draw.text(place, rows[i], "black", _font(), anchor="rm")
    if cell >= 24:  # room for a number
        _write_shares(draw, shares, cell, (left, top))
    _draw_scale(canvas, draw, (left + side + 14, top))
    return np.asarray(canvas)


def _row_name(name: str, number: int, width: float) -> str:
    """A class's name, no wider than so many pixels, and its number, by which its column goes."""
    return name if name == str(number) else f"{_cut(name, width)} {number}"


def _write_shares(draw: ImageDraw.ImageDraw, shares: np.ndarray, cell: int, corner: tuple[int, int]) -> None:
    """Per cent in each cell that has any."""
    for row, column in zip(*shares.nonzero(), strict=True):
        share = shares[row, column]
        place = (corner[0] + column * cell + cell // 2, corner[1] + row * cell + cell // 2)
        draw.text(place, f"{100 * share:.0f}", "white" if share > 0.2 else "black", _font(), anchor="mm")


def _draw_scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    """A strip from 0 to 100 %, with some numbers beside it."""
    x, y, height = *corner, 200
    strip = _coloured(np.linspace(1, 0, height)[:, None] ** 2).repeat(14, axis=1)
    canvas.paste(Image.fromarray(strip), (x, y))
    for share in (0, 5, 25, 50, 100):
        draw.text((x + 18, y + (1 - (share / 100) ** 0.5) * height), f"{share}%", "black", _font(), anchor="lm")


def _coloured(shares: np.ndarray) -> np.ndarray:
    """Shares, 0 … 1, as colours whose lightness falls all the way, uint8 with a last axis of 3."""
    anchors = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(shares**0.5, anchors, channel) for channel in _SCALE.T], axis=-1).astype(np.uint8)


def sized(images: Tensor, least: int = _TILE) -> Tensor:
    """N×C×H×W, small images with every pixel as a square, large ones as means over squares of pixels."""
    width = images.shape[-1]
    if width >= 2 * least:
        return F.avg_pool2d(images, width // least)
    factor = -(-least // width)
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _to_image(values: Tensor) -> Image.Image:
    """3×H×W, 0 … 1."""
    return Image.fromarray((values * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _paper(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (width, height), "white")
    return canvas, ImageDraw.Draw(canvas)


def _cut(text: str, width: float) -> str:
    """A text that is no wider than so many pixels, its end left out where it would be."""
    if _font().getlength(text) <= width:
        return text
    kept = next(n for n in range(len(text) - 1, -1, -1) if _font().getlength(text[:n] + "…") <= width or n == 0)
    return text[:kept] + "…"


def _folded(name: str, lines: int, width: float) -> str:
    """A name on so many lines at most, none of them wider than so many pixels."""
    text = textwrap.fill(name, _LETTERS, max_lines=lines, placeholder="…", break_long_words=False)
    return "\n".join(_cut(line, width) for line in text.split("\n"))


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font of matplotlib, which has letters of many languages; Pillow's own has no more than ASCII.

    Looked up without importing matplotlib: that takes longer than a picture.
    """
    (folder,) = find_spec("matplotlib").submodule_search_locations
    return ImageFont.truetype(Path(folder, "mpl-data/fonts/ttf/DejaVuSans.ttf"), 11)
