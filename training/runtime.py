"""Processes, devices and precision. The only file that imports accelerate."""

import datetime
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from training.config import ConfigError

T = TypeVar("T")
_PATIENCE = datetime.timedelta(hours=12)  # of ranks that wait while the first one scans a large data set


class FailedElsewhere(RuntimeError):
    """Another rank failed, and it says why; this one only has to end."""


class Runtime:
    """This process among all: its rank, its device, and what the ranks do together.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".
        seed: seeds Python, NumPy and PyTorch alike on every rank, so that weights start equal.
        processes: how many ranks the user expects; None takes what there is.

    Raises:
        ConfigError: the launcher asked for another number of ranks than came up, or a precision that the
            hardware lacks.
    """

    def __init__(self, precision: str = "fp32", seed: int = 0, processes: int | None = None) -> None:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            raise ConfigError("training does not support DeepSpeed yet; launch with launch/ddp.yaml instead")
        cpu = not torch.cuda.is_available()
        self.precision = resolve_precision(precision, cpu)
        mixed = "no" if self.precision == "fp32" else self.precision
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # accelerate's own deprecations are not ours to mend
            self._accelerator = Accelerator(cpu=cpu, mixed_precision=mixed)
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.device = _with_index(self._accelerator.device)
        self.is_main = self.rank == 0
        self._check_world(processes)
        # Objects travel beside the training's own group: over gloo, and with time enough for a long scan.
        self._side = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.world > 1 else None
        if self.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # it keeps ten bits of the mantissa
        set_seed(seed)

    def _check_world(self, processes: int | None) -> None:
        """Some launches quietly start fewer ranks, or several worlds of one; both train wrongly."""
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        wanted = processes or launched
        if self.world != wanted:
            raise ConfigError(
                f"{wanted} processes were asked for, but this one sees a world of {self.world}; "
                "start with `accelerate launch --config_file launch/cpu.yaml` (CPU) or launch/ddp.yaml (GPUs)"
            )

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move to the device in channels_last memory, then wrap for DDP, whose buckets follow the strides."""
        model = model.to(self.device, memory_format=torch.channels_last)
        model, optimizer = self._accelerator.prepare(model, optimizer)
        for name, weight in model.named_parameters():
            if weight.dim() == 4 and not weight.is_contiguous(memory_format=torch.channels_last):
                raise RuntimeError(f"{name} lost its channels_last memory in prepare; strides {weight.stride()}")
        return model, optimizer

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The network itself, without DDP around it."""
        return self._accelerator.unwrap_model(model)

    def autocast(self) -> torch.autocast:
        """Mixed precision for a forward pass."""
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled where the precision is fp16."""
        self._accelerator.backward(loss)

    def accumulate(self, model: nn.Module, *, more: bool) -> AbstractContextManager:
        """Around a forward and backward pass; while more are to come, DDP leaves gradients with their rank."""
        return self._accelerator.no_sync(model) if more else nullcontext()

    def clip(self, model: nn.Module, largest: float | None) -> Tensor:
        """Scale the gradient down to this norm, if given, and return the norm that it had."""
        return self._accelerator.clip_grad_norm_(model.parameters(), math.inf if largest is None else largest)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler, in fp16 only."""
        return self._accelerator.scaler

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, given to each; of a copy on the device."""
        total = values.to(self.device)
        return self._accelerator.reduce(total, reduction="sum") if self.world > 1 else total

    def average_buffers(self, model: nn.Module) -> None:
        """Give every rank the mean of all ranks' running statistics, which drift apart between syncs."""
        for buffer in model.buffers():
            if self.world > 1 and buffer.is_floating_point():
                buffer.copy_(self.sum(buffer.clone()) / self.world)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank; the same answer on all."""
        return bool(self.sum(torch.tensor(float(flag))).item()) if self.world > 1 else flag

    def first(self, work: Callable[[], T]) -> T:
        """Let the first rank do some work and give every rank its result, or end them all where it fails."""
        if self.world == 1:
            return work()
        outcome = self.together(work if self.is_main else lambda: None)
        box = [outcome]
        dist.broadcast_object_list(box, src=0, group=self._side)
        return box[0]

    def together(self, work: Callable[[], T]) -> T:
        """Let each rank do some work, and end them all where one fails.

        Raises:
            FailedElsewhere: on the ranks whose own work went well; the others raise what went wrong.
        """
        if self.world == 1:
            return work()
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        # Over gloo, on the CPU: the ranks wait for one another here, but no GPU waits.
        failed = torch.tensor(self.rank + 1 if failure else 0)
        dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self._side)
        if failure:
            raise failure
        if failed:
            raise FailedElsewhere(f"rank {int(failed) - 1} failed")
        return result

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Go through batches, as many on every rank; where one rank's loader fails, all stop at that batch."""
        iterator = iter(batches)
        while (batch := self.together(lambda: next(iterator, None))) is not None:
            yield batch

    def close(self) -> None:
        """Leave the process group. Not after an error: it would wait for ranks that wait for this one."""
        self._accelerator.end_training()


def _with_index(device: torch.device) -> torch.device:
    """accelerate says plain "cuda" outside of distributed runs; DALI must know which GPU."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def resolve_precision(precision: str, cpu: bool) -> str:
    """Turn "auto" into what the hardware is good at, and refuse what it cannot do.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if precision == "auto":
        fast_bf16 = (
            torch.cpu._is_avx512_bf16_supported()
            if cpu
            else torch.cuda.is_bf16_supported(including_emulation=False)
        )
        return "bf16" if fast_bf16 else "fp32"
    if precision == "fp16" and cpu:
        raise ConfigError("precision fp16 needs a GPU (a CPU would quietly use fp32); use bf16 or fp32")
    return precision
