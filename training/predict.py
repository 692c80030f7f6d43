"""Ask a finished run what images show: `python -m training.predict RUN_DIR IMAGES… [--channels RG]`

Images are decoded, cut and normalised as evaluation does it, read as RGB, and shown to the network in the channels
named. A grayscale file has the same values in R, G and B, so that `--channels R` takes it for what a camera with a
red filter alone delivered. Files of 16 bits per channel are refused: what their values mean is not told.
"""

import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from modeling.channels import ChannelSet
from pipelines.batch import Decoding, Loader, View
from pipelines.build import build_loader
from pipelines.cli import EXIT_FAILED, leave
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.integrity import examine
from pipelines.manifest import Manifest, read_folder
from pipelines.samples import Samples
from training.build import cpu_threads, load_model, what_classes_are_called
from training.cli import run_program
from training.config import ConfigError, Recipe
from training.evaluation.variants import say_what_has_no_norm, specialised
from training.reporting.pictures import MOST, predictions
from training.runtime import Runtime

_GUESSES = 5


@dataclass(kw_only=True)
class Prediction:
    """Ask a finished run what images show."""

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]]
    """A run directory that training.train has finished."""
    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGES…")]]
    """Image files, and folders of them."""
    channels: str | None = None
    """Which channels of the images the network gets, e.g. RG; by default all that it takes."""
    picture: Path | None = None
    """Draw the first 12 images and their likeliest classes here; by default RUN_DIR/predictions-CHANNELS.png."""
    out: Path | None = None
    """Also write all answers to this file, .json or .csv."""

    def __post_init__(self) -> None:
        if self.picture and self.picture.suffix.lower() != ".png":
            raise ConfigError(f"--picture {self.picture}: name a .png file")
        if self.out and self.out.suffix.lower() not in _WRITERS:
            raise ConfigError(f"--out {self.out}: name a {' or '.join(_WRITERS)} file")


@dataclass
class Answers:
    """What a network takes images for.

    Attributes:
        names: of the images, as the user gave them.
        labels: N×k, likeliest first.
        probabilities: N×k, 0 … 1.
        seen: the first images as the network saw them.
        refused: image → why it was not shown to the network.
        classes: name of each label.
    """

    classes: Sequence[str]
    refused: dict[str, str]
    names: list[str] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    probabilities: list[list[float]] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def guesses(self, i: int) -> list[tuple[str, float]]:
        """Class names with their probabilities for the i-th image."""
        return [(self.classes[k], p) for k, p in zip(self.labels[i], self.probabilities[i], strict=True)]


def main(job: Prediction) -> None:
    """Predict and show.

    Raises:
        ConfigError: the network does not take these channels.
        DataError: the run is not finished, or an image or folder is not there.
    """
    recipe, model, metadata = load_model(job.run_dir)
    chosen, network = specialised(model, job.channels)
    say_what_has_no_norm(model, recipe, [chosen])
    runtime = Runtime(processes=1)
    samples = examine(_manifest(job.images))
    answers = Answers(what_classes_are_called(metadata), _without_rows(samples.quarantined))
    if len(samples):
        loader = _loader(samples, recipe, runtime)
        _ask(network.to(runtime.device), loader, chosen, answers)
        _show(answers, chosen)
        _draw(job, answers, chosen)
    if job.out:
        _write(job.out, _WRITERS[job.out.suffix.lower()](answers, chosen).encode(errors="surrogateescape"))
    runtime.close()
    for name, reason in answers.refused.items():
        print(f"not read: {name}: {reason}", file=sys.stderr)
    if answers.refused:
        leave(f"error: {len(answers.refused)} of {len(_all(answers))} images could not be read", EXIT_FAILED)
    print(f"next: {_next(job, model.stem.sets(), chosen)}")


def _manifest(given: Sequence[Path]) -> Manifest:
    """The images that were named, and those in folders that were.

    Raises:
        DataError: nothing was named, or what is not there.
    """
    files: dict[str, None] = {}
    for path in given:
        if path.is_dir():
            files |= dict.fromkeys(str(path / inner) for inner in read_folder(path).paths)
        elif path.exists():
            files[str(path)] = None
        else:
            raise DataError(f"{path}: no such image or folder; check the path")
    if not files:
        raise DataError("no image given; name image files, or folders of them, behind the run directory")
    return Manifest(Path.cwd(), tuple(files), (0,) * len(files), classes=1, source=Path("images"))


def _loader(samples: Samples, recipe: Recipe, runtime: Runtime) -> Loader:
    """Evaluation's view of images, whatever the size of the last batch."""
    view = View(size=recipe.data.size, training=False, channels=recipe.model.channels)
    size, decoding = min(recipe.data.batch_size, len(samples)), Decoding(threads=cpu_threads())
    loader, _ = build_loader(recipe.data.loader, samples, view, size, runtime.device, decoding=decoding)
    return loader


@torch.no_grad()
def _ask(network: nn.Module, loader: Loader, chosen: ChannelSet, answers: Answers) -> None:
    for batch in loader:
        images = chosen.select(batch.images[batch.valid], loader.view.channels)
        likeliest = network(images).float().softmax(1)
        likeliest = likeliest.topk(min(_GUESSES, likeliest.shape[1]))
        answers.names += [loader.samples.paths[i] for i in batch.ids[batch.valid].tolist()]
        answers.labels += likeliest.indices.tolist()
        answers.probabilities += likeliest.values.tolist()
        answers.seen += images[: MOST - len(answers.seen)].cpu()


def _show(answers: Answers, chosen: ChannelSet) -> None:
    table = Table("image", f"from channels {chosen}", show_lines=False)
    table.add_column("%", justify="right")
    for i, name in enumerate(answers.names):
        for rank, (guess, probability) in enumerate(answers.guesses(i)):
            table.add_row(Text("" if rank else name), Text(guess), f"{100 * probability:.1f}")
        table.add_section()
    Console().print(table)


def _draw(job: Prediction, answers: Answers, chosen: ChannelSet) -> None:
    names = answers.names[:MOST]
    shown = predictions(names, torch.stack(answers.seen), chosen, [answers.guesses(i) for i in range(len(names))])
    _write(job.picture or job.run_dir / f"predictions-{chosen}.png", shown)
    if len(answers.names) > MOST:
        print(f"  it shows the first {MOST} of {len(answers.names)} images")


def _write(file: Path, data: bytes) -> None:
    before = " in place of the one before" if file.exists() else ""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, data)
    print(f"wrote {file}{before}")


def _as_json(answers: Answers, chosen: ChannelSet) -> str:
    rows = [
        {"image": name, "guesses": [dict(zip(_COLUMNS, guess, strict=True)) for guess in _numbered(answers, i)]}
        for i, name in enumerate(answers.names)
    ]
    refused = [{"image": name, "reason": reason} for name, reason in answers.refused.items()]
    return json.dumps({"channels": list(chosen), "predictions": rows, "refused": refused}, indent=1) + "\n"


def _as_csv(answers: Answers, chosen: ChannelSet) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["image", "channels", "rank", *_COLUMNS])
    for i, name in enumerate(answers.names):
        writer.writerows([name, str(chosen), rank, *guess] for rank, guess in enumerate(_numbered(answers, i), 1))
    return out.getvalue()


_COLUMNS = ("label", "name", "probability")
_WRITERS = {".json": _as_json, ".csv": _as_csv}


def _numbered(answers: Answers, i: int) -> list[tuple[int, str, float]]:
    return [(label, *guess) for label, guess in zip(answers.labels[i], answers.guesses(i), strict=True)]


def _without_rows(quarantined: dict[str, str]) -> dict[str, str]:
    """Reasons without the remedy that only a list has."""
    return {name: reason.replace(" or delete its row", "") for name, reason in quarantined.items()}


def _all(answers: Answers) -> list[str]:
    return [*answers.names, *answers.refused]


def _next(job: Prediction, sets: Sequence[ChannelSet], chosen: ChannelSet) -> str:
    """The same images, or one of many, in other channels, or else in another format."""
    images = job.images if len(job.images) <= _GUESSES else job.images[:1]
    words = [str(job.run_dir), *map(str, images)]
    others = [str(other) for other in sets if other != chosen]
    more = ["--channels", others[-1]] if others else ["--channels", str(chosen), "--out", "predictions.csv"]
    return f"python -m training.predict {shlex.join([*words, *more])}"


def parse(args: list[str] | None = None) -> Prediction:
    """The job that the command line describes."""
    return tyro.cli(Prediction, args=args, prog="python -m training.predict")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes
    sys.stderr.reconfigure(errors="surrogateescape")
    run_program(lambda: main(parse(sys.argv[1:])))
