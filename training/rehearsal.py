"""A rehearsal: a few steps, a sweep over one batch and a checkpoint, and what the whole run would take."""

import resource
import time
from itertools import islice

import torch

from modeling.cost import channel_cost, count_parameters
from pipelines.batch import Batch
from training.loop import Trainer
from training.sweep import specialise, sweep

_STEPS = 4  # of which the first, which also sets things up, is told apart
_GIB = 1024**3


def rehearse(trainer: Trainer) -> list[str]:
    """Go once through everything that a run does, and say in lines of text what it was and what it took.

    To be called on every rank, of a trainer whose run directory will be thrown away.
    """
    batch = next(iter(trainer.val))
    first, step = _time_steps(trainer)
    sweep_seconds = _time_sweep(trainer, batch)
    save_seconds, size = _time_checkpoint(trainer)
    schedule = trainer.recipe.schedule
    sweeps = -(-schedule.epochs // schedule.eval_epochs)
    saves = schedule.epochs + trainer.steps // schedule.checkpoint_steps
    whole = first + trainer.steps * step + sweeps * sweep_seconds + saves * save_seconds
    return [
        f"  network     {_network(trainer)}",
        f"  batch       {_batch(trainer)}",
        f"  memory      {_memory()}",
        f"  step        {step:.3f} s, the first {first:.1f} s; {trainer.steps} of them",
        f"  sweep       {sweep_seconds:.1f} s over val, {len(trainer.evaluated)} channel sets; {sweeps} of them",
        f"  checkpoint  {save_seconds:.1f} s, {size / 1e6:.0f} MB; {saves} of them, {schedule.keep + 1} kept",
        f"  all of it   about {_duration(whole)}",
    ]


def _time_steps(trainer: Trainer) -> tuple[float, float]:
    """Seconds of the first step, and of a later one."""
    times = [time.perf_counter()]
    for _ in islice(trainer.iterate(), _STEPS):
        if trainer.runtime.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    return times[1] - times[0], (times[-1] - times[1]) / max(1, len(times) - 2)


def _time_sweep(trainer: Trainer, batch: Batch) -> float:
    """Seconds that a sweep over val would take, by that over one batch."""
    start = time.perf_counter()
    networks = specialise(trainer.result, trainer.evaluated)
    prepared = time.perf_counter()
    sweep(networks, trainer.vocabulary, [batch], len(trainer.val.samples), trainer.runtime)
    return prepared - start + (time.perf_counter() - prepared) * len(trainer.val)


def _time_checkpoint(trainer: Trainer) -> tuple[float, int]:
    """Seconds that writing one takes, and its bytes; it is read back as well."""
    start = time.perf_counter()
    trainer.save()
    seconds = time.perf_counter() - start
    trainer.runtime.first(trainer.checkpoints.load)
    return seconds, sum(file.stat().st_size for file in trainer.checkpoints.folder.rglob("*") if file.is_file())


def _network(trainer: Trainer) -> str:
    recipe, model = trainer.recipe.model, trainer.result
    macs = channel_cost(model, trainer.evaluated[0], trainer.recipe.data.size).macs
    return (
        f"{recipe.stem} {recipe.body}, {count_parameters(model) / 1e6:.1f} M parameters, "
        f"{macs / 1e6:.0f} M multiply-adds for an image of {trainer.evaluated[0]}"
    )


def _batch(trainer: Trainer) -> str:
    data, world = trainer.recipe.data, trainer.runtime.world
    parts = f" in {trainer.parts} parts" if trainer.parts > 1 else ""
    channels = len(trainer.vocabulary)
    return f"{world} × {data.batch_size // world} images{parts}, each {channels}×{data.size}×{data.size}"


def _memory() -> str:
    if torch.cuda.is_available():
        held, there = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
        return f"{held / _GIB:.1f} of the GPU's {there / _GIB:.1f} GiB at its highest"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB:.1f} GiB at its highest"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
