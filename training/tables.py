"""Tables made from records: rows of text, the first of them the head."""

from collections.abc import Sequence
from typing import Any

from pipelines.errors import DataError

Rows = list[list[str]]
Records = Sequence[dict[str, Any]]


def results(records: Records) -> str:
    """The main table of some records of one kind, with its note, as Markdown.

    Raises:
        DataError: the records are of different kinds.
    """
    kinds = {record["kind"] for record in records}
    if len(kinds) > 1:
        raise DataError(
            f"records of {' and '.join(sorted(kinds))} cannot stand in one table; make a table of each"
        )
    rows, note = _TABLES[kinds.pop()]
    return f"{markdown_table(rows(records))}\n\n{note(records)}"


def accuracy_rows(records: Records) -> Rows:
    """Per model: accuracy with interval on each channel set, the worst over that on all, and training time."""
    sets = list(records[0]["scores"])
    rows = [["top-1 %", *sets, "worst ÷ all", "training"]]
    for record in records:
        if list(record["scores"]) != sets or _test_set(record) != _test_set(records[0]):
            raise DataError(
                f"{record['name']} and {records[0]['name']} were not scored on the same images and channel sets; "
                "they cannot stand in one table"
            )
        scores = record["scores"]
        cells = [
            f"{100 * s['accuracy']:.1f} ({100 * s['low']:.1f}–{100 * s['high']:.1f})" for s in scores.values()
        ]
        all_channels = scores[sets[0]]["accuracy"]
        worst = min(s["accuracy"] for s in scores.values())
        ratio = f"{worst / all_channels:.2f}" if all_channels else "–"
        rows.append([record["name"], *cells, ratio, f"{record['seconds']['train'] / 60:.1f} min"])
    return rows


def cost_rows(records: Records) -> Rows:
    """Per model and channel set: parameters, multiply-adds, and the cost of making the kernel."""
    rows = [
        [
            "model",
            "channels",
            "parameters deployed",
            "multiply-adds per image",
            "per kernel made",
            "parameters stored",
        ]
    ]
    for record in records:
        for name, cost in record["cost"]["sets"].items():
            cells = [
                f"{cost['parameters']:,}",
                f"{cost['macs'] / 1e6:.1f} M",
                f"{cost['kernel_macs'] / 1e6:.2f} M",
            ]
            rows.append([record["name"], name, *cells, f"{record['cost']['stored_parameters']:,}"])
    return rows


def provenance_rows(records: Records) -> Rows:
    """Per model: what it was trained and evaluated with."""
    head = ["model", "images", "data", "seed", "epochs", "training", "sweep", "hardware", "trained at", "command"]
    rows = [head]
    for record in records:
        rows.append(
            [
                record["name"],
                f"{record['images']} {record['split']}, {record['quarantined']} quarantined",
                ", ".join(f"{split} {value}" for split, value in record["fingerprint"].items()),
                str(record["seed"]),
                str(record["recipe"]["schedule"]["epochs"]),
                f"{record['seconds']['train']:.0f} s, {record['precision']['train']}",
                f"{record['seconds']['sweep']:.1f} s",
                record["trained"]["hardware"],
                record["trained"]["commit"][:12],
                record["provenance"]["command"],
            ]
        )
    return rows


def accuracy_note(records: Records) -> str:
    """What a reader must know to read the table of accuracies."""
    counts = sorted({record["images"] for record in records})
    hardware = sorted({record["trained"]["hardware"] for record in records})
    commits = sorted({record["trained"]["commit"][:12] for record in records})
    return (
        f"One set of weights per row; n = {', '.join(map(str, counts))} {records[0]['split']} images per cell, "
        "with the 95 % Wilson interval in brackets; “worst ÷ all” is the worst channel set's accuracy over that "
        f"on all channels. Trained on {'; '.join(hardware)}, at commit {', '.join(commits)}."
    )


def _test_set(record: dict[str, Any]) -> tuple[str, str]:
    """What identifies the images that a record is about."""
    return record["split"], record["fingerprint"][record["split"]]


def loader_rows(records: Records) -> Rows:
    """Per contender: images per second and ratio to the baseline, on each data set."""
    heads = [f"{r['name']} to {r['settings']['size']} px, prefetch {r['settings']['prefetch']}" for r in records]
    names = list(dict.fromkeys(name for record in records for name in record["summary"]))
    return [["images/s (÷ plain)", *heads]] + [[name, *(_rate(r, name) for r in records)] for name in names]


def loader_note(records: Records) -> str:
    """What a reader must know to read the table of loaders."""
    rounds = sorted({f"{r['settings']['rounds']} rounds of {r['settings']['seconds']:g} s" for r in records})
    return (
        f"Medians over {', '.join(rounds)}, all contenders in turn in one process; in brackets the ratio to the "
        "plain DataLoader of the same round with its smallest and largest value. At commit "
        f"{', '.join(sorted({r['provenance']['commit'][:12] for r in records}))}, on "
        f"{'; '.join(sorted({_where(r) for r in records}))}."
    )


def _where(record: dict[str, Any]) -> str:
    return f"{record['provenance']['hardware']}, {record['settings']['threads']} threads"


def _rate(record: dict[str, Any], name: str) -> str:
    row = record["summary"].get(name)
    if row is None:
        return "–"
    ratio = row["ratio"]
    return f"{row['images_per_s']['median']:,.0f} ({ratio['median']:.2f}, {ratio['min']:.2f}–{ratio['max']:.2f})"


def stem_rows(records: Records) -> Rows:
    """Per record and stem: how much longer than an ordinary network's everything takes."""
    kinds = list(records[0]["parts"])
    rows = [["time ÷ plain", *kinds]]
    for record in records:
        for name in record["settings"]["stems"]:
            ratios = [record["parts"][kind]["summary"][name]["ratio"] for kind in kinds]
            cells = [f"{1 / r['median']:.2f} ({1 / r['max']:.2f}–{1 / r['min']:.2f})" for r in ratios]
            rows.append([f"{name} {record['name']}", *cells])
    return rows


def stem_note(records: Records) -> str:
    """What a reader must know to read the table of stems."""
    about = [
        f"{r['name']} at {r['settings']['size']} px, {r['settings']['batch_size']} images, {r['precision']}, "
        f"{r['settings']['rounds']} rounds of {r['settings']['seconds']:g} s on {r['provenance']['hardware']}, "
        f"at commit {r['provenance']['commit'][:12]}"
        for r in records
    ]
    return (
        "Median with smallest and largest value over rounds in which all took turns in one process, by the time "
        f"of an ordinary network on RGB: {'; '.join(about)}."
    )


def markdown_table(rows: Rows) -> str:
    """A table as Markdown."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


_TABLES = {
    "sweep": (accuracy_rows, accuracy_note),
    "benchmark loader": (loader_rows, loader_note),
    "benchmark stem": (stem_rows, stem_note),
}
