"""Pictures for reports, as SVG text; colours are told apart by colour-blind readers (Okabe and Ito)."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import DataError
from training.reporting.answers import all_sets, scores_by_model
from training.reporting.canvas import SCALE, Axes, AxesImage, Figure, LogNorm, Normalize, Rectangle, style, svg
from training.reporting.comparison import KINDS, kinds_of_sets, model_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
Models = Mapping[str, Mapping[str, Mapping[str, float]]]  # score rows by model and channel set
_MOST_BARS = 4  # in a group; more cannot be told apart
_SETS_PER_ROW = 7
_FIELDS_PER_ROW = 4
_QUIET = "#7f7f7f"
_OUTLINES = ("solid", "dashed", "dotted")  # of squares in a field, from the smallest on


def accuracy_by_set(records: Sequence[dict[str, Any]]) -> str:
    """Top-1 accuracy for each channel set and model, with 95 % intervals: bars of few models, points of many.

    Experts are one model where others stand beside them. A line through points marks the first model's accuracy.
    """
    scores = scores_by_model(records)
    draw = _bars if len(scores) <= _MOST_BARS else _points
    with style():
        return svg(draw(scores, all_sets(records), f"{records[0]['split']} top-1 accuracy, %"))


def _bars(models: Models, names: Sequence[str], label: str) -> Figure:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(models)
    for i, (model, scores) in enumerate(models.items()):
        taken = [x for x, name in enumerate(names) if name in scores]  # an expert takes one set
        heights, errors = _with_errors([scores[names[x]] for x in taken])
        places = [x + (i - (len(models) - 1) / 2) * width for x in taken]
        bars = {"elinewidth": 1, "capsize": 2, "ecolor": _QUIET}
        axes.bar(places, heights, width * 0.92, yerr=errors, label=model, color=COLOURS[i], error_kw=bars)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("channels given")
    axes.set_ylabel(label)
    axes.legend(frameon=False, loc="upper right", ncols=len(models), bbox_to_anchor=(1, 1.15))
    return figure


def _points(models: Models, names: Sequence[str], label: str) -> Figure:
    """A row for each model, a panel for each channel set."""
    rows = -(-len(names) // _SETS_PER_ROW)
    columns = min(len(names), _SETS_PER_ROW)
    figure = Figure(figsize=(1.5 + columns, rows * (0.6 + 0.2 * len(models)) + 0.2), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        for y, scores in enumerate(models.values()):
            if name in scores:
                (middle,), error = _with_errors([scores[name]])
                axes.errorbar(middle, y, xerr=error, fmt="o", markersize=3, color=COLOURS[0])
                if y == 0:
                    axes.axvline(middle, color=_QUIET, linewidth=0.7)
        axes.set_title(name, fontsize=9)
        axes.set_yticks(range(len(models)), models)
        axes.tick_params(labelsize=8)
    panels[0].invert_yaxis()
    for unused in panels[len(names) :]:
        unused.set_axis_off()
    figure.supxlabel(label, fontsize=9)
    return figure


def _with_errors(rows: Sequence[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Accuracies in percent, and how far their intervals reach below and above."""
    return [100 * row["accuracy"] for row in rows], [
        [100 * (row["accuracy"] - row["low"]) for row in rows],
        [100 * (row["high"] - row["accuracy"]) for row in rows],
    ]


def accuracy_by_cost(records: Sequence[dict[str, Any]]) -> str:
    """Top-1 accuracy of networks, with 95 % intervals, against their depth and what they cost.

    Networks are compared on the channel set that the first was scored on first; lines mark parts of its accuracy.

    Args:
        records: of sweeps; a record of `benchmark networks` among them adds the panel of latencies.

    Raises:
        DataError: a network was not scored on that set, or its depth or latency is not known.
    """
    sweeps = [record for record in records if record["kind"] == "sweep"]
    chosen = next(iter(sweeps[0]["scores"]))
    for record in sweeps:
        if chosen not in record["scores"] or not record["cost"]["depth"]:
            raise DataError(
                f"the record of {record['name']} has no accuracy on {chosen}, or no depth; make it with "
                "training.evaluate, without --channel-sets and --unknown"
            )
    panels = costs_of(sweeps, chosen) | _latencies(records, [r["name"] for r in sweeps])
    columns = 3 if len(panels) > 4 else 2
    with style():
        figure = Figure(figsize=(8, 2.5 * -(-len(panels) // columns)), layout="constrained")
        axes = figure.subplots(-(-len(panels) // columns), columns, sharey=True, squeeze=False)
        for panel, (label, costs) in zip(axes.flat, panels.items(), strict=False):
            _draw_costs(panel, label, costs, [r["scores"][chosen] for r in sweeps], [r["name"] for r in sweeps])
        for unused in axes.flat[len(panels) :]:
            unused.set_axis_off()
        for first in axes[:, 0]:
            first.set_ylabel(f"{sweeps[0]['split']} top-1, %")
        figure.legend(
            *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
        return svg(figure)


def accuracy_of_new_sets(records: Sequence[dict[str, Any]]) -> str:
    """Top-1 accuracy on every channel set by what training knew of it: a point for each set, a line at their mean.

    Records of one model share a row.
    """
    models = list(dict.fromkeys(map(model_of, records)))
    with style():
        figure = Figure(figsize=(8, 1 + 0.6 * len(models)), layout="constrained")
        axes = figure.add_subplot()
        for record in records:
            for kind, names in kinds_of_sets(record).items():
                i = KINDS.index(kind)
                y = models.index(model_of(record)) + 0.2 * (i - 1.5)
                points = [100 * record["scores"][name]["accuracy"] for name in names]
                axes.plot(points, [y] * len(points), "o", markersize=3, alpha=0.6, color=COLOURS[i], label=kind)
                axes.plot([sum(points) / len(points)] * 2, [y - 0.09, y + 0.09], color=COLOURS[i], linewidth=2)
        axes.set_yticks(range(len(models)), models)
        axes.invert_yaxis()
        axes.set_xlabel(f"{records[0]['split']} top-1 accuracy, %")
        told = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(told.values(), told.keys(), loc="outside lower center", ncols=2, frameon=False)
        return svg(figure)


def costs_of(sweeps: Sequence[dict[str, Any]], chosen: str) -> dict[str, list[float]]:
    """By the name of a cost what each network takes of it on a channel set."""
    costs = [(record["cost"]["depth"], record["cost"]["sets"][chosen]) for record in sweeps]
    return {
        **{text: [depth[key] for depth, _ in costs] for key, text in _DEPTHS.items()},
        "parameters, millions": [cost["parameters"] / 1e6 for _, cost in costs],
        "multiply-adds, millions": [cost["macs"] / 1e6 for _, cost in costs],
    }


_DEPTHS = {"d1": "D1: learned maps on the path", "d2": "D2: affine maps"}
_PARTS = {1.0: "solid", 0.95: "dashed", 0.9: "dotted"}  # of the first network's accuracy
_TICKS = [figure * 10.0**power for power in range(-3, 6) for figure in (1, 2, 5)]
_SYMBOLS = "os^DvPX*<>hp"


def _latencies(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds for one image, where they were measured."""
    found: dict[str, float] = {}
    for record in records:
        if record["kind"] == "benchmark networks":
            rows = record["parts"]["inference, one image"]["summary"]
            found |= {name: 1000 / row["images_per_s"]["median"] for name, row in rows.items()}
    if missing := [name for name in names if found and name not in found]:
        raise DataError(
            f"the benchmark timed {', '.join(found)}, not {', '.join(missing)}; make it of the same runs"
        )
    return {"latency of one image, ms": [found[name] for name in names]} if found else {}


def _draw_costs(
    axes: Axes, label: str, costs: Sequence[float], scores: Sequence[dict[str, Any]], names: Sequence[str]
) -> None:
    for part, line in _PARTS.items():
        height, told = 100 * part * scores[0]["accuracy"], f"{part:g} × {names[0]}"
        axes.axhline(height, color=_QUIET, linewidth=0.7, linestyle=line, label=told)
    for i, (x, score, name) in enumerate(zip(costs, scores, names, strict=True)):
        middle, low, high = (100 * score[key] for key in ("accuracy", "low", "high"))
        colour, symbol = COLOURS[i % len(COLOURS)], _SYMBOLS[i % len(_SYMBOLS)]
        axes.errorbar(x, middle, [[middle - low], [high - middle]], fmt=symbol, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_xticks(_own_ticks(costs) if label in _DEPTHS.values() else _round_ticks(costs), minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def _round_ticks(costs: Sequence[float]) -> list[float]:
    return [x for x in _TICKS if min(costs) / 1.2 <= x <= max(costs) * 1.2]


def _own_ticks(costs: Sequence[float]) -> list[float]:
    """The values themselves, of neighbours that would be written over one another the first."""
    ticks: list[float] = []
    for x in sorted(costs):
        if not ticks or x > 1.15 * ticks[-1]:
            ticks.append(x)
    return ticks


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
        bar = figure.colorbar(images[0], ax=panels, label="% in a pixel (log scale)", format="{x:g}")
        bar.minorticks_off()
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
