"""From records to the sections of a page. What no record holds is left out, and the page says so."""

from collections.abc import Mapping
from typing import Any

from training.reporting import details, overview
from training.reporting.answers import Record, Records, all_sets, scores_by_model
from training.reporting.blocks import Section, Table
from training.reporting.source import Absent, Source

_SECTIONS = {
    "Accuracy by channel set": overview.accuracy,
    "Models compared": overview.comparisons,
    "What the settings do": overview.ablations,
    "Accuracy against cost": overview.costs,
    "Training": overview.training,
    "Other scores": overview.other_scores,
    "Reliability": details.reliability,
    "Changed images": overview.robustness,
    "When a channel is lost": details.lost_channels,
    "Agreement between channel sets": details.agreement,
    "Confusion": details.confusions,
    "Images": details.samples,
    "Where these numbers come from": overview.provenance,
}


def sections(source: Source, others: list[Record]) -> list[Section]:
    """All sections for which there is something to show; the last says what there is not.

    Args:
        source: sweeps.
        others: records of other kinds.

    Raises:
        DataError: sweeps over different images, or a record that contradicts itself.
    """
    found, missing = [], []
    for title, build in _SECTIONS.items() if source.records else ():
        try:
            found.append(Section(title, list(build(source))))
        except Absent as reason:
            missing.append([title, str(reason)])
    if others:
        found.append(Section("Measurements", list(overview.others(others))))
    if missing:
        table = Table("Sections left out", [["section", "why it is not here"], *missing])
        found.append(Section("Not shown", [table]))
    return found


def summary(records: Records) -> str:
    """What was compared, and which model did best on all channels and on its worst set."""
    if not records:
        return "Measurements."
    sets, models = all_sets(records), scores_by_model(records)
    told = (
        f"{_count(len(models), 'model')} on {_count(len(sets), 'channel set')} of "
        f"{records[0]['images']} {records[0]['split']} images."
    )
    complete = {name: scores for name, scores in models.items() if len(scores) == len(sets)}
    if not complete:
        return told
    best = max(complete, key=lambda name: complete[name][sets[0]]["accuracy"])
    worst = {name: min(scores, key=lambda s: scores[s]["accuracy"]) for name, scores in complete.items()}
    firm = max(complete, key=lambda name: complete[name][worst[name]]["accuracy"])
    return (
        f"{told} Best on {sets[0]}: {best} with {_percent(complete[best][sets[0]])}. "
        f"Best on its worst set: {firm} with {_percent(complete[firm][worst[firm]])} on {worst[firm]}."
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n != 1 else ''}"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f}\u00a0%"
