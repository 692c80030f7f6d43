"""What an evaluation is asked: its flags, and what its record is called."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from training.config import ConfigError
from training.evaluation.variants import Missing, Unknown

_LONGEST_NAME = 60  # characters of channel sets in the name of a record


@dataclass(kw_only=True)
class Evaluation:
    """Score trained models on every channel set."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories of training.train."""
    split: Literal["test", "val", "train"] = "test"
    """Which list."""
    data: Path | None = None
    """Folder of the lists, where it has moved since the training."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """fp32 gives the same counts on any number of ranks; bf16 is faster, and near-ties may fall otherwise."""
    channel_sets: tuple[str, ...] = ()
    """Which channel sets, e.g. RG B or 450+530 475; by default all that the model takes, of more
    than six channels a sample of 63. They become part of the record's name."""
    unknown: Unknown = "describe"
    """Bands that the model was not trained on: let it make their kernels from their wavelengths, or take each for
    the nearest band that it knows."""
    missing: Missing = "as-trained"
    """What an ordinary network that was trained on all channels gets in place of missing ones, whatever its recipe
    says: black, their mean, their mean with the rest scaled up, or copies of those that are there."""
    recalibrate: int = 0
    """Take the norms' statistics anew for each channel set, over this many training images; writes
    sweep-SPLIT-recalibrated.json."""
    robustness: bool = False
    """Score images that are changed, too: their channels in another order, noise on one of them, and 0.5, 0.75,
    1.5 and 2 times the resolution. With three channels this takes eleven times as long."""
    part: int = 8192
    """Images after which the answers so far are kept, in RUN_DIR/sweep-SPLIT.partial: an evaluation that was
    killed goes on from there, by the same command, on any number of ranks."""
    processes: int | None = None
    """Refuse to start unless there are this many ranks."""

    def __post_init__(self) -> None:
        if self.unknown == "nearest" and not self.channel_sets:
            raise ConfigError(
                "--unknown nearest is for bands that --channel-sets names; add some, or leave it out"
            )
        if self.recalibrate < 0:
            raise ConfigError(f"--recalibrate {self.recalibrate} must not be negative")
        if self.part < 1:
            raise ConfigError(f"--part {self.part} must be at least 1")

    @property
    def record(self) -> str:
        """Name of the record in the run directory; another question has another name."""
        return "-".join(["sweep", self.split, *self._chosen, *self.modifiers]) + ".json"

    @property
    def _chosen(self) -> list[str]:
        """The chosen sets, or where they are many their number and what tells them from others."""
        if len(" ".join(self.channel_sets)) <= _LONGEST_NAME:
            return [*self.channel_sets]
        digest = hashlib.sha256(" ".join(self.channel_sets).encode()).hexdigest()[:8]
        return [str(len(self.channel_sets)), "sets", digest]

    @property
    def modifiers(self) -> list[str]:
        """What was done to the model before."""
        changes = {
            self.missing: self.missing != "as-trained",
            "nearest": self.unknown == "nearest",
            "recalibrated": bool(self.recalibrate),
        }
        return [name for name, made in changes.items() if made]
