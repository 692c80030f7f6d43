"""What each stem costs for each channel set, against an ordinary network on that set.

Training steps and inference are told as ratios to the ordinary network's, the making of a kernel alone as part of
its forward pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from modeling.channels import ChannelSet
from modeling.network import ChannelNet
from modeling.zoo import BodyName, StemName
from training.benchmarks.harness import Clock, Contender, measure, shares, show, show_shares, summary
from training.benchmarks.steps import CLASSES, WARM_UP, forward_passes, noise, training_steps
from training.build import new_model
from training.config import ConfigError, Model
from training.records import provenance, write_record
from training.runtime import Runtime

PLAIN: StemName = "plain"  # an ordinary network on exactly the channels of the set
AGAIN = "plain, again"  # how far apart these two are is chance
FORWARD = "forward pass"  # of the ordinary network with its norm folded in


@dataclass(kw_only=True)
class StemBenchmark:
    """Speed of a network with each stem on each channel set, as ratios to an ordinary network on that set."""

    body: BodyName = "resnet34"
    """Everything behind the stem."""
    size: int = 84
    """Height and width of the images, in pixels."""
    batch_size: int = 32
    """Images in a batch."""
    stems: tuple[StemName, ...] = tuple(name for name in get_args(StemName) if name != PLAIN)
    """Which stems."""
    sets: tuple[str, ...] = ("RGB", "RG", "R")
    """Which channel sets."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 1.0
    """How long each is timed in a round."""
    clock: Clock = "wall"
    """What counts as time: the wall's, or the processor's, which stands still while other programs have it."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def __post_init__(self) -> None:
        if torch.cuda.is_available() and self.clock != "wall":
            raise ConfigError(f"--clock {self.clock} does not see what a GPU does; leave it out")
        for name in self.sets:
            try:
                ChannelSet.parse(name, Model().channels)
            except ValueError as error:
                raise ConfigError(f"--sets {name}: {error}") from None

    def run(self) -> None:
        """Measure, print, and keep the record where one is wanted."""
        runtime = Runtime("auto")
        sets = [ChannelSet.parse(name, Model().channels) for name in self.sets]
        parts = {str(chosen): self._parts(chosen, runtime) for chosen in sets}
        kernels = {str(chosen): self._kernels(chosen, runtime) for chosen in sets}
        if self.record:
            write_record(self.record, self._result(parts, kernels, runtime))

    def network(self, stem: StemName, channels: ChannelSet) -> ChannelNet:
        """A network with fresh weights; a plain one takes only this channel set."""
        only = str(channels) if stem == PLAIN else None
        return new_model(Model(body=self.body, stem=stem, plain_channels=only), CLASSES)

    def images(self, channels: ChannelSet, runtime: Runtime) -> Tensor:
        """A batch of one channel set that is on the device already."""
        return noise(self.batch_size, len(channels), self.size, runtime.device)

    def _parts(self, channels: ChannelSet, runtime: Runtime) -> dict[str, Any]:
        """Each kind of work on one channel set."""
        return {
            kind: self._part(f"{kind}, {channels}", start, channels, runtime) for kind, start in _KINDS.items()
        }

    def _part(self, title: str, start: "_Start", channels: ChannelSet, runtime: Runtime) -> dict[str, Any]:
        """All stems and the ordinary network at one kind of work on one channel set."""
        stems = {PLAIN: PLAIN, AGAIN: PLAIN} | {name: name for name in self.stems}
        contenders = {name: self._contender(start, stem, channels, runtime) for name, stem in stems.items()}
        rates = self._measure(contenders)
        rows = summary(rates, PLAIN)
        show(f"{title}: {self._setting()}", rows, PLAIN)
        return {"rates": rates, "summary": rows}

    def _kernels(self, channels: ChannelSet, runtime: Runtime) -> dict[str, Any]:
        """The making of a kernel alone, once for each batch, as part of a forward pass."""
        contenders = {FORWARD: self._contender(_specialised, PLAIN, channels, runtime)}
        for name in self.stems:
            if _makes_kernels(self.network(name, channels), channels):
                contenders[name] = self._contender(_kernel, name, channels, runtime)
        rates = self._measure(contenders)
        percent = shares(rates, FORWARD)
        show_shares(f"kernel alone, {channels}: {self._setting()}", percent, FORWARD)
        return {"rates": rates, "percent": percent}

    def _contender(
        self, start: "_Start", stem: StemName, channels: ChannelSet, runtime: Runtime
    ) -> Callable[[], Contender]:
        return lambda: start(self, self.network(stem, channels), channels, runtime)

    def _measure(self, contenders: Mapping[str, Callable[[], Contender]]) -> dict[str, list[float]]:
        return measure(contenders, rounds=self.rounds, seconds=self.seconds, warm_up=WARM_UP, clock=self.clock)

    def _setting(self) -> str:
        return f"{self.body} at {self.size} px, {self.batch_size} images"

    def _result(self, parts: dict[str, Any], kernels: dict[str, Any], runtime: Runtime) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self).items() if key != "record"}
        settings["threads"] = torch.get_num_threads()
        return {
            "kind": "benchmark stem",
            "name": self.body,
            "settings": settings,
            "precision": runtime.precision,
            "baseline": PLAIN,
            "parts": parts,
            "kernels": kernels,
            "provenance": provenance("training.benchmark", runtime.world),
        }


_Start = Callable[[StemBenchmark, ChannelNet, ChannelSet, Runtime], Contender]


def _training(job: StemBenchmark, model: ChannelNet, channels: ChannelSet, runtime: Runtime) -> Contender:
    return training_steps(model, job.images(channels, runtime), channels, runtime.precision)


def _specialised(job: StemBenchmark, model: ChannelNet, channels: ChannelSet, runtime: Runtime) -> Contender:
    network = model.to(runtime.device).materialize(channels).to(memory_format=torch.channels_last)
    return forward_passes(network, (job.images(channels, runtime),), runtime)


def _unfolded(job: StemBenchmark, model: ChannelNet, channels: ChannelSet, runtime: Runtime) -> Contender:
    return forward_passes(_ready(model, runtime), (job.images(channels, runtime), channels), runtime)


@torch.no_grad()
def _kernel(job: StemBenchmark, model: ChannelNet, channels: ChannelSet, runtime: Runtime) -> Contender:
    """A kernel for each batch; without autocast, which would not concern it."""
    stem = _ready(model, runtime).stem
    while True:
        stem.kernel(channels)
        yield job.batch_size


def _ready(model: ChannelNet, runtime: Runtime) -> ChannelNet:
    return model.to(runtime.device, memory_format=torch.channels_last).eval()


@torch.no_grad()
def _makes_kernels(model: ChannelNet, channels: ChannelSet) -> bool:
    """Whether a stem generates or looks up its kernel, rather than having it as a weight."""
    return not isinstance(model.stem.kernel(channels), nn.Parameter)


_KINDS: dict[str, _Start] = {
    "training step": _training,
    "inference, specialised": _specialised,
    "inference, kernel made for every batch": _unfolded,
}
