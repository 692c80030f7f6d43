"""Finished runs that are ready to be scored: their networks on the device, and what is known of their answers."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from modeling.channels import ChannelSet, Vocabulary
from modeling.network import ChannelNet
from pipelines.batch import Loader
from pipelines.class_names import class_names
from pipelines.errors import DataError
from pipelines.samples import Samples
from training.build import load_samples, make_loader
from training.config import ConfigError, Data, Recipe
from training.evaluation.looks import Look
from training.evaluation.partial import Partial
from training.evaluation.recalibrate import recalibrate
from training.evaluation.settings import Evaluation
from training.evaluation.variants import load_with, networks_for, say_what_has_no_norm, say_what_is_sampled
from training.recipe_file import load_recipe
from training.records import commit
from training.runtime import Runtime


@dataclass(frozen=True, eq=False)
class Candidate:
    """A run that is scored.

    Attributes:
        run_dir, recipe, metadata: see `load_model`.
        model: its network, on the CPU.
        networks: on the device, by how they are shown images.
        stand_ins: see `networks_for`.
        channels: that its batches must have.
    """

    run_dir: Path
    recipe: Recipe
    model: ChannelNet
    metadata: Mapping[str, str]
    networks: Mapping[Look, nn.Module]
    stand_ins: Mapping[str, str]
    channels: Vocabulary

    @property
    def sets(self) -> list[ChannelSet]:
        """The channel sets that it is scored on."""
        return list(dict.fromkeys(look.chosen for look in self.networks))


def recipe_of(run_dir: Path, job: Evaluation) -> Recipe:
    """A run's recipe, with the data that it shall be scored on.

    Raises:
        DataError: the file is missing or is not a recipe.
    """
    recipe = load_recipe(run_dir / "config.yaml")
    moved = {"path": job.data, "root": None} if job.data else {}
    return replace(recipe, data=replace(recipe.data, **moved))


def pass_of(recipe: Recipe) -> tuple[str, Vocabulary]:
    """What runs must have in common to be scored in one pass over the data: all that their loader depends on."""
    seen_in_training_only = {"scale": Data.scale}
    return repr(replace(recipe.data.absolute(), **seen_in_training_only)), recipe.model.channels


def prepare(run_dir: Path, job: Evaluation, samples: Samples, runtime: Runtime) -> Candidate:
    """Load a run and specialise its network to what it is asked. To be called on every rank.

    Raises:
        ConfigError: its network cannot take what it is asked to.
        DataError: the run directory lacks something, or the samples have other classes, or in another order.
    """
    candidate = runtime.together(partial(_load, run_dir, job, samples, runtime))
    if job.recalibrate:
        by_set = {look.shown: network for look, network in candidate.networks.items()}
        batches = _calibration(candidate.recipe, job.recalibrate, candidate.channels, runtime)
        recalibrate(by_set, candidate.channels, batches, runtime)
    return candidate


def _load(run_dir: Path, job: Evaluation, samples: Samples, runtime: Runtime) -> Candidate:
    """What each rank does by itself: another may have failed, and would not answer."""
    _, model, metadata = load_with(run_dir, job.missing)
    recipe = recipe_of(run_dir, job)
    if samples.classes != int(metadata["classes"]):
        raise DataError(
            f"{run_dir} was trained on {metadata['classes']} classes, but {recipe.data.path} has "
            f"{samples.classes}; name the right folder with --data"
        )
    if job.data and "class_names" in metadata:
        note = _compare_names(run_dir, json.loads(metadata["class_names"]), recipe.data)
        if note and runtime.is_main:
            print(f"note: {note}", file=sys.stderr)
    networks, stand_ins = networks_for(
        model.to(runtime.device),
        job.channel_sets,
        job.unknown,
        robustness=job.robustness,
        fold=not job.recalibrate,
    )
    channels = tuple(dict.fromkeys([*recipe.model.channels, *(name for look in networks for name in look.chosen)]))
    if runtime.is_main:
        sets = list(dict.fromkeys(look.chosen for look in networks))
        say_what_has_no_norm(model, recipe, sets)
        say_what_is_sampled(model, recipe, sets)
    return Candidate(run_dir, recipe, model.cpu(), metadata, networks, stand_ins, channels)


def _compare_names(run_dir: Path, trained: list[str], data: Data) -> str | None:
    """What to say if lists elsewhere number other classes: answers to those would count, and mean nothing.

    Raises:
        DataError: they number the same classes in another order.
    """
    try:
        found = class_names(data.path, data.chosen_labels)
    except DataError:  # no list of training images there; it names the classes, and is not needed otherwise
        return None
    if found is None or found == trained or len(found) != len(trained):
        return None
    i = next(i for i, name in enumerate(found) if name != trained[i])
    said = f"class {i} is {trained[i]!r} in {run_dir}, but {found[i]!r} in {data.path}"
    if sorted(found) == sorted(trained):
        raise DataError(f"{said}; number the classes there as in training, or name the right folder with --data")
    return f"{said}; is --data the right folder?"


def partial_of(candidate: Candidate, job: Evaluation, samples: Samples, loader: Loader, precision: str) -> Partial:
    """Where a candidate's answers are kept while it is being scored."""
    with (candidate.run_dir / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    question = {
        "weights": digest,
        "model": asdict(candidate.recipe.model),
        "data": [samples.fingerprint, type(loader).__name__, asdict(loader.view), loader.batch_size],
        "looks": [[str(look), look.shown.names, look.condition] for look in candidate.networks],
        "changes": [job.modifiers, job.recalibrate, dict(candidate.stand_ins)],
        "arithmetic": [precision, loader.device.type, commit()],
    }
    text = json.dumps(question, default=str)
    folder = (candidate.run_dir / job.record).with_suffix(".partial")
    return Partial(folder, hashlib.sha256(text.encode()).hexdigest())


def _calibration(recipe: Recipe, images: int, channels: Vocabulary, runtime: Runtime) -> Loader:
    """Random training images, looked at as in evaluation."""
    samples = load_samples(recipe.data, "train", runtime)
    if images > len(samples):
        raise ConfigError(f"--recalibrate {images} is more than the {len(samples)} training images; name fewer")
    chosen = np.random.default_rng(recipe.seed).permutation(len(samples))[:images]
    return make_loader(recipe.data, samples.take(chosen), runtime, training=False, channels=channels)[0]
