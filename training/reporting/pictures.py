"""Pictures that show images: what a network saw, and what it took that for."""

import io
import os
import warnings
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from modeling.channels import ChannelSet
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, RGB
from training.reporting.canvas import Axes, Figure, style
from training.reporting.figures import COLOURS

MOST = 12  # images in a picture
_LONGEST = 48  # letters of a name


def predictions(
    names: Sequence[str], images: Tensor, chosen: ChannelSet, guesses: Sequence[Sequence[tuple[str, float]]]
) -> bytes:
    """A row for each image: how the network saw it, and bars for the classes that it found likeliest; PNG.

    Args:
        names: of the images.
        images: N×|S|×H×W, normalised, on the CPU.
        chosen: the channels that they have.
        guesses: for each image class names with their probabilities, likeliest first.
    """
    with style(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks is drawn as boxes
        figure = Figure(figsize=(7, 1.7 * len(names) + 0.5), layout="constrained")
        rows = figure.subplots(len(names), 2, squeeze=False, width_ratios=(1, 2.2))
        for (left, right), name, image, likeliest in zip(rows, names, images, guesses, strict=True):
            left.imshow(as_seen(image, chosen), interpolation="nearest", aspect="equal")
            left.set_axis_off()
            left.set_title(_short(os.path.basename(name)), fontsize=8)  # noqa: PTH119
            _draw_guesses(right, likeliest)
        rows[-1, 1].set_xlabel("probability, %")
        figure.suptitle(f"channels {chosen}", fontsize=10)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def as_seen(image: Tensor, chosen: ChannelSet) -> Tensor:
    """H×W×3, 0 … 1: colours that are missing are black; bands stand side by side in gray.

    Args:
        image: |S|×H×W, normalised.
        chosen: its channels.
    """
    if not set(chosen) <= set(RGB):
        gray = (image.float() * fmean(IMAGENET_STD) + fmean(IMAGENET_MEAN)).clamp(0, 1)
        return torch.cat(list(gray), dim=1)[..., None].expand(-1, -1, 3)
    shown = torch.zeros(*image.shape[1:], 3)
    for plane, i in zip(image.float(), chosen.indices(RGB), strict=True):
        shown[..., i] = (plane * IMAGENET_STD[i] + IMAGENET_MEAN[i]).clamp(0, 1)
    return shown


def _draw_guesses(axes: Axes, likeliest: Sequence[tuple[str, float]]) -> None:
    places = range(len(likeliest))
    percents = [100 * probability for _, probability in likeliest]
    axes.barh(places, percents, 0.75, color=[COLOURS[0], *["#9aa5b1"] * (len(percents) - 1)])
    axes.set_yticks(places, [_short(name) for name, _ in likeliest], fontsize=9)
    axes.set_xlim(0, 118)  # room for the numbers behind the bars
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    for place, percent in zip(places, percents, strict=True):
        axes.text(percent + 1.5, place, f"{percent:.1f}", va="center", fontsize=8)


def _short(name: str) -> str:
    """A name that fits, and that can be drawn: bytes that are not UTF-8 are replaced."""
    text = os.fsencode(name).decode(errors="replace")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
