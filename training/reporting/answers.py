"""What sweeps' records say of each image, and which of them may stand side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.errors import DataError
from training.evaluation.metrics import decode_classes, from_hex

Record = dict[str, Any]
Records = Sequence[Record]
Answers = dict[str, np.ndarray]  # by channel set: bool, (images,), whether each was right
EXPERTS = "dedicated experts"


def answers(record: Record) -> Answers:
    """Which images a model got right, by channel set.

    Raises:
        DataError: the record is from before this was kept.
    """
    if "right" not in record:
        raise DataError(f"the record of {record['name']} lacks `right`; make it again with training.evaluate")
    return {name: from_hex(text, record["images"]) for name, text in record["right"].items()}


def labels(record: Record) -> np.ndarray:
    """The class of each image, (images,), int64."""
    return _classes(record, record["labels"])


def predictions(record: Record) -> dict[str, np.ndarray]:
    """A model's best guess for each image by channel set, (images,), int64."""
    return {name: _classes(record, text) for name, text in record["predicted"].items()}


def _classes(record: Record, text: str) -> np.ndarray:
    try:
        found = decode_classes(text).numpy()
    except ValueError:
        found = np.empty(0)
    if len(found) != record["images"]:
        raise DataError(
            f"the record of {record['name']} does not hold a class for each of {record['images']} images; "
            "make it again with training.evaluate"
        )
    return found


def class_names(record: Record, count: int) -> list[str]:
    """What to call the first `count` classes: by name where the lists gave names, else by number."""
    names = record.get("class_names", [])
    return [names[i] if i < len(names) else str(i) for i in range(count)]


def is_expert(record: Record) -> bool:
    """Whether a record is of an ordinary network on one channel set."""
    return record["recipe"]["model"]["stem"] == "plain"


def all_sets(records: Records) -> list[str]:
    """Every channel set that some record has, in the order of the record with most."""
    longest_first = sorted(records, key=lambda record: -len(record["scores"]))
    return list(dict.fromkeys(name for record in longest_first for name in record["scores"]))


def check_same_images(records: Records) -> None:
    """Refuse to compare what was not scored on the same images.

    Raises:
        DataError: the records are of different images.
    """
    for record in records[1:]:
        if test_set(record) != test_set(records[0]):
            raise DataError(
                f"{record['name']} and {records[0]['name']} were not scored on the same images; "
                "they cannot stand in one table; make a page of each"
            )


def test_set(record: Record) -> tuple[str, str]:
    """What identifies the images that a record is about."""
    return record["split"], record["fingerprint"][record["split"]]


def by_model(records: Records) -> list[tuple[str, list[Record]]]:
    """Records by model: all experts are one, where others stand beside them."""
    experts = [record for record in records if is_expert(record)]
    others = [(record["name"], [record]) for record in records if not is_expert(record)]
    if experts and others:
        return [*others, (EXPERTS, experts)]
    return [(record["name"], [record]) for record in records]


def scores_by_model(records: Records) -> dict[str, dict[str, Any]]:
    """Score rows by model and channel set; experts, where others stand beside them, are one model."""
    return {name: scores_of(group) for name, group in by_model(records)}


def scores_of(group: Records) -> dict[str, Any]:
    """Score rows of one model by channel set; of several experts for one set the first counts."""
    return {s: row for record in reversed(group) for s, row in record["scores"].items()}


def short_commit(name: str) -> str:
    """A commit's first twelve digits, and whether the code was changed since."""
    return name[:12] + ("+changes" if name.endswith("+changes") else "")
