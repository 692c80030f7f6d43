"""What a page is made from, and what of it is there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.reporting.answers import Record, Records
from training.reporting.blocks import Text


class Absent(Exception):
    """A section cannot be made; the message says why, in a sentence's second half."""


@dataclass(frozen=True)
class Source:
    """What a page is made from.

    Attributes:
        records: of sweeps over the same images, each by a name of its own.
        folders: run directories by name of the record, of those that have one.
        samples: images to show with what the models took them for.
    """

    records: Records
    folders: Mapping[str, Path] = field(default_factory=dict)
    samples: int = 0

    def having(self, *fields: str, flag: str = "") -> tuple[list[Record], list[Text]]:
        """The records that have all of some fields, and what to say of the others.

        Args:
            fields: of records.
            flag: that the evaluation needs to write them.

        Raises:
            Absent: there are none.
        """
        found = [record for record in self.records if all(record.get(name) for name in fields)]
        names = " and ".join(f"“{name}”" for name in fields)
        if not found:
            raise Absent(f"no record holds {names}; python -m training.evaluate RUN_DIR{flag} writes it")
        others = [record["name"] for record in self.records if record not in found]
        return found, [Text(f"Without {', '.join(others)}: no {names} in the record.")] if others else []
