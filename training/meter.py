"""What happened between two log lines: loss, speed, waiting, memory."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from training.runtime import Runtime

_GIB = 1024**3


@dataclass
class Meter:
    """What happened since it was last read; sums stay on the device until then, so that no step waits for them.

    Attributes:
        sums: summed loss, the number of images it is over, summed norms of gradients, and the number of steps, of
            this rank, shape (4,).
        losses: mean loss of each step, of this rank.
        waited: seconds spent waiting for data.
    """

    sums: Tensor
    losses: list[Tensor] = field(default_factory=list)
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor, valid: Tensor, norm: Tensor) -> None:
        """Count a step: its mean loss, which rows were images, and the norm of its gradient."""
        self.sums += torch.stack([loss * len(valid), valid.sum(), norm, torch.ones_like(norm)])
        self.losses.append(loss)

    def read(self, runtime: Runtime) -> dict[str, float]:
        """Means of loss and gradient norm, images/s over all ranks, and the part of the time this one waited."""
        seconds = time.perf_counter() - self.since
        loss, images, norms, steps = runtime.sum(self.sums).tolist()
        return {
            "train/loss": loss / max(images, 1.0),
            "train/grad_norm": norms / max(steps, 1.0),
            "train/images_per_s": images / seconds,
            "train/data_wait": self.waited / seconds,
        }

    def where_it_broke(self, runtime: Runtime, step: int) -> str:
        """The first step, and rank, whose loss is not finite, and the losses before it, in words.

        Args:
            runtime: gathers the losses of all ranks.
            step: the last one counted.
        """
        table = torch.zeros(runtime.world, len(self.losses), device=runtime.device)
        table[runtime.rank] = torch.stack(self.losses)
        table = runtime.sum(table).cpu()
        broken = (~table.isfinite()).nonzero()
        if not len(broken):
            return f"a gradient stopped being finite by step {step}"
        rank, column = broken[broken[:, 1].argmin()].tolist()
        before = " ".join(f"{loss:.3f}" for loss in table[rank, max(0, column - 5) : column].tolist()) or "none"
        first = step - len(self.losses) + 1
        return f"the loss is {table[rank, column]} on rank {rank} at step {first + column} (before it: {before})"


def memory(device: torch.device) -> dict[str, float]:
    """GiB that this process holds: of the machine's memory, and of the GPU's now and at most so far, if on one."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = {"memory/resident_gib": pages * os.sysconf("SC_PAGE_SIZE") / _GIB}
    if device.type == "cuda":
        held["memory/gpu_allocated_gib"] = torch.cuda.memory_allocated(device) / _GIB
        held["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    return held
