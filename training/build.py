"""From a recipe's settings to the parts of a run: scanned images, loaders, network."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling.channels import Vocabulary
from modeling.network import ChannelNet
from modeling.zoo import build_model
from pipelines import spectral
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, RGB, Decoding, Loader, View
from pipelines.build import build_loader
from pipelines.errors import DataError
from pipelines.integrity import scan, scan_splits
from pipelines.manifest import Manifest, read_split
from pipelines.samples import Samples
from training.checkpoint import load_weights
from training.config import ConfigError, Data, Model, Recipe
from training.recipe_file import load_recipe
from training.runtime import Runtime


def load_samples(data: Data, split: str, runtime: Runtime) -> Samples:
    """Read one list and scan its images; the first rank works, the others get its result.

    Raises:
        DataError: see `pipelines.manifest` and `pipelines.integrity`.
    """
    return runtime.first(lambda: read_samples(data, split))


def read_samples(data: Data, split: str) -> Samples:
    """Read one list and scan its images, for programs that have no other ranks.

    Raises:
        DataError: see `pipelines.manifest` and `pipelines.integrity`.
    """
    return scan(_manifest(data, split), policy=data.policy, max_bad=data.max_bad)


def load_training_samples(data: Data, runtime: Runtime) -> dict[str, Samples]:
    """Read and scan train and val, and leave out of train what val holds too, or test, where there is one.

    Raises:
        DataError: see `pipelines.manifest` and `pipelines.integrity`.
    """

    def work() -> dict[str, Samples]:
        manifests = {split: _manifest(data, split) for split in ("train", "val")}
        try:
            manifests["test"] = _manifest(data, "test")
        except DataError as error:  # a matter for the evaluation
            print(f"note: train is not compared with test: {error}", file=sys.stderr)
        return scan_splits(manifests, policy=data.policy, max_bad=data.max_bad, compare_only=["test"])

    return runtime.first(work)


def _manifest(data: Data, split: str) -> Manifest:
    return read_split(data.path, split, root=data.root, labels=data.chosen_labels)


def make_loader(
    data: Data,
    samples: Samples,
    runtime: Runtime,
    *,
    training: bool,
    channels: Vocabulary = RGB,
    passes: int = 1,
    seed: int = 0,
) -> tuple[Loader, str]:
    """The loader of this rank, and a line that says which it is and why.

    In training the ranks share a batch. In evaluation every rank takes whole batches, so that an image meets the
    same arithmetic on any number of ranks and the counts agree to the digit.

    Raises:
        ConfigError: the batch size of training does not divide by the number of ranks.
    """
    if training and data.batch_size % runtime.world:
        raise ConfigError(
            f"--data.batch-size {data.batch_size} does not divide by {runtime.world} processes; "
            f"use {data.batch_size // runtime.world * runtime.world or runtime.world}"
        )
    half = runtime.device.type == "cuda" and runtime.precision != "fp32"
    return build_loader(
        data.loader,
        samples,
        View(size=data.size, training=training, seed=seed, scale=data.scale, half=half, channels=channels),
        data.batch_size // runtime.world if training else data.batch_size,
        runtime.device,
        runtime.rank,
        runtime.world,
        Decoding(data.threads or cpu_threads(), data.prefetch, data.hardware_load),
        passes=passes,
    )


def cpu_threads() -> int:
    """Cores of this rank: those that the process may use, shared among the ranks of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def first_images(data: Data, samples: Samples, channels: Vocabulary = RGB, count: int = 6) -> Tensor:
    """The first images of a split as evaluation sees them, count×C×H×W on the CPU."""
    view = View(size=data.size, training=False, channels=channels)
    loader, _ = build_loader("auto", samples, view, min(count, len(samples)), torch.device("cpu"))
    return next(iter(loader)).images


def load_model(run_dir: Path, **changes: str) -> tuple[Recipe, ChannelNet, dict[str, str]]:
    """A finished run's recipe, its network on the CPU in inference mode, and what its weights say of themselves.

    Args:
        run_dir: of `training.train`.
        changes: settings of the model other than the recipe's, for which the weights are good too.

    Raises:
        DataError: the run directory lacks one of them, or it cannot be read.
    """
    recipe = load_recipe(run_dir / "config.yaml")
    recipe = replace(recipe, model=replace(recipe.model, **changes))
    weights, metadata = load_weights(run_dir / "model.safetensors")
    model = new_model(recipe.model, int(metadata["classes"]))
    model.load_state_dict(weights)
    return recipe, model.eval(), metadata


def new_model(settings: Model, classes: int) -> ChannelNet:
    """The network that a recipe describes, with fresh weights."""
    return build_model(**network_arguments(settings, classes))


def network_arguments(settings: Model, classes: int) -> dict[str, Any]:
    """What `build_model` makes that network from: plain values, which JSON can hold."""
    return {
        "body": settings.body,
        "stem": settings.stem,
        "vocabulary": settings.vocabulary,
        "classes": classes,
        "templates": settings.templates,
        "fill": _black(settings.channels) if settings.fill == "black" else 0.0,
        "norm": settings.norm,
        "conditioning": settings.conditioning,
        "gain": settings.gain,
        "descriptors": _descriptors(settings.channels) if settings.embedding == "wavelengths" else None,
        "channels": settings.plain_channels,
        **settings.body_options,
    }


def what_classes_are_called(metadata: Mapping[str, str]) -> list[str]:
    """Names of the classes of a trained network; "class 0", … where its lists had none."""
    if "class_names" in metadata:
        return json.loads(metadata["class_names"])
    return [f"class {label}" for label in range(int(metadata["classes"]))]


def descriptor(channel: str) -> float:
    """What a network that goes by wavelengths knows a channel by: its wavelength in µm.

    Raises:
        ValueError: images give no such channel.
    """
    return spectral.wavelength(channel) / 1000


def _descriptors(channels: Vocabulary) -> dict[str, float]:
    return {channel: descriptor(channel) for channel in channels}


def _black(channels: Vocabulary) -> list[float]:
    """What a black image has in each channel, in normalised units."""
    black = torch.tensor([-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    return (spectral.weights(channels) @ black).tolist()
