"""What models do class by class, and where channel sets agree: from the labels and best guesses in records."""

import numpy as np
import torch

from modeling.channels import ChannelSet, parse_names
from training.evaluation import metrics
from training.reporting.answers import Record, all_sets, class_names, labels, predictions
from training.reporting.blocks import Cell, Rows, shaded

MOST = 20  # classes, or pairs of them, in a table


def confusion(record: Record, channel_set: str) -> np.ndarray:
    """Images by class and best guess, (classes, classes), int64."""
    truth, guess = (torch.from_numpy(found) for found in (labels(record), predictions(record)[channel_set]))
    return metrics.confusion(truth, guess, count_classes(record)).numpy()


def count_classes(record: Record) -> int:
    """How many classes a record speaks of: those named, or those that occur."""
    occurring = [labels(record), *predictions(record).values()]
    return max(len(record.get("class_names", [])), *(int(found.max()) + 1 for found in occurring))


def agreement_rows(record: Record) -> list[list[str | Cell]]:
    """Per two channel sets: on how many images, in percent, the best guess is the same."""
    found = predictions(record)
    same = [[100 * float(np.mean(a == b)) for b in found.values()] for a in found.values()]
    rows = [[name, *(f"{value:.1f}" for value in row)] for name, row in zip(found, same, strict=True)]
    coloured = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(same)]
    return shaded([["same guess, %", *found], *rows], coloured)


def agreement_note(record: Record) -> str:
    """What a reader must know to read the table of agreement."""
    return (
        f"Part of {record['images']} {record['split']} images on which the best guess of {record['name']} is the "
        "same, right or wrong."
    )


def lost_channels(record: Record) -> dict[str, str]:
    """Each channel of the largest set → the set that remains without it, where it was scored."""
    full = parse_names(all_sets([record])[0])
    rest = {lost: [name for name in full if name != lost] for lost in full if len(full) > 1}
    remaining = {lost: str(ChannelSet(tuple(names))) for lost, names in rest.items()}
    return {lost: name for lost, name in remaining.items() if name in record["predicted"]}


def lost_channel_rows(record: Record) -> list[list[str | Cell]]:
    """Per class: accuracy on all channels, and how many points it loses with each of them; the greatest first.

    Classes without images are left out, and so are those that lose least beyond the first `MOST`.
    """
    lost, full = lost_channels(record), all_sets([record])[0]
    names = class_names(record, count_classes(record))
    matrices = {name: confusion(record, name) for name in (full, *lost.values())}
    images = matrices[full].sum(1)
    part = {name: 100 * matrix.diagonal() / np.maximum(images, 1) for name, matrix in matrices.items()}
    drops = {name: part[full] - part[name] for name in lost.values()}
    order = sorted(np.flatnonzero(images), key=lambda i: -max(drop[i] for drop in drops.values()))[:MOST]
    head = ["class", "images", f"{full}, %", *(f"without {channel}" for channel in lost)]
    rows = [
        [names[i], str(images[i]), f"{part[full][i]:.1f}", *(signed(-drop[i]) for drop in drops.values())]
        for i in order
    ]
    return shaded([head, *rows], [[None, None, *(max(0.0, drop[i]) for drop in drops.values())] for i in order])


def confused_rows(record: Record) -> Rows:
    """The pairs of classes that are most often confused on all channels, and how often on each channel set."""
    matrices = {name: confusion(record, name) for name in predictions(record)}
    full = matrices[all_sets([record])[0]]
    names, wrong = class_names(record, len(full)), full - np.diag(full.diagonal())
    pairs = sorted(np.argwhere(wrong).tolist(), key=lambda pair: -wrong[*pair])[:MOST]
    rows = [["class → taken for", "images", *matrices]]
    for truth, guess in pairs:
        counts = [str(matrix[truth, guess]) for matrix in matrices.values()]
        rows.append([f"{names[truth]} → {names[guess]}", str(full[truth].sum()), *counts])
    return rows


def signed(points: float) -> str:
    """A difference in percentage points."""
    return f"{points:+.1f}".replace("-", "−") if round(points, 1) else "0.0"
