"""Runs whose recipes differ in few settings: which, and what came of it."""

from typing import Any

import numpy as np

from training.recipe_file import HARMLESS
from training.reporting.answers import Record, Records, all_sets
from training.reporting.blocks import Rows

MOST = 8  # differing settings that a table can show
_ABSENT = "–"  # a recipe from before there was such a setting


def settings(record: Record) -> dict[str, Any]:
    """A record's recipe as flags and values, with what the evaluation changed."""
    flat = dict(_flat(record["recipe"]))
    return flat | {"evaluate.recalibrate": record.get("recalibrated_on", 0)}


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def differing(records: Records) -> list[str]:
    """The settings that are not the same in all recipes that have them; none that cannot change a result."""
    each = [settings(record) for record in records]
    names = dict.fromkeys(name for flat in each for name in flat if name not in HARMLESS)
    return [name for name in names if len({repr(flat[name]) for flat in each if name in flat}) > 1]


def ablation_rows(records: Records) -> Rows:
    """Per run: the settings that differ, and accuracy on all channels, on the worst set and on average."""
    names, full = differing(records), all_sets(records)[0]
    rows = [["run", *names, f"{full}, %", "worst set, %", "mean, %", "sets"]]
    for record in records:
        flat, scores = settings(record), record["scores"]
        found = [100 * row["accuracy"] for row in scores.values()]
        results = [_percent(scores, full), f"{min(found):.1f}", f"{np.mean(found):.1f}", str(len(found))]
        rows.append([record["name"], *(_told(flat, name) for name in names), *results])
    return rows


def _percent(scores: dict[str, Any], name: str) -> str:
    return f"{100 * scores[name]['accuracy']:.1f}" if name in scores else "–"


def _told(flat: dict[str, Any], name: str) -> str:
    if name not in flat:
        return _ABSENT
    value = flat[name]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
