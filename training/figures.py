"""Pictures for reports, as SVG text; colours are told apart by colour-blind readers (Okabe and Ito)."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from training.comparison import all_sets

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_FIELDS_PER_ROW = 4
_OUTLINES = ("solid", "dashed", "dotted")  # of squares in a field, from the smallest on
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and scales with the page
    "svg.hashsalt": "anychannel",  # the same record gives the same file
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def accuracy_by_set(records: Sequence[dict[str, Any]]) -> str:
    """Bars of top-1 accuracy for each channel set and model, with 95 % intervals."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.add_subplot()
        names = all_sets(records)
        width = 0.8 / len(records)
        for i, record in enumerate(records):
            taken = [x for x, name in enumerate(names) if name in record["scores"]]  # an expert takes one set
            rows = [record["scores"][names[x]] for x in taken]
            heights = [100 * row["accuracy"] for row in rows]
            errors = [
                [100 * (row["accuracy"] - row["low"]) for row in rows],
                [100 * (row["high"] - row["accuracy"]) for row in rows],
            ]
            places = [x + (i - (len(records) - 1) / 2) * width for x in taken]
            axes.bar(
                places,
                heights,
                width * 0.92,
                yerr=errors,
                label=record["name"],
                color=COLOURS[i % len(COLOURS)],
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#7f7f7f"},
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("channels given")
        axes.set_ylabel(f"{records[0]['split']} top-1 accuracy, %")
        axes.legend(frameon=False, loc="upper right", ncols=len(records), bbox_to_anchor=(1, 1.15))
        return _svg(figure)


def training_curves(records: Sequence[dict[str, Any]]) -> str:
    """Training loss, and validation accuracy on all channels and on the worst channel set, over epochs."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, record in enumerate(records):
            colour = COLOURS[i % len(COLOURS)]
            steps_per_epoch = _steps_per_epoch(record["history"])
            losses = [
                (r["step"] / steps_per_epoch, r["train/loss"]) for r in record["history"] if "train/loss" in r
            ]
            left.plot(*_columns(losses), color=colour, label=record["name"], linewidth=1.3)
            best, worst = [], []
            for row in record["history"]:
                values = {k.rpartition("/")[2]: 100 * v for k, v in row.items() if k.startswith("val/top1/")}
                if values:
                    best.append((row["step"] / steps_per_epoch, values[max(values, key=len)]))
                    worst.append((row["step"] / steps_per_epoch, min(values.values())))
            right.plot(*_columns(best), color=colour, marker="o", markersize=3, label="all channels")
            right.plot(*_columns(worst), color=colour, linestyle="--", marker="o", markersize=3, label="worst set")
        left.set_xlabel("epoch")
        left.set_ylabel("training loss")
        left.legend(frameon=False)
        right.set_xlabel("epoch")
        right.set_ylabel("validation top-1, %")
        right.set_title("solid: all channels · dashed: worst channel set", fontsize=9)
        return _svg(figure)


def receptive_fields(records: Sequence[dict[str, Any]]) -> str:
    """Effective receptive fields side by side in one scale, with the squares that hold parts of them.

    The scale is logarithmic, over four decades below the strongest pixel of all; what is less is drawn as dark.
    """
    networks = [network for record in records for network in record["networks"]]
    columns = min(len(networks), _FIELDS_PER_ROW)
    rows = -(-len(networks) // columns)
    peak = 100 * max(network["field"]["peak"] for network in networks)
    scale = LogNorm(peak / 10_000, peak, clip=True)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.9 * columns + 0.9, 2.2 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        images = [_draw_field(*panel, scale) for panel in zip(panels.flat, networks, strict=False)]
        figure.colorbar(images[0], ax=panels, label="% in a pixel (log scale)")
        figure.supxlabel(_squares_legend(networks[0]["squares"]), fontsize=9)
        return _svg(figure)


def _draw_field(axes: Axes, network: dict[str, Any], scale: Normalize) -> AxesImage:
    height, width = network["size"]
    peak, rows = network["field"]["peak"], network["field"]["rows"]
    percents = [[100 * peak * (level / 255) ** 4 for level in bytes.fromhex(row)] for row in rows]
    for square, outline in zip(network["squares"].values(), _OUTLINES, strict=False):
        corner, side = (square["left"], square["top"]), square["side"]
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linestyle=outline))
    axes.set_title(f"{network['name']}, {network['channels']}", fontsize=9)
    return axes.imshow(percents, "cividis", scale, interpolation="none", extent=(0, width, height, 0))


def _squares_legend(squares: dict[str, Any]) -> str:
    """What the outlines are, as `solid: 50 % · dashed: 90 % of the field`."""
    parts = [f"{outline}: {share} %" for share, outline in zip(squares, _OUTLINES, strict=False)]
    return f"{' · '.join(parts)} of the field"


def _steps_per_epoch(history: Sequence[dict[str, Any]]) -> float:
    ends = [row for row in history if any(key.startswith("val/") for key in row)]
    return ends[-1]["step"] / ends[-1]["epoch"] if ends else 1.0


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def on_white(svg: str) -> str:
    """A picture for pages whose background is not ours to know."""
    return svg.replace("<svg ", '<svg style="background: white" ', 1)


def in_page_colour(svg: str) -> str:
    """A picture whose lines and text take the colour of the page around it, light or dark."""
    return svg.replace("#000000", "currentColor").replace("<svg ", '<svg fill="currentColor" ', 1)
