"""The training loop against one that is written by hand, and several ranks against one."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.cost import count_macs, count_parameters
from modeling.network import ChannelNet
from modeling.zoo import BodyName
from pipelines.batch import Batch, Loader, View
from pipelines.samples import Samples
from training.benchmarks.harness import Clock, Contender, measure, now, show, summary, wait_for_gpu
from training.benchmarks.ranks import Answer, World, ask, closing
from training.benchmarks.steps import CLASSES, WARM_UP, noise
from training.build import new_model
from training.checkpoint import Checkpoints
from training.config import ConfigError, Data, Model, Optim, Recipe, Schedule
from training.loop import Trainer
from training.monitor import Monitor
from training.optim import build_optimizer
from training.preemption import StopFile
from training.records import provenance, write_record
from training.runtime import Runtime

PLAIN, AGAIN, OURS = "plain loop", "plain loop, again", "our loop"  # how far apart the first two are is chance
ALONE, BESIDE, TOGETHER = "one rank, alone", "as many ranks, each for itself", "ranks together"

# What a GPU can do at most in bf16 and fp16 with float32 sums, without sparsity, in FLOP/s, by a part of its name.
# Sources: NVIDIA's data sheets of the A100, H100 and H200; the first that fits counts.
PEAKS = {"A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12}


@dataclass(kw_only=True)
class TrainBenchmark:
    """Images per second of the training loop against a loop written by hand, and of several ranks against one.

    Network, batch, precision, loss and optimizer are the same: an ordinary network on all channels, and noise that
    lies on the device, so that no loader is measured.
    """

    body: BodyName = "resnet34"
    """The network."""
    size: int = 84
    """Height and width of the images, in pixels."""
    batch_size: int = 64
    """Images in a batch of each rank."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of convolutions and matrix products."""
    compile: bool = False
    """Measure both loops with a compiled network too."""
    peak: float | None = None
    """TFLOP/s that the device can do at most in this precision; known for some GPUs."""
    ranks: int = 2
    """Ranks of the weak scaling, each with a thread or a GPU of its own; 1 leaves it out."""
    rounds: int = 7
    """How often each is timed."""
    seconds: float = 6.0
    """How long each is timed in a round."""
    clock: Clock = "wall"
    """What counts as time for the loops. The processor's own is for one thread on a machine that others use too;
    of ranks, which wait for one another, both are told."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def __post_init__(self) -> None:
        if torch.cuda.is_available() and self.ranks > torch.cuda.device_count():
            raise ConfigError(f"--ranks {self.ranks} is more than the {torch.cuda.device_count()} GPUs here")
        if torch.cuda.is_available() and self.clock != "wall":
            raise ConfigError(f"--clock {self.clock} does not see what a GPU does; leave it out")
        if self.ranks < 1:
            raise ConfigError(f"--ranks {self.ranks} must be at least 1")

    def run(self) -> None:
        """Measure, print, and keep the record where one is wanted."""
        runtime = Runtime(self.precision)
        step = measure_loops(self, runtime)
        scaling = measure_ranks(self) if self.ranks > 1 else None
        if self.record:
            write_record(self.record, self._result(step, scaling, runtime))

    def recipe(self) -> Recipe:
        """An ordinary network on all channels, at a learning rate that stays as it is."""
        return Recipe(
            data=Data(size=self.size, batch_size=self.batch_size),
            model=Model(body=self.body, stem="plain"),
            optim=Optim(lr=0.01, decay="constant", warmup_epochs=0),
            schedule=Schedule(channel_sets="full", precision=self.precision, checkpoint_steps=10**9),
        )

    def network(self) -> ChannelNet:
        """With fresh weights."""
        return new_model(self.recipe().model, CLASSES)

    def batch(self, runtime: Runtime) -> Batch:
        """The batch of every step."""
        images = noise(self.batch_size, len(self.recipe().model.channels), self.size, runtime.device)
        if runtime.device.type == "cuda" and runtime.precision != "fp32":
            images = images.half()  # as the loaders yield them there
        ids = torch.arange(self.batch_size, device=runtime.device)
        return Batch(images, ids % CLASSES, torch.ones_like(ids, dtype=torch.bool), ids)

    def _result(self, step: dict[str, Any], scaling: dict[str, Any] | None, runtime: Runtime) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self).items() if key != "record"}
        return {
            "kind": "benchmark train",
            "name": self.body,
            "settings": settings | {"threads": torch.get_num_threads()},
            "precision": runtime.precision,
            "parameters": count_parameters(self.network()),
            "baseline": PLAIN,
            "step": step,
            "scaling": scaling,
            "provenance": provenance("training.benchmark", runtime.world),
        }


# --- one rank --------------------------------------------------------------------------------------------


def measure_loops(job: TrainBenchmark, runtime: Runtime) -> dict[str, Any]:
    """Rates of the loops, their ratios, and what part of the device's arithmetic they use where that is known."""
    loops = {PLAIN: _plain(job), AGAIN: _plain(job), OURS: our_steps(job)}
    if job.compile:
        loops[f"{PLAIN}, compiled"] = _plain(job, compiled=True)
        loops[f"{OURS}, compiled"] = our_steps(job, compiled=True)
    # All stay alive, so that turns can be short; none has threads that would work in another's turn.
    for loop in loops.values():
        list(islice(loop, WARM_UP))
    turns = {name: lambda kept=loop: kept for name, loop in loops.items()}
    rates = measure(turns, rounds=job.rounds, seconds=job.seconds, warm_up=0, clock=job.clock)
    rows = summary(rates, PLAIN)
    show(f"{job.body} at {job.size} px, {job.batch_size} images, {runtime.precision}", rows, PLAIN)
    flops, peak = training_flops(job.network(), job.size), peak_flops(job.peak, runtime)
    used = {name: utilisation(row["images_per_s"]["median"], flops, peak) for name, row in rows.items()}
    if peak:
        print(", ".join(f"{name}: {used[name]:.3f} of the peak" for name in used))
    return {"rates": rates, "summary": rows, "flops_per_image": flops, "peak": peak, "utilisation": used}


def training_flops(network: ChannelNet, size: int) -> int:
    """FLOPs of an image in a training step: two for a multiply-add, and backwards twice what forwards costs."""
    plain = plain_network(network).cpu()
    return 6 * count_macs(plain, torch.zeros(1, len(network.stem.vocabulary), size, size))


def peak_flops(given: float | None, runtime: Runtime) -> float | None:
    """FLOP/s that the device can do at most, or None where nobody said and its name says nothing.

    Args:
        given: TFLOP/s.
        runtime: device and precision.
    """
    if given:
        return given * 1e12
    if runtime.device.type != "cuda" or runtime.precision == "fp32":
        return None
    name = torch.cuda.get_device_name(runtime.device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def utilisation(images_per_s: float, flops_per_image: float, peak: float | None) -> float | None:
    """Part of the device's arithmetic that the model's own FLOPs take."""
    return images_per_s * flops_per_image / peak if peak else None


def our_steps(job: TrainBenchmark, *, compiled: bool = False) -> Contender:
    """The training loop as it runs, with its metering and logging, until the epoch's end that never comes."""
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = make_trainer(job, Path(run_dir), compiled=compiled)
        with contextlib.closing(trainer.monitor):
            for _ in trainer.iterate():
                yield job.batch_size


def make_trainer(job: TrainBenchmark, run_dir: Path, *, compiled: bool = False) -> Trainer:
    """A run's trainer, as `training.train` puts it together, on a batch that lies in memory."""
    recipe = job.recipe()
    runtime = Runtime(recipe.schedule.precision, recipe.seed)
    network = job.network()
    if compiled:
        network.body.compile(dynamic=False)  # as --schedule.compile does
    model, optimizer = runtime.prepare(network, build_optimizer(network, recipe.optim))
    loader = StillLoader(job.batch(runtime))
    return Trainer(
        recipe,
        runtime,
        model,
        optimizer,
        loader,
        loader,
        Checkpoints(run_dir / "checkpoints"),
        Monitor(run_dir, runtime.is_main),
        StopFile(run_dir, runtime),
    )


class StillLoader(Loader):
    """Yields one and the same batch for ever."""

    def __init__(self, batch: Batch) -> None:
        count, size = len(batch.ids), batch.images.shape[-1]
        labels = batch.labels.cpu().numpy()
        sizes = np.full((count, 2), size, np.int32)
        samples = Samples(Path(), [""] * count, labels, sizes, [""] * count, [""] * count, CLASSES)
        super().__init__(samples, View(size=size, training=True), count, batch.images.device)
        self._batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch

    def _decode(self, work: Iterator) -> Iterator[Tensor]:
        raise NotImplementedError("there is nothing to decode")


def _plain(job: TrainBenchmark, *, compiled: bool = False) -> Contender:
    runtime = Runtime(job.precision)
    network = plain_network(job.network()).to(runtime.device, memory_format=torch.channels_last)
    if compiled:
        network.compile(dynamic=False)
    return plain_steps(network, job.batch(runtime), job.recipe().optim, runtime.precision)


def plain_network(network: ChannelNet) -> nn.Module:
    """The same layers, with the same weights, as one would string them together without channel sets."""
    return nn.Sequential(network.stem.conv, network.stem.norm, network.body)


def plain_steps(network: nn.Module, batch: Batch, settings: Optim, precision: str) -> Contender:
    """What one would write by hand, with torch alone.

    Args:
        network: on the device.
        batch: of every step.
        settings: learning rate, momentum, weight decay, label smoothing.
        precision: "fp32", "bf16" or "fp16".
    """
    device, dtype = batch.images.device.type, torch.float16 if precision == "fp16" else torch.bfloat16
    weights = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=True)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    network.train()
    while True:
        with torch.autocast(device, dtype, enabled=precision != "fp32"):
            loss = F.cross_entropy(network(batch.images), batch.labels, label_smoothing=settings.label_smoothing)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        yield len(batch.images)


# --- several ranks ---------------------------------------------------------------------------------------


def measure_ranks(job: TrainBenchmark) -> dict[str, Any]:
    """Images per second *and rank* of one rank alone, of as many that ignore one another, and of ranks together.

    Those that ignore one another share caches and memory as the ranks do, so that what is lost between the first
    two is the machine's, and what is lost after that is the price of working together.
    """
    singles = [World(1, rank_steps, job, first_gpu=i) for i in range(job.ranks)]
    worlds = {ALONE: singles[:1], BESIDE: singles, TOGETHER: [World(job.ranks, rank_steps, job)]}
    with closing([*singles, *worlds[TOGETHER]]):
        steps = {name: _enough_steps(chosen, job.seconds) for name, chosen in worlds.items()}
        rates = {clock: {name: [] for name in worlds} for clock in get_args(Clock)}
        for turn in range(job.rounds):
            for name, chosen in worlds.items():
                times = ask(chosen, "train", steps[name])
                for clock, row in rates.items():
                    row[name].append(fmean(job.batch_size * steps[name] / seconds[clock] for seconds in times))
                print(
                    f"round {turn + 1}/{job.rounds}  {name}: {rates['wall'][name][-1]:.1f} images/s each",
                    flush=True,
                )
        reduce = _measure_all_reduce(worlds[TOGETHER], count_parameters(job.network()), job.rounds)
    against = {clock: {name: summary(row, name) for name in (ALONE, BESIDE)} for clock, row in rates.items()}
    for clock, rows in against.items():
        for name, row in rows.items():
            show(f"{job.ranks} ranks: images/s of each, {clock} time", row, name)
    return {"ranks": job.ranks, "rates": rates, "summary": against, "all_reduce": reduce}


def _enough_steps(worlds: list[World], seconds: float) -> int:
    """As many as take about that long, after some to warm up."""
    ask(worlds, "train", WARM_UP)
    slowest = max(times["wall"] for times in ask(worlds, "train", WARM_UP))
    return max(2, round(seconds * WARM_UP / slowest))


def _measure_all_reduce(worlds: list[World], parameters: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of the fastest all-reduce of one number, and of a float32 gradient, in each round."""
    sizes = {4: 200, 4 * parameters: 3}  # bytes: how often in a round
    return [
        {"bytes": size, "seconds": [max(ask(worlds, "all-reduce", size, times)) for _ in range(rounds)]}
        for size, times in sizes.items()
    ]


def rank_steps(job: TrainBenchmark) -> Answer:
    """What a process of the measurement does: so many steps, or all-reduces; it answers with seconds."""
    contender = our_steps(job)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def train(steps: int) -> dict[Clock, float]:
        return _seconds(lambda: sum(islice(contender, steps)))

    def all_reduce(size: int, times: int) -> float:
        """Of the fastest: whatever else the machine does can only slow one down."""
        numbers = torch.zeros(size // 4, device=device)
        return min(_seconds(lambda: dist.all_reduce(numbers))["wall"] for _ in range(1 + times))

    return lambda what, *amount: {"train": train, "all-reduce": all_reduce}[what](*amount)


def _seconds(work: Callable[[], Any]) -> dict[Clock, float]:
    wait_for_gpu()
    start = {clock: now(clock) for clock in get_args(Clock)}
    work()
    wait_for_gpu()
    return {clock: now(clock) - began for clock, began in start.items()}
