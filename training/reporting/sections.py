"""From records to the sections of a page. What no record holds is left out, and the page says so."""

from collections.abc import Mapping

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
    worst = {name: min(scores, key=lambda s: scores[s]["accuracy"]) for name, scores in complete.items()}
    full = {name: scores[sets[0]]["accuracy"] for name, scores in complete.items()}
    least = {name: complete[name][s]["accuracy"] for name, s in worst.items()}
    if len(models) == 1:
        (name,) = models
        scored = f"{_percent(full[name])} right on {sets[0]}, {_percent(least[name])} on the worst set"
        return f"{told} {scored}, {worst[name]}."
    return f"{told} Best on {sets[0]}: {_leaders(full)}. Best on its worst set: {_leaders(least, worst)}."


def _leaders(accuracies: Mapping[str, float], sets: Mapping[str, str] | None = None) -> str:
    """Who has the highest accuracy, and how high it is; a tie is told as one."""
    most = max(accuracies.values())
    names = [name for name, accuracy in accuracies.items() if accuracy == most]
    where = f" on {sets[names[0]]}" if sets and len({sets[name] for name in names}) == 1 else ""
    who = " and ".join(names) if len(names) <= _TIED else f"{len(names)} models alike"
    return f"{who} with {_percent(most)}{where}"


_TIED = 2  # models that a summary names side by side


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n != 1 else ''}"


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}\u00a0%"
