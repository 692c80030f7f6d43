"""Sections that look into each model: calibration, classes, agreement of channel sets, images."""

from collections.abc import Iterator

from training.reporting import classes, diagrams
from training.reporting.answers import all_sets, class_names
from training.reporting.blocks import Block, Panel, Picture, Table, Text
from training.reporting.overview import names
from training.reporting.samples import sample_rows
from training.reporting.source import Absent, Source


def reliability(source: Source) -> Iterator[Block]:
    """How often models are right by how sure they are, for each channel set."""
    records, gaps = source.having("reliability")
    for group in diagrams.together(list(zip(diagrams.marks([r["name"] for r in records]), records, strict=True))):
        panels = []
        for name in all_sets([record for _, record in group]):
            bins = [(mark, r["reliability"][name]) for mark, r in group if name in r["reliability"]]
            label = f"Reliability on {name} of {names([mark for mark, _ in bins])}"
            panels.append(Panel(label, diagrams.reliability(bins, name)))
        yield Picture(_RELIABILITY, panels, [mark for mark, _ in group])
    yield from gaps


_RELIABILITY = (
    "Accuracy (upwards) by confidence, both in %; the larger a mark, the more images it stands for. Below the "
    "diagonal a model is too sure of itself."
)


def lost_channels(source: Source) -> Iterator[Block]:
    """Which classes suffer when a channel is lost."""
    records, gaps = source.having("labels", "predicted")
    told = [record for record in records if classes.lost_channels(record)]
    if not told:
        raise Absent("no record holds all channels and all but one of them")
    for record in told:
        note = (
            "Accuracy in percent, differences in percentage points; the class that loses most comes first"
            f"{_of_all(classes.count_classes(record), 'classes')}. The brighter, the greater the loss."
        )
        yield Table(
            f"{record['name']}: accuracy by class without a channel", classes.lost_channel_rows(record), note
        )
    yield from gaps


def _of_all(count: int, what: str) -> str:
    return f", {classes.MOST} of {count} {what}" if count > classes.MOST else ""


def agreement(source: Source) -> Iterator[Block]:
    """On how many images two channel sets lead to the same guess."""
    records, gaps = source.having("predicted")
    told = [record for record in records if len(record["predicted"]) > 1]
    if not told:
        raise Absent("no record holds more than one channel set")
    for record in told:
        rows = classes.agreement_rows(record)
        note = f"{classes.agreement_note(record)} The brighter, the more often."
        yield Table(f"{record['name']}: agreement of channel sets", rows, note)
    yield from gaps


def confusions(source: Source) -> Iterator[Block]:
    """Which classes are taken for which."""
    records, gaps = source.having("labels", "predicted")
    panels, tables = [], []
    for record in records:
        name, full = record["name"], all_sets([record])[0]
        matrix = classes.confusion(record, full)
        drawn = diagrams.confusion(matrix, class_names(record, len(matrix)), name)
        panels.append(Panel(f"Confusion matrix of {name} on {full}", drawn))
        note = f"Images of the class, and how many were taken for the other; most often on {full} first."
        tables.append(Table(f"{name}: pairs that are most often confused", classes.confused_rows(record), note))
    yield Picture("Classes (downwards) and what they were taken for, on all channels", panels)
    yield from (table for table in tables if len(table.rows) > 1)
    yield from gaps


def samples(source: Source) -> Iterator[Block]:
    """Some images, and what the models took them for on each channel set."""
    if not source.samples:
        raise Absent("--samples 0 was asked for")
    if not source.folders:
        raise Absent("images can be shown for run directories only, and these are record files")
    source.having("predicted")
    reasons = {}
    for record in source.records:
        try:
            rows = sample_rows(record, source.folders.get(record["name"]), source.samples)
        except Absent as reason:
            reasons[record["name"]] = str(reason)
            continue
        note = "Images evenly spread over the list, as the network saw them on all channels; ✓ right, ✗ wrong."
        yield Table(f"{record['name']}: what it took images for", rows, note)
    if len(reasons) == len(source.records):
        raise Absent("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    for name, reason in reasons.items():
        yield Text(f"Without {name}: {reason}.")
