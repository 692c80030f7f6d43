"""Diagrams for pages: narrow, to be read on a phone, and without a legend of their own; the page has the key."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from training.reporting.blocks import Mark
from training.reporting.canvas import PANEL, SCALE, SMALL, Axes, PowerNorm, panel
from training.reporting.figures import COLOURS

TOGETHER = 6  # models in one diagram; more would hide each other
_SYMBOLS = {"●": "o", "■": "s", "▲": "^", "◆": "D", "▼": "v", "✚": "P"}
_NAMED_CLASSES = 24  # more names would not fit along an axis
_LONGEST_NAME = 22  # letters
_ROW, _LETTER = 0.125, 0.065  # inches of a class's row, and of a letter of its name
_QUIET = "#7f7f7f"  # seen on white and on black


def marks(names: Sequence[str]) -> list[Mark]:
    """How each model is drawn, in all diagrams: neighbours by colours of their own, all by colour and symbol."""
    symbols = list(_SYMBOLS)
    return [
        Mark(name, COLOURS[i % TOGETHER], symbols[(i + i // TOGETHER) % TOGETHER]) for i, name in enumerate(names)
    ]


def together(models: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Models in groups that one diagram can show, as even as can be."""
    groups = -(-len(models) // TOGETHER)
    ends = [len(models) * i // groups for i in range(groups + 1)]
    for start, end in itertools.pairwise(ends):
        yield models[start:end]


def accuracies(
    models: Sequence[tuple[Mark, Mapping[str, Any]]], sets: Sequence[str], limits: tuple[float, float]
) -> str:
    """Accuracy with its 95 % interval by channel set.

    Args:
        models: score rows by channel set; a model may lack some.
        sets: all channel sets, to be drawn from the top down.
        limits: of the axis, in percent.
    """

    def plot(axes: Axes) -> None:
        step = 0.72 / len(models)
        for i, (mark, scores) in enumerate(models):
            rows = [(y, scores[name]) for y, name in enumerate(sets) if name in scores]
            for y, row in rows:
                place = y + (i - (len(models) - 1) / 2) * step
                axes.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=mark.colour)
                axes.plot(100 * row["accuracy"], place, _SYMBOLS[mark.symbol], color=mark.colour)
        for y in range(1, len(sets)):
            axes.axhline(y - 0.5, color=_QUIET, linewidth=0.3)
        axes.set_yticks(range(len(sets)), sets)
        axes.set_ylim(len(sets) - 0.5, -0.5)
        axes.set_xlim(*limits)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("top-1 accuracy, %")

    return panel(plot, height=0.5 + len(sets) * (0.14 + 0.09 * len(models)))


def losses(models: Sequence[tuple[Mark, Mapping[str, Any]]]) -> str:
    """Training loss over epochs, from each model's record."""

    def plot(axes: Axes) -> None:
        for mark, record in models:
            epoch = _steps_per_epoch(record["history"])
            rows = [(row["step"] / epoch, row["train/loss"]) for row in record["history"] if "train/loss" in row]
            symbol = _SYMBOLS[mark.symbol] if len(rows) == 1 else None  # a line of one point is none
            axes.plot(*_columns(rows), color=mark.colour, marker=symbol)
        _name_epochs(axes)
        axes.set_ylabel("training loss")

    return panel(plot)


def validations(models: Sequence[tuple[Mark, Mapping[str, Any]]]) -> str:
    """Validation accuracy over epochs on all channels, and dashed on the worst channel set."""

    def plot(axes: Axes) -> None:
        for mark, record in models:
            best, worst = validation_curves(record)
            symbol = _SYMBOLS[mark.symbol]
            axes.plot(*_columns(best), color=mark.colour, marker=symbol)
            axes.plot(*_columns(worst), color=mark.colour, marker=symbol, linestyle="--", fillstyle="none")
        _name_epochs(axes)
        axes.set_ylabel("validation top-1, %")

    return panel(plot)


def _name_epochs(axes: Axes) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")


Points = list[tuple[float, float]]


def validation_curves(record: Mapping[str, Any]) -> tuple[Points, Points]:
    """(epoch, accuracy in percent) on all channels, and on the worst channel set."""
    epoch, best, worst = _steps_per_epoch(record["history"]), [], []
    for row in record["history"]:
        values = {k.rpartition("/")[2]: 100 * v for k, v in row.items() if k.startswith("val/top1/")}
        if values:
            best.append((row["step"] / epoch, values[max(values, key=len)]))
            worst.append((row["step"] / epoch, min(values.values())))
    return best, worst


def costs(models: Sequence[tuple[Mark, float, float]], label: str) -> str:
    """Accuracy against a cost.

    Args:
        models: each with its cost and its accuracy in percent.
        label: what the cost is.
    """

    def plot(axes: Axes) -> None:
        for mark, cost, accuracy in models:
            axes.plot(cost, accuracy, _SYMBOLS[mark.symbol], color=mark.colour, markersize=6)
        ends = [1.15 * max(values) or 1 for values in zip(*(model[1:] for model in models), strict=True)]
        axes.set(xlim=(0, ends[0]), ylim=(0, ends[1]))
        axes.set_xlabel(label)
        axes.set_ylabel("mean top-1, %")

    return panel(plot, height=2.3)


def reliability(models: Sequence[tuple[Mark, Mapping[str, Any]]], title: str) -> str:
    """How often a model is right, where it says how sure it is; honest models keep to the diagonal.

    Args:
        models: each with sums by bin: `count`, `confidence`, `right`.
        title: the channel set.
    """

    def plot(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=_QUIET, linewidth=0.6)
        for mark, bins in models:
            rows = [(100 * c / n, 100 * r / n, n) for n, c, r in _bins(bins) if n]
            x, y, count = (np.array(column) for column in zip(*rows, strict=True))
            axes.plot(x, y, color=mark.colour, linewidth=0.6)
            axes.scatter(
                x, y, 40 * count / count.sum() + 2, c=mark.colour, marker=_SYMBOLS[mark.symbol], linewidths=0
            )
        axes.set(xlim=(0, 102), ylim=(0, 102), xticks=(0, 50, 100), yticks=(0, 50, 100), aspect="equal")
        axes.set_title(title, fontsize=8.5)

    return panel(plot, SMALL, SMALL)


def _bins(bins: Mapping[str, Any]) -> Iterator[tuple[float, float, float]]:
    return zip(bins["count"], bins["confidence"], bins["right"], strict=True)


def confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> str:
    """Which classes a model takes for which.

    Args:
        matrix: images by class and best guess, (classes, classes).
        names: of the classes.
        title: the model.
    """
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    rows = [_row_name(name, i) for i, name in enumerate(names)] if len(names) <= _NAMED_CLASSES else []
    side = max(2.2, _ROW * len(rows))  # of the matrix
    width = max(PANEL, side + _LETTER * max(map(len, rows), default=0) + 0.4)

    def plot(axes: Axes) -> None:
        image = axes.imshow(percent, SCALE, PowerNorm(0.5, 0, 100), interpolation="none")
        if rows:
            every = 1 + len(rows) // 13  # more would touch each other
            axes.set_xticks(range(0, len(rows), every), range(0, len(rows), every), fontsize=7.5)
            axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
        axes.set_xlabel("best guess")
        axes.set_title(_short(title), fontsize=8.5)
        bar = axes.figure.colorbar(image, ax=axes, ticks=(0, 5, 20, 50, 100), orientation="horizontal", aspect=30)
        bar.set_label("% of the class (scale of roots)")

    return panel(plot, width, side + 1.4)


def _row_name(name: str, number: int) -> str:
    """A class's name, and its number, by which its column goes."""
    return name if name == str(number) else f"{_short(name)} {number}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _steps_per_epoch(history: Sequence[Mapping[str, Any]]) -> float:
    ends = [row for row in history if any(key.startswith("val/") for key in row)]
    return ends[-1]["step"] / ends[-1]["epoch"] if ends else 1.0


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
