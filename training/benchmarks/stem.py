"""What each stem costs: training steps, inference, and the making of kernels, against a plain convolution."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.nn import functional as F

from modeling.channels import ChannelSet
from modeling.resnet import ChannelNet
from modeling.zoo import BodyName, StemName
from training.benchmarks.harness import Contender, measure, show, summary
from training.build import new_model
from training.config import Model, Optim
from training.optim import build_optimizer
from training.records import provenance, write_record
from training.runtime import Runtime

PLAIN: StemName = "plain"  # an ordinary network on all channels


@dataclass(kw_only=True)
class StemBenchmark:
    """Speed of a network with each stem, in training and at inference, as ratios to an ordinary one."""

    body: BodyName = "resnet34"
    """Everything behind the stem."""
    size: int = 84
    """Height and width of the images, in pixels."""
    batch_size: int = 32
    """Images in a batch."""
    stems: tuple[StemName, ...] = tuple(name for name in get_args(StemName) if name != PLAIN)
    """Which stems."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 2.0
    """How long each is timed in a round."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def run(self) -> None:
        """Measure, print, and keep the record where one is wanted."""
        runtime = Runtime("auto")
        parts = {}
        for what, start in _KINDS.items():
            contenders = {name: self._contender(start, name, runtime) for name in (PLAIN, *self.stems)}
            rates = measure(contenders, rounds=self.rounds, seconds=self.seconds)
            rows = summary(rates, PLAIN)
            show(f"{what}, {self.body} at {self.size} px, {self.batch_size} images", rows, PLAIN)
            parts[what] = {"rates": rates, "summary": rows}
        if self.record:
            write_record(self.record, self._result(parts, runtime))

    def _contender(
        self, start: "Callable[[StemBenchmark, ChannelNet, Runtime], Contender]", name: StemName, runtime: Runtime
    ) -> Callable[[], Contender]:
        return lambda: start(self, new_model(Model(body=self.body, stem=name), classes=100), runtime)

    def _result(self, parts: dict[str, Any], runtime: Runtime) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self).items() if key != "record"}
        return {
            "kind": "benchmark stem",
            "name": self.body,
            "settings": settings,
            "precision": runtime.precision,
            "baseline": PLAIN,
            "parts": parts,
            "provenance": provenance("training.benchmark", runtime.world),
        }

    def images(self, runtime: Runtime) -> torch.Tensor:
        """A batch that is on the device already."""
        shape = (self.batch_size, 3, self.size, self.size)
        return torch.randn(shape, device=runtime.device).to(memory_format=torch.channels_last)


def _training(job: StemBenchmark, model: ChannelNet, runtime: Runtime) -> Contender:
    model, optimizer = runtime.prepare(model, build_optimizer(model, Optim()))
    images, every = job.images(runtime), ChannelSet.full(runtime.unwrap(model).stem.vocabulary)
    labels = torch.zeros(job.batch_size, dtype=torch.int64, device=runtime.device)
    while True:
        with runtime.autocast():
            loss = F.cross_entropy(model([images], [every]).float(), labels)
        runtime.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield job.batch_size


def _inference(job: StemBenchmark, model: ChannelNet, runtime: Runtime) -> Contender:
    network = model.to(runtime.device).materialize().to(memory_format=torch.channels_last)
    yield from _forward(network, job, runtime)


def _unfolded(job: StemBenchmark, model: ChannelNet, runtime: Runtime) -> Contender:
    yield from _forward(model.to(runtime.device, memory_format=torch.channels_last).eval(), job, runtime)


@torch.no_grad()
def _forward(network: nn.Module, job: StemBenchmark, runtime: Runtime) -> Iterator[int]:
    images = job.images(runtime)
    while True:
        with runtime.autocast():
            network(images)
        yield job.batch_size


_KINDS = {
    "training step": _training,
    "inference, specialised to RGB": _inference,
    "inference, kernel made for every batch": _unfolded,
}
