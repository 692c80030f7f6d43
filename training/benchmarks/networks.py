"""How fast networks are, against the first of them: those of finished runs, or of their records."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from modeling.channels import ChannelSet
from modeling.network import ChannelNet
from training.benchmarks.harness import Contender, measure, show, summary
from training.benchmarks.steps import WARM_UP, forward_passes, noise, training_steps
from training.build import load_model, new_model
from training.config import ConfigError, Recipe
from training.recipe_file import load_recipe, recorded_recipe
from training.records import provenance, read_record, told_apart, write_record
from training.reporting.classes import count_classes
from training.runtime import Runtime


@dataclass(kw_only=True)
class NetworkBenchmark:
    """Speed of networks on all channels they take, in training and at inference, as ratios to the first one."""

    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories of training.train, or records of training.evaluate, whose recipes are built with fresh
    weights; the first is what the others are compared with."""
    size: int | None = None
    """Height and width of the images, in pixels; by default what the first was trained on."""
    batch_size: int = 32
    """Images in a batch."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 2.0
    """How long each is timed in a round."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("no run directory given; name one or more that training.train has finished")

    def run(self) -> None:
        """Measure, print, and keep the record where one is wanted."""
        runtime = Runtime("auto")
        names = self._names()
        size = self.size or _recipe(self.sources[0]).data.size
        parts = {}
        for kind, start in _KINDS.items():
            contenders = {
                name: self._contender(start, source, size, runtime)
                for name, source in zip(names, self.sources, strict=True)
            }
            rates = measure(contenders, rounds=self.rounds, seconds=self.seconds, warm_up=WARM_UP)
            parts[kind] = {"rates": rates, "summary": summary(rates, names[0])}
            show(f"{kind} at {size} px", parts[kind]["summary"], names[0])
        if self.record:
            write_record(self.record, self._result(parts, size, runtime))

    def _names(self) -> list[str]:
        """What sweeps' records call the runs, so that one picture can show both."""
        names = [_name(source) for source in self.sources]
        names = told_apart(names, [source.stem if _is_record(source) else source.name for source in self.sources])
        names = told_apart(names, [source.parent.name for source in self.sources])
        if len(set(names)) < len(names):
            raise ConfigError(f"two sources are called the same: {' '.join(map(str, self.sources))}")
        return names

    def _contender(self, start: "_Start", source: Path, size: int, runtime: Runtime) -> Callable[[], Contender]:
        """Loaded when its turn comes, and let go after it."""
        return lambda: start(self, _network(source), size, runtime)

    def _result(self, parts: dict[str, Any], size: int, runtime: Runtime) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self).items() if key not in ("record", "sources")}
        return {
            "kind": "benchmark networks",
            "name": next(iter(parts["inference"]["rates"])),
            "settings": settings | {"size": size, "threads": torch.get_num_threads()},
            "precision": runtime.precision,
            "baseline": next(iter(parts["inference"]["rates"])),
            "parts": parts,
            "provenance": provenance("training.benchmark", runtime.world),
        }


def _name(source: Path) -> str:
    recipe = _recipe(source)  # first, since it knows what is wrong with a source
    return read_record(source)["name"] if _is_record(source) else recipe.name


def _recipe(source: Path) -> Recipe:
    return recorded_recipe(source) if _is_record(source) else load_recipe(source / "config.yaml")


def _is_record(source: Path) -> bool:
    return source.suffix == ".json" and not source.is_dir()


def _network(source: Path) -> ChannelNet:
    """In inference mode, and as it is once training is over."""
    if not _is_record(source):
        return load_model(source)[1]
    model = new_model(_recipe(source).model, count_classes(read_record(source)))
    model.anneal(1.0)
    return model.eval()


_Start = Callable[[NetworkBenchmark, ChannelNet, int, Runtime], Contender]


def _training(job: NetworkBenchmark, model: ChannelNet, size: int, runtime: Runtime) -> Contender:
    every = _all_channels(model)
    images = noise(job.batch_size, len(every), size, runtime.device)
    return training_steps(model, images, every, runtime.precision)


def _inference(job: NetworkBenchmark, model: ChannelNet, size: int, runtime: Runtime) -> Contender:
    return _forward(model, job.batch_size, size, runtime)


def _one_image(job: NetworkBenchmark, model: ChannelNet, size: int, runtime: Runtime) -> Contender:
    return _forward(model, 1, size, runtime)


def _forward(model: ChannelNet, count: int, size: int, runtime: Runtime) -> Contender:
    """Of the network as it is deployed, on all channels."""
    every = _all_channels(model)
    network = model.to(runtime.device).materialize(every).to(memory_format=torch.channels_last)
    images = noise(count, len(every), size, runtime.device)
    return forward_passes(network, (images,), runtime)


def _all_channels(model: ChannelNet) -> ChannelSet:
    """The largest set that a network takes."""
    return model.stem.sets()[0]


_KINDS: dict[str, _Start] = {
    "training step": _training,
    "inference": _inference,
    "inference, one image": _one_image,
}
