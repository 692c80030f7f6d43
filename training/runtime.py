"""Processes, devices and precision. The only file that imports accelerate."""

import datetime
import gc
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
from torch import Tensor, nn

from training import zero
from training.config import ConfigError
from training.small_maps import SmallMaps, has_matrix_units

T = TypeVar("T")
_PATIENCE = datetime.timedelta(hours=12)  # of ranks that wait while the first one scans a large data set
_MEETING = datetime.timedelta(minutes=10)  # until all ranks have come up
_ROLL_CALL = datetime.timedelta(seconds=15)  # in which ranks say that they are there, at most


class FailedElsewhere(RuntimeError):
    """Another rank failed, and it says why; this one only has to end."""


class LostRankError(RuntimeError):
    """A rank hangs, or ended without a word; the message says which one, and where."""


class Runtime:
    """This process among all: its rank, its device, and what the ranks do together.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".
        seed: seeds Python, NumPy and PyTorch alike on every rank, so that weights start equal.
        processes: how many ranks the user expects; None takes what there is.
        patience: minutes that ranks at work wait for one that does not answer.

    Raises:
        ConfigError: the launcher asked for another number of ranks than came up, or a precision that the
            hardware lacks.
    """

    def __init__(
        self, precision: str = "fp32", seed: int = 0, processes: int | None = None, patience: float = 10.0
    ) -> None:
        cpu = not torch.cuda.is_available()
        self.precision = resolve_precision(precision, cpu)
        self.small_maps = self.precision == "bf16" and has_matrix_units()
        self.zero = zero.stage()
        self._patience = datetime.timedelta(minutes=patience)
        self._store = _meet(cpu, self._patience)
        self._accelerator = self._accelerate(cpu)
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.device = _with_index(self._accelerator.device)
        self.is_main = self.rank == 0
        self._check_world(processes)
        # Objects travel beside the training's own group: over gloo, and with time enough for a long scan.
        self._side = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.world > 1 else None
        self._pulse = dist.new_group(backend="gloo", timeout=self._patience) if self.world > 1 else None
        self._divided: zero.Divided | None = None
        if self.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # it keeps ten bits of the mantissa
        set_seed(seed)

    def _accelerate(self, cpu: bool) -> Accelerator:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # accelerate's own deprecations are not ours to mend
            if self.zero:
                if cpu:
                    zero.use_plain_gloo()
                # The stage is the launcher's. With cpu=True it would quietly use DDP; without gloo, find no world.
                return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo" if cpu else "nccl")])
            views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # else gradients are kept twice
            mixed = "no" if self.precision == "fp32" else self.precision
            return Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[views])

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
        self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move to the device, then wrap for DDP or let DeepSpeed divide.

        Args:
            model, optimizer: fresh ones.
            clip: what `clip` will be called with; DeepSpeed wants to know beforehand.
        """
        if self.zero:
            zero.configure(self._accelerator.deepspeed_plugin.deepspeed_config, self.precision, clip)
            self._divided = zero.Divided(model, optimizer)
            # channels_last weights break its flat buffers; a channels_last input is enough for the kernels.
            model, optimizer = self._accelerator.prepare(model, optimizer)
            self._divided.divided = optimizer.optimizer
            return model, optimizer
        # Before DDP, whose buckets follow the strides.
        model = model.to(self.device, memory_format=torch.channels_last)
        model, optimizer = self._accelerator.prepare(model, optimizer)
        for name, weight in model.named_parameters():
            if weight.dim() == 4 and not weight.is_contiguous(memory_format=torch.channels_last):
                raise RuntimeError(f"{name} lost its channels_last memory in prepare; strides {weight.stride()}")
        return model, optimizer

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole state dict of a prepared network. To be called on every rank."""
        return self._divided.weights() if self._divided else self.unwrap(model).state_dict()

    def whole(self, model: nn.Module) -> nn.Module:
        """The network of a prepared model with whole weights: itself, or a copy where ZeRO-3 has divided it.

        To be called on every rank.
        """
        return self._divided.whole(self.device) if self.zero == 3 else self.unwrap(model)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state dict of a prepared optimizer. To be called on every rank."""
        if self._divided:
            return self._divided.state_dict(optimizer.param_groups[0]["lr"])
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Give a prepared optimizer a whole state. To be called on every rank."""
        if self._divided:
            self._divided.load_state_dict(state)
        else:
            optimizer.load_state_dict(state)

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The network itself, without DDP around it."""
        return self._accelerator.unwrap_model(model)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision for a forward pass, by what the processor is quick at."""
        with self._mixed_precision(), SmallMaps() if self.small_maps else nullcontext():
            yield

    def _mixed_precision(self) -> AbstractContextManager:
        if self.zero:  # of which accelerate knows nothing; DeepSpeed has the same settings
            return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision != "fp32")
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled where the precision is fp16. DeepSpeed takes its optimizer step here too."""
        self._accelerator.backward(loss)

    @contextmanager
    def accumulate(self, model: nn.Module, *, more: bool) -> Iterator[None]:
        """Around a forward and backward pass; while more are to come, gradients only add up."""
        if self.zero:
            self._accelerator.gradient_state._set_sync_gradients(not more)  # what its `no_sync` cannot say
        with self._accelerator.no_sync(model) if more and not self.zero else nullcontext():
            yield

    def clip(self, model: nn.Module, largest: float | None) -> Tensor:
        """Scale the gradient down to this norm, if given, and return the norm that it had."""
        if largest is None and not self.zero:
            self._accelerator.unscale_gradients()
            return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        norm = self._accelerator.clip_grad_norm_(model.parameters(), math.inf if largest is None else largest)
        return torch.as_tensor(norm, device=self.device)  # DeepSpeed, which has clipped by now, gives a number

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

    def together(self, work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Let each rank do some work, and end them all where one fails.

        Args:
            work: what to do.
            group: over which the ranks meet; by default one with much time.

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
        dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=group or self._side)
        if failure:
            raise failure
        if failed:
            raise FailedElsewhere(f"rank {int(failed) - 1} failed")
        return result

    def meet(self, work: Callable[[], T]) -> T:
        """Let each rank do some work as `together` does; who does not come within `patience` is lost."""
        return self.together(work, self._pulse)

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Go through batches, as many on every rank; where one rank's loader fails, all stop at that batch."""
        iterator = iter(batches)
        while (batch := self.meet(lambda: next(iterator, None))) is not None:
            yield batch

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around work that the ranks do together: where one of them is lost, say which.

        Raises:
            LostRankError: a rank did not answer for as long as `patience`, or has ended.
        """
        try:
            yield
        except RuntimeError as error:
            said = str(error).lower()
            if not self._store or not any(sign in said for sign in ("timed out", "timeout", "connection", "peer")):
                raise
            raise LostRankError(self._roll_call()) from error

    def _roll_call(self) -> str:
        """Which ranks do not answer, in words."""
        waited = f"ranks waited {self._patience.total_seconds():.0f} s (--schedule.patience)"
        try:
            self._store.set(f"here/{self.rank}", "yes")
            lost = [rank for rank in range(self.world) if not self._answers(rank)]
            names = ", ".join(f"rank {rank} on {self._store.get(f'host/{rank}').decode()}" for rank in lost)
        except dist.DistNetworkError:  # without a launcher that keeps the store, the first rank does
            return f"another rank ended, or hangs; the first rank's message says which; {waited}"
        return f"{names or 'a rank'} did not answer; {waited}"

    def _answers(self, rank: int) -> bool:
        try:
            self._store.wait([f"here/{rank}"], min(_ROLL_CALL, self._patience))
        except dist.DistStoreError:
            return False
        return True

    def close(self) -> None:
        """Leave the process group. Not after an error: it would wait for ranks that wait for this one."""
        # Whoever lets a model of DDP go after its gloo group may wait for ever (pytorch issue 56297).
        self._accelerator.free_memory()
        gc.collect()
        self._accelerator.end_training()


def _meet(cpu: bool, patience: datetime.timedelta) -> dist.Store | None:
    """Open the process group of a launched run before accelerate would, and return the store that ranks share.

    Its keys have the launcher's attempt in their names. Without that, ranks that an elastic launcher has started
    again find the answers of the attempt before, and more often than not never meet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = dist.TCPStore(address, port, world, is_master=rank == 0 and not hosted, timeout=_MEETING)
    store = dist.PrefixStore(f"attempt_{restarts()}", shared)
    if cpu:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Twice: the ranks miss one another on the CPU first, where the message is better.
        dist.init_process_group("nccl", store=store, rank=rank, world_size=world, timeout=2 * patience)
    store.set(f"host/{rank}", socket.gethostname())
    return store


def restarts() -> int:
    """How often an elastic launcher has started this run again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


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
