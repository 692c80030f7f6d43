"""What others need of a finished run: `python -m training.export RUN_DIR [--channels RG …] [--out DIR]`

Writes `model.safetensors` (all channel sets; for this project and `hubconf.py`), a model card, and for each named
channel set a network of its own as ONNX and torch.export, each read back and compared with the original first.
"""

import contextlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from modeling.channels import ChannelSet
from modeling.network import ChannelNet
from modeling.weights import NETWORK
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, RGB
from pipelines.cli import EXIT_FAILED, leave
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.manifest import find_list, read_manifest
from pipelines.spectral import weights
from training.build import load_model, network_arguments, what_classes_are_called
from training.card import File, model_card
from training.checkpoint import save_weights
from training.cli import run_program
from training.config import Data, Recipe
from training.evaluation.variants import say_what_has_no_norm, specialised
from training.formats import SUFFIXES, Format, MismatchError, check_installed, export
from training.recipe_file import portable, to_yaml
from training.records import read_record


@dataclass(kw_only=True)
class Export:
    """Write what others need of a finished run."""

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]]
    """A run directory that training.train has finished."""
    channels: tuple[str, ...] = ()
    """Channel sets that get files of their own, e.g. RGB RG; by default one set, of all channels."""
    formats: tuple[Format, ...] = ("onnx", "torch-export")
    """Of these files; ONNX needs pip install -e '.[export]'."""
    out: Path | None = None
    """Where to; RUN_DIR/export by default. What an earlier export left there is replaced."""

    @property
    def folder(self) -> Path:
        """Where to."""
        return self.out or self.run_dir / "export"


def main(job: Export) -> None:
    """Export a run.

    Raises:
        ConfigError: a channel set that the network does not take, or ONNX without what it needs.
        DataError: the run is not finished, or its record is of another training.
    """
    check_installed(job.formats)
    recipe, model, metadata = load_model(job.run_dir)
    record = _record(job.run_dir, metadata)
    sets = [specialised(model, name)[0] for name in job.channels or (None,)]
    say_what_has_no_norm(model, recipe, sets)
    job.folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        NETWORK: json.dumps(network_arguments(recipe.model, int(metadata["classes"]))),
        **metadata,
        "recipe": to_yaml(portable(recipe)),
    }
    save_weights(job.folder / "model.safetensors", model.state_dict(), metadata)
    try:
        files = [
            _write(job.folder, model, chosen, kind, recipe, metadata) for chosen in sets for kind in job.formats
        ]
    except MismatchError as error:
        leave(f"error: {error}; that file was not written", EXIT_FAILED)
    write_atomically(job.folder / "card.md", model_card(recipe, model, metadata, record, files))
    print(f"wrote {', '.join(['model.safetensors', 'card.md', *(file.name for file in files)])} to {job.folder}")
    words = (job.run_dir, _an_image(recipe.data), "--channels", sets[0])
    print(f"next: python -m training.predict {shlex.join(map(str, words))}")


def _write(
    folder: Path, model: ChannelNet, chosen: ChannelSet, kind: Format, recipe: Recipe, metadata: dict[str, str]
) -> File:
    """One channel set in one format, whose file appears once it is found to compute the same."""
    name = f"model-{chosen}{SUFFIXES[kind]}"
    print(f"{name}: exporting and comparing …", end="", flush=True)

    def original(images: Tensor) -> Tensor:
        return model(images, chosen)

    size = recipe.data.size
    told = describe(chosen, recipe, metadata)
    made = export(kind, model.materialize(chosen), original, len(chosen), size, told)
    write_atomically(folder / name, made.data)
    shapes = "images of any size" if made.any_size else f"images of {size}×{size} pixels"
    print(f" {len(made.data) / 1e6:.1f} MB, {shapes}, largest difference {made.difference:.1e}")
    return File(name, kind, str(chosen), made.any_size, made.difference)


def describe(chosen: ChannelSet, recipe: Recipe, metadata: dict[str, str]) -> dict[str, str]:
    """What a file says of itself, each value as JSON.

    `mean` and `std` are of pixels scaled to 0 … 1. They stand for the channels in their order; where some are
    bands that images do not have, for R, G and B, from which `mix`, |S|×3, makes the channels afterwards.
    """
    colours = set(chosen) <= set(RGB)
    where = chosen.indices(RGB) if colours else range(len(RGB))
    values = {
        "name": recipe.name,
        "channels": list(chosen),
        "size": recipe.data.size,
        "mean": [IMAGENET_MEAN[i] for i in where],
        "std": [IMAGENET_STD[i] for i in where],
        "class_names": what_classes_are_called(metadata),
        "train_fingerprint": metadata["train_fingerprint"],
        "commit": metadata["commit"],
    }
    if not colours:
        values["mix"] = weights(tuple(chosen)).tolist()
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}


def _record(run_dir: Path, metadata: dict[str, str]) -> dict | None:
    """The run's record of the test images, or else of val, where it has been evaluated.

    Raises:
        DataError: the record is of another training.
    """
    for split in ("test", "val"):
        file = run_dir / f"sweep-{split}.json"
        if file.is_file():
            record = read_record(file)
            if record["fingerprint"]["train"] != metadata["train_fingerprint"]:
                raise DataError(f"{file}: of a network trained on other images; evaluate this one again")
            return record
    print(
        f"note: {run_dir} has not been evaluated, so the card will tell no accuracy; "
        f"before the export: python -m training.evaluate {shlex.quote(str(run_dir))}",
        file=sys.stderr,
    )
    return None


def _an_image(data: Data) -> str:
    """One that the run knows, so that the next command works as it stands; a placeholder where they have moved."""
    with contextlib.suppress(DataError):
        file = Path(read_manifest(find_list(data.path, "val"), data.root).files[0])
        if file.is_file():
            return str(file)
    return "IMAGES…"


def parse(args: list[str] | None = None) -> Export:
    """The export that the command line describes."""
    return tyro.cli(Export, args=args, prog="python -m training.export")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
