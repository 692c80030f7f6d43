"""What a finished run's network may be asked beside what it was trained for."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from modeling.channels import ChannelSet
from modeling.network import ChannelNet
from modeling.norms import SubsetBatchNorm2d
from training.build import descriptor, load_model
from training.config import ConfigError, Recipe
from training.evaluation.looks import Look, looks_at
from training.recipe_file import load_recipe
from training.subsets import is_sample, scored_sets, trained_sets
from training.sweep import specialise

Missing = Literal["as-trained", "black", "mean", "rescaled", "repeat"]
Unknown = Literal["describe", "nearest"]
_ORDINARY = ("zero-fill", "zero-fill-rescaled", "repeat")  # stems that are one and the same on all channels
_MISSING = {
    "black": {"stem": "zero-fill", "fill": "black"},
    "mean": {"stem": "zero-fill", "fill": "mean"},
    "rescaled": {"stem": "zero-fill-rescaled"},
    "repeat": {"stem": "repeat"},
}


def load_with(run_dir: Path, missing: Missing) -> tuple[Recipe, ChannelNet, dict[str, str]]:
    """A finished run as `load_model` gives it, its network given something else for missing channels.

    Raises:
        ConfigError: what stands for missing channels is not free to choose.
    """
    if missing == "as-trained":
        return load_model(run_dir)
    trained = load_recipe(run_dir / "config.yaml")
    if trained.model.stem not in _ORDINARY or trained.schedule.channel_sets != "full":
        raise ConfigError(
            f"--missing {missing}: {run_dir} has a {trained.model.stem} stem and was trained on "
            f"{trained.schedule.channel_sets} channel sets; that is open only where an ordinary network was "
            "trained on all channels"
        )
    return load_model(run_dir, **_MISSING[missing])


def networks_for(
    model: ChannelNet,
    channel_sets: Sequence[str],
    unknown: Unknown,
    *,
    robustness: bool = False,
    fold: bool = True,
) -> tuple[dict[Look, nn.Module], dict[str, str]]:
    """A network for each way to show images, and what each band that the model does not know is taken for.

    Args:
        model: the network; bands that it is asked to take by their wavelength become known to it.
        channel_sets: as users name them; see `scored_sets` if empty.
        unknown: what to do about bands that it does not know.
        robustness: whether to show images changed as well, see `looks_at`.
        fold: see `specialise`.

    Raises:
        ConfigError: a channel that images do not give, or that this model cannot take.
    """
    known, stand_ins = model.stem.vocabulary, {}
    try:
        sets = [ChannelSet.read(text, known) for text in channel_sets] or scored_sets(model.stem)
        for name in dict.fromkeys(name for chosen in sets for name in chosen if name not in known):
            if unknown == "nearest":
                stand_ins[name] = min(known, key=lambda other: abs(descriptor(other) - descriptor(name)))
            else:
                model.stem.describe(name, descriptor(name))
        looks = looks_at(sets, robustness=robustness)
        networks = specialise(model, dict.fromkeys(look.shown for look in looks), stand_ins, fold=fold)
        return {look: networks[look.shown] for look in looks}, stand_ins
    except ValueError as error:
        raise ConfigError(
            f"--channel-sets {' '.join(channel_sets)}: {error}; bands that training never saw need a model "
            "of --model.embedding wavelengths and --model.norm moments, or --unknown nearest here"
        ) from None


def specialised(model: ChannelNet, channels: str | None) -> tuple[ChannelSet, nn.Module]:
    """A channel set, the largest that the network takes by default, and the plain network for it.

    Raises:
        ConfigError: the network does not take it.
    """
    try:
        chosen = model.stem.parse(channels) if channels else model.stem.sets()[0]
        return chosen, model.materialize(chosen)
    except ValueError as error:
        raise ConfigError(f"--channels {channels}: {error}") from None


def say_what_has_no_norm(model: ChannelNet, recipe: Recipe, sets: Iterable[ChannelSet]) -> None:
    """Norms for each set have but their start for sets that training never met, and those by moments for pairs."""
    norm, trained = model.stem.norm, {frozenset(chosen) for chosen in trained_sets(recipe)}
    moments = getattr(model.stem, "moments", None)
    if moments is not None:
        pairs = (pair for chosen in sets for pair in moments.unseen(chosen))
        apart = dict.fromkeys("+".join(dict.fromkeys(pair)) for pair in pairs)
        if apart:
            print(
                f"note: {recipe.name} never saw {' '.join(apart)} in one image, so its norm takes them for "
                "uncorrelated; --recalibrate N measures statistics of its own for each set",
                file=sys.stderr,
            )
    if isinstance(norm, SubsetBatchNorm2d) and not norm.by_size:
        strange = [str(chosen) for chosen in sets if frozenset(chosen) not in trained]
        if strange:
            print(
                f"note: {recipe.name} was not trained on {' '.join(strange)}, and its norm for each set has no "
                "statistics of them; --model.norm moments has",
                file=sys.stderr,
            )


def say_what_is_sampled(model: ChannelNet, recipe: Recipe, sets: Sequence[ChannelSet]) -> None:
    """Of many channels not all sets are scored."""
    if is_sample(sets, model.stem):
        print(
            f"note: {recipe.name} takes {2 ** len(model.stem.vocabulary) - 1} channel sets; {len(sets)} of them "
            "are scored: all channels, each alone, and others drawn with seed 0; name others with --channel-sets",
            file=sys.stderr,
        )
