"""What each rank holds under DeepSpeed's ZeRO stages, in tensors, against the formula of `training.scaling`.

It runs on the CPU over gloo, where DeepSpeed divides things as it does on GPUs.
"""

import gc
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.cost import count_parameters
from modeling.zoo import BodyName
from training.benchmarks.ranks import Answer, World, ask, closing
from training.benchmarks.steps import CLASSES
from training.benchmarks.train import plain_network
from training.build import new_model
from training.config import ConfigError, Model
from training.records import provenance, write_record
from training.scaling import ZERO_PARTS, zero_bytes

STAGES = (0, 1, 2, 3)
BUCKET = 500_000  # numbers that are reduced at a time: few, so that what is measured is what is kept


@dataclass(kw_only=True)
class ZeroBenchmark:
    """Bytes of weights, gradients and optimizer state that a rank holds in each ZeRO stage."""

    body: BodyName = "resnet34"
    """The network, on all channels."""
    size: int = 32
    """Height and width of the images, in pixels; it does not matter for what is counted."""
    ranks: int = 2
    """How many share what is divided."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def __post_init__(self) -> None:
        if self.ranks < 2:
            raise ConfigError(f"--ranks {self.ranks} must be at least 2: one rank has nothing to divide")

    def run(self) -> None:
        """Measure, print, and keep the record where one is wanted."""
        measured = {str(stage): self._measured(stage) for stage in STAGES}
        parameters = count_parameters(self.network())
        predicted = {str(stage): asdict(zero_bytes(parameters, self.ranks, stage)) for stage in STAGES}
        _show(measured, predicted)
        if self.record:
            write_record(self.record, self._result(parameters, measured, predicted))

    def _measured(self, stage: int) -> list[dict[str, int]]:
        """Of each rank; in fresh processes, since DeepSpeed does not let go of an engine."""
        with closing([World(self.ranks, zero_rank, self)]) as worlds:
            return ask(worlds, stage)

    def network(self) -> nn.Module:
        """An ordinary network with fresh weights."""
        return plain_network(new_model(Model(body=self.body, stem="plain"), CLASSES))

    def _result(self, parameters: int, measured: dict[str, Any], predicted: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": "benchmark zero",
            "name": self.body,
            "settings": {key: value for key, value in asdict(self).items() if key != "record"},
            "parameters": parameters,
            "measured": measured,
            "predicted": predicted,
            "provenance": provenance("training.benchmark", self.ranks),
        }


def _show(measured: dict[str, list[dict[str, int]]], predicted: dict[str, dict[str, int]]) -> None:
    table = Table(title="bytes on the rank that holds most, measured ÷ predicted")
    for column in ("ZeRO stage", *ZERO_PARTS):
        table.add_column(column)
    for stage, ranks in measured.items():
        cells = [
            f"{max(r[p] for r in ranks) / 1e6:.1f} MB ÷ {predicted[stage][p] / 1e6:.1f} MB" for p in ZERO_PARTS
        ]
        table.add_row(stage, *cells)
    Console().print(table)


def zero_rank(job: ZeroBenchmark) -> Answer:
    """What a process of the measurement does: two steps in a stage; it answers with bytes by part."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a compiler runs for half a minute
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    return lambda stage: _measure(job, deepspeed, stage)


def _measure(job: ZeroBenchmark, deepspeed: Any, stage: int) -> dict[str, int]:
    """Bytes of each part in a second backward pass: of gradients the most at any time, and those kept after it."""
    network = job.network().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    engine, *_ = deepspeed.initialize(
        model=network, model_parameters=network.parameters(), optimizer=optimizer, config=_settings(stage)
    )
    images, labels = torch.randn(2, 3, job.size, job.size), torch.arange(2)
    engine.backward(F.cross_entropy(engine(images), labels))
    engine.step()  # optimizers make their state in the first one
    most: list[int] = []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: most.append(_bytes(_gradients(engine))))
    engine.backward(F.cross_entropy(engine(images), labels))
    everything = _bytes([*_all_tensors(), *_gradients(engine)])
    weights, kept, state = (_bytes(part) for part in (_weights(engine, stage), _gradients(engine), _state(engine)))
    return {
        "weights": weights,
        "gradients": max(most),
        "gradients kept": kept,
        "state": state,
        "anything else": everything - weights - kept - state,
    }


def _settings(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": 0,  # else small weights stay whole on every rank
            "stage3_prefetch_bucket_size": 0,
        },
    }


def _weights(engine: Any, stage: int) -> list[Tensor]:
    return [p.ds_tensor if stage == 3 else p for p in engine.module.parameters()]


def _gradients(engine: Any) -> list[Tensor]:
    """Wherever DeepSpeed keeps them: with the weights, or flat by part."""
    flat = [
        getattr(engine.optimizer, name, None) for name in ("averaged_gradients", "grad_partitions_flat_buffer")
    ]
    return [*_tensors(flat), *_tensors([p.grad for p in engine.module.parameters()])]


def _state(engine: Any) -> list[Tensor]:
    """Momentum, and the float32 weights that the optimizer works on where these are not the network's."""
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    masters = [getattr(engine.optimizer, name, None) for name in names]
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return [*_tensors(masters), *_tensors(list(inner.state.values()))]


def _tensors(value: Any) -> Iterable[Tensor]:
    """All tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _all_tensors() -> list[Tensor]:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # looking at an object's class wakes deprecations
        return [item for item in gc.get_objects() if isinstance(item, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of their memory, each piece counted once."""
    pieces = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]
    return sum({piece.data_ptr(): piece.nbytes() for piece in pieces}.values())
