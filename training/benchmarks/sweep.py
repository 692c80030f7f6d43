"""How long one sweep over all channel sets takes against an evaluation of each set by itself.

Both do the same work with the same code; a sweep decodes each image once, and evaluations once for each set.
Beside them stand a sweep's parts: decoding alone, and the forward passes alone on images that are there already.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from modeling.channels import ChannelSet
from modeling.zoo import BodyName, StemName
from pipelines.batch import Batch, Decoding, Loader, View
from pipelines.build import LoaderName, build_loader
from pipelines.samples import Samples
from training.benchmarks.harness import Clock, Contender, measure, show, summary
from training.benchmarks.loader import read_samples
from training.benchmarks.steps import CLASSES
from training.build import cpu_threads, new_model
from training.config import ConfigError, Model
from training.records import provenance, write_record
from training.runtime import Runtime
from training.sweep import specialise, sweep

SWEEP, EACH, DECODING, FORWARD = "one sweep", "an evaluation of each set", "decoding alone", "forward passes alone"

SETS = ChannelSet.all_of(Model().channels)


@dataclass(kw_only=True)
class SweepBenchmark:
    """Time of one sweep over all channel sets, of an evaluation of each set, and of a sweep's parts."""

    data: Path
    """Folder of train.txt and its images, or any folder with images below."""
    images: int = 384
    """Images in a pass over the data; those of the folder are taken again and again."""
    body: BodyName = "resnet18"
    """The network behind the stem; its weights are fresh."""
    stem: StemName = "any-channel"
    """The stem."""
    size: int = 64
    """Height and width that images are cropped and resized to, in pixels."""
    batch_size: int = 64
    """Images in a batch."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the forward passes."""
    loader: LoaderName = "auto"
    """Who decodes."""
    threads: int | None = None
    """CPU threads that decode; by default the cores at hand."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 1.0
    """How long each is timed in a round, at least; passes over the data are always whole."""
    clock: Clock = "wall"
    """What counts as time: the wall's, or the processor's, which stands still while other programs have it."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(f"--images {self.images} must be at least 1")

    def run(self) -> None:
        """Measure, print, and keep the record where one is wanted."""
        runtime = Runtime(self.precision)
        samples = read_samples(self.data)
        repeated = samples.take([i % len(samples) for i in range(self.images)])
        contenders = _contenders(self, repeated, runtime)
        rates = measure(contenders, rounds=self.rounds, seconds=self.seconds, warm_up=1, clock=self.clock)
        rows = summary(rates, EACH)
        show(f"{self.body}, {self.data.name} to {self.size} px, {runtime.precision}", rows, EACH)
        found = ratios(rates, len(SETS))
        for name, value in found.items():
            print(f"{name}: {value['median']:.2f} ({value['min']:.2f}–{value['max']:.2f})")
        if self.record:
            write_record(self.record, _record(self, samples, runtime, rates, rows, found))


def ratios(rates: dict[str, list[float]], sets: int) -> dict[str, dict[str, float]]:
    """What becomes of the rates: ratios of times, each taken within a round, with median and spread.

    "evaluations" is a sweep's time over that of an evaluation of each set, "parts" over that of decoding and
    forward passes one after the other; "forward" is one set's forward pass over decoding: what dominates.
    """
    found: dict[str, list[float]] = {"evaluations": [], "parts": [], "forward": []}
    for swept, apart, decoded, passed in zip(*(rates[n] for n in (SWEEP, EACH, DECODING, FORWARD)), strict=True):
        found["evaluations"].append(apart / swept)
        found["parts"].append((1 / swept) / (1 / decoded + 1 / passed))
        found["forward"].append(decoded / passed / sets)
    return {name: {"median": median(v), "min": min(v), "max": max(v)} for name, v in found.items()}


def _contenders(job: SweepBenchmark, samples: Samples, runtime: Runtime) -> dict[str, Callable[[], Contender]]:
    """All that is measured; each step is a pass over all images."""
    view = View(size=job.size, training=False, half=runtime.device.type == "cuda" and runtime.precision != "fp32")
    decoding = Decoding(job.threads or cpu_threads())
    loader, _ = build_loader(job.loader, samples, view, job.batch_size, runtime.device, decoding=decoding)
    model = new_model(Model(body=job.body, stem=job.stem), CLASSES).to(runtime.device).eval()
    networks = specialise(model, SETS)

    def score(chosen: Iterable[ChannelSet], batches: Iterable[Batch]) -> None:
        some = {one: networks[one] for one in chosen}
        sweep(some, model.stem.vocabulary, batches, len(samples), runtime).scores  # noqa: B018 - worked out here

    def each() -> None:
        for chosen in networks:
            score([chosen], loader)

    def forward() -> Contender:
        batches = list(loader)
        return _passes(lambda: score(networks, batches), len(samples))

    return {
        SWEEP: lambda: _passes(lambda: score(networks, loader), len(samples)),
        EACH: lambda: _passes(each, len(samples)),
        DECODING: lambda: _passes(lambda: _drain(loader), len(samples)),
        FORWARD: forward,
    }


def _passes(work: Callable[[], None], images: int) -> Contender:
    while True:
        work()
        yield images


def _drain(loader: Loader) -> None:
    for _ in loader:
        pass


def _record(
    job: SweepBenchmark, samples: Samples, runtime: Runtime, rates: dict, rows: dict, found: dict
) -> dict[str, Any]:
    settings = {k: v for k, v in asdict(job).items() if k not in ("data", "record")}
    threads = {"threads": job.threads or cpu_threads(), "compute_threads": torch.get_num_threads()}
    return {
        "kind": "benchmark sweep",
        "name": f"{job.body}, {job.data.name} to {job.size} px",
        "fingerprint": samples.fingerprint,
        "settings": settings | threads,
        "precision": runtime.precision,
        "sets": [str(chosen) for chosen in SETS],
        "rates": rates,
        "summary": rows,
        "ratios": found,
        "provenance": provenance("training.benchmark", runtime.world),
    }
