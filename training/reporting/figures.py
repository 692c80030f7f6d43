"""Pictures for reports, as SVG text; colours are told apart by colour-blind readers (Okabe and Ito)."""

from collections.abc import Sequence
from typing import Any

from training.reporting.answers import all_sets
from training.reporting.canvas import SCALE, Axes, AxesImage, Figure, LogNorm, Normalize, Rectangle, style, svg

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_FIELDS_PER_ROW = 4
_OUTLINES = ("solid", "dashed", "dotted")  # of squares in a field, from the smallest on


def accuracy_by_set(records: Sequence[dict[str, Any]]) -> str:
    """Bars of top-1 accuracy for each channel set and model, with 95 % intervals."""
    with style():
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
        return svg(figure)


def receptive_fields(records: Sequence[dict[str, Any]]) -> str:
    """Effective receptive fields side by side in one scale, with the squares that hold parts of them.

    The scale is logarithmic, over four decades below the strongest pixel of all; what is less is drawn as dark.
    """
    networks = [network for record in records for network in record["networks"]]
    columns = min(len(networks), _FIELDS_PER_ROW)
    rows = -(-len(networks) // columns)
    peak = 100 * max(network["field"]["peak"] for network in networks)
    scale = LogNorm(peak / 10_000, peak, clip=True)
    with style():
        figure = Figure(figsize=(1.9 * columns + 0.9, 2.2 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        images = [_draw_field(*panel, scale) for panel in zip(panels.flat, networks, strict=False)]
        figure.colorbar(images[0], ax=panels, label="% in a pixel (log scale)")
        figure.supxlabel(_squares_legend(networks[0]["squares"]), fontsize=9)
        return svg(figure)


def _draw_field(axes: Axes, network: dict[str, Any], scale: Normalize) -> AxesImage:
    height, width = network["size"]
    peak, rows = network["field"]["peak"], network["field"]["rows"]
    percents = [[100 * peak * (level / 255) ** 4 for level in bytes.fromhex(row)] for row in rows]
    for square, outline in zip(network["squares"].values(), _OUTLINES, strict=False):
        corner, side = (square["left"], square["top"]), square["side"]
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linestyle=outline))
    axes.set_title(f"{network['name']}, {network['channels']}", fontsize=9)
    return axes.imshow(percents, SCALE, scale, interpolation="none", extent=(0, width, height, 0))


def _squares_legend(squares: dict[str, Any]) -> str:
    """What the outlines are, as `solid: 50 % · dashed: 90 % of the field`."""
    parts = [f"{outline}: {share} %" for share, outline in zip(squares, _OUTLINES, strict=False)]
    return f"{' · '.join(parts)} of the field"
