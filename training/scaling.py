"""How fast training should be on many GPUs, and how much memory it should take: predictions, no measurements.

`python -m training.scaling --record docs/records/scaling.json` makes the table of docs/scaling.md, which says what
the model leaves out. Seconds, bytes and FLOP/s everywhere.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.cost import count_activations, count_macs, count_parameters
from modeling.zoo import BodyName, build_model
from training.cli import run_program
from training.config import Schedule
from training.records import provenance, read_record, write_record

# --- memory ----------------------------------------------------------------------------------------------

ZERO_PARTS = ("weights", "gradients", "state")


@dataclass(frozen=True)
class Memory:
    """Bytes on each rank, without activations, buffers for communication and the like."""

    weights: int
    gradients: int
    state: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.state


def zero_bytes(
    parameters: int,
    ranks: int,
    stage: int,
    *,
    weight: int = 4,
    gradient: int = 4,
    state: int = 4,
    master: int = 4,
    mean: int = 0,
) -> Memory:
    """Memory of each rank under ZeRO: stage 1 divides the optimizer's state, 2 gradients too, 3 weights too.

    Source: Rajbhandari et al., "ZeRO", arXiv 1910.02054, §3.1 and figure 1.

    Args:
        parameters: of the network.
        ranks: that share what is divided.
        stage: 0 (plain data parallelism) to 3.
        weight, gradient: bytes of each.
        state: bytes of the optimizer for each parameter: 4 for momentum, 8 for Adam.
        master: bytes of the float32 weights that DeepSpeed's optimizer keeps beside the network's from stage 1 on.
        mean: bytes of a running mean of the weights, which is never divided: 4, or 0 without.
    """

    def share(each: int, divided: bool) -> int:
        return each * math.ceil(parameters / ranks) if divided else each * parameters

    held = state + (master if stage else 0)
    return Memory(
        weights=share(weight, stage >= 3),
        gradients=share(gradient, stage >= 2),
        state=share(held, stage >= 1) + mean * parameters,
    )


# --- time ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Nodes that are all alike.

    Attributes:
        name: what tables call it.
        gpus: in a node.
        flops: of the network's own arithmetic that a GPU gets done in a second.
        inside: bytes/s that the GPUs of a node all-reduce with (NCCL's bus bandwidth).
        network: bytes/s in each direction of all network cards of a node together.
        launch: seconds of the processor for each kernel.
        hop: seconds of a message between two ranks by way of the processors (gloo).
        cores: processor cores of a node.
    """

    name: str
    gpus: int
    flops: float
    inside: float
    network: float
    launch: float
    hop: float
    cores: int


@dataclass(frozen=True)
class Work:
    """What a GPU does in a step.

    Attributes:
        images: in its part of the batch.
        flops: of an image, forwards and backwards.
        gradient: bytes.
        kernels: launched in a step.
        decoded: images/s that a processor core decodes.
    """

    images: int
    flops: float
    gradient: int
    kernels: int
    decoded: float


# NCCL's own model of itself, its LL128 protocol: seconds to begin, for a hop inside a node, for one between nodes;
# part of the bandwidth that is left. Source: NVIDIA/nccl, src/graph/tuning.cc.
_RING = (10.0e-6, 1.9e-6, 4.0e-6, 0.92)
_TREE = (4.4e-6, 1.2e-6, 8.5e-6, 0.92 * 0.9)
MEETING = Schedule.log_steps  # steps between two meetings of the ranks
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20  # bytes; defaults of DistributedDataParallel


def all_reduce_seconds(size: int, nodes: int, cluster: Cluster) -> float:
    """Of `size` bytes over all GPUs of the nodes, by a ring or a tree, whichever is faster."""
    ranks = nodes * cluster.gpus
    if ranks == 1:
        return 0.0
    bandwidth = cluster.inside if nodes == 1 else min(cluster.inside, cluster.network)
    begin, inside, between, left = _RING
    hops = 2 * (ranks - nodes) * inside + 2 * (nodes - 1) * between
    ring = begin + hops + 2 * (ranks - 1) / ranks * size / (left * bandwidth)
    begin, inside, between, left = _TREE
    hops = 2 * (cluster.gpus - 1) * inside + 2 * math.log2(nodes) * between
    tree = begin + hops + 2 * size / (left * bandwidth)
    return min(ring, tree)


def buckets(gradient: int) -> list[int]:
    """Bytes that DistributedDataParallel reduces at a time, in its order."""
    sizes = [min(_FIRST_BUCKET, gradient)]
    while left := gradient - sum(sizes):
        sizes.append(min(_BUCKET, left))
    return sizes


def exposed_seconds(work: Work, nodes: int, cluster: Cluster) -> float:
    """What of the all-reduces the backward pass does not hide: at least the last one, which waits for it."""
    times = [all_reduce_seconds(size, nodes, cluster) for size in buckets(work.gradient)]
    backward = 2 / 3 * compute_seconds(work, cluster)
    return max(times[-1], sum(times) - backward)


def compute_seconds(work: Work, cluster: Cluster) -> float:
    """Of a GPU that nothing holds up."""
    return work.images * work.flops / cluster.flops


def agreement_seconds(ranks: int, cluster: Cluster) -> float:
    """Of the ranks' agreement that all of them have their batches, a ring of single numbers."""
    return 2 * (ranks - 1) * cluster.hop


def step_seconds(work: Work, nodes: int, cluster: Cluster, *, meet_every: int = MEETING) -> dict[str, float]:
    """What each part of the machine needs for a step. They work at the same time: the slowest sets the pace.

    Args:
        work: of each GPU.
        nodes: how many.
        cluster: of which kind.
        meet_every: after how many steps the ranks agree, see `training.feed`.
    """
    agreement = agreement_seconds(nodes * cluster.gpus, cluster) / meet_every
    return {
        "GPU": compute_seconds(work, cluster) + exposed_seconds(work, nodes, cluster),
        "host": work.kernels * cluster.launch + agreement,
        "data": cluster.gpus * work.images / (cluster.cores * work.decoded),
    }


def efficiency(work: Work, nodes: int, cluster: Cluster, *, meet_every: int = MEETING) -> float:
    """Speed of a GPU among all over that of one which nothing holds up."""
    slowest = max(step_seconds(work, nodes, cluster, meet_every=meet_every).values())
    return compute_seconds(work, cluster) / slowest


# --- the table -------------------------------------------------------------------------------------------

GPUS = (8, 64, 512)
SIZES = (84, 224)  # px
IMAGES = (256, 32)  # of a GPU in a step

# Images/s of ResNet-50 in training at 224 px, mixed precision, on an A100. Source: NVIDIA/DeepLearningExamples,
# PyTorch/Classification/ConvNets/resnet50v1.5/README.md.
_RESNET50_A100 = 2470
# Images/s of ResNet-34 over those of ResNet-50, both at 224 px, mixed precision, channels_last, on an RTX 3090.
# Source: huggingface/pytorch-image-models, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv.
_RESNET34_TO_50 = 2036.51 / 1218.01


@dataclass(kw_only=True)
class Scaling:
    """Predict how training scales on nodes of eight A100 GPUs."""

    body: BodyName = "resnet34"
    """The network, on all channels."""
    loaders: tuple[Path, ...] = (
        Path("docs/records/loader-mini-imagenet-84.json"),
        Path("docs/records/loader-photos.json"),
    )
    """Records of training.benchmark loader, one for each size, which say how fast a core decodes."""
    ranks: Path = Path("docs/records/all-reduce-cpu.json")
    """Record of training.benchmark train, which says how long a message between ranks takes."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def run(self) -> None:
        """Compute, print, and keep the record where one is wanted."""
        decoded = decoding_rates([read_record(file) for file in self.loaders])
        hop = message_seconds(read_record(self.ranks))
        record = predict(self.body, decoded, hop)
        for row in record["rows"]:
            cells = (f"{n} GPUs {cell['efficiency']:.2f} {cell['limit']}" for n, cell in row["gpus"].items())
            print(f"{row['network']}, {row['size']} px, {row['images']} images: {', '.join(cells)}")
        if self.record:
            write_record(self.record, record)


def decoding_rates(records: list[dict[str, Any]]) -> dict[int, float]:
    """Images/s that a core decodes with DALI, by the size they are decoded to."""
    return {
        record["settings"]["size"]: record["summary"]["DALI on cpu"]["images_per_s"]["median"]
        / record["settings"]["threads"]
        for record in records
    }


def message_seconds(record: dict[str, Any]) -> float:
    """Of one message between two ranks: an all-reduce of one number among two takes two, one after the other.

    The shortest time of all, since whatever else the machine does can only slow one down.
    """
    smallest = min(record["scaling"]["all_reduce"], key=lambda row: row["bytes"])
    return min(smallest["seconds"]) / 2


def clusters(hop: float) -> list[Cluster]:
    """NVIDIA's DGX A100, and the same with one ordinary network card.

    Its GPUs: 312 TFLOP/s in bf16; NCCL reckons with 235 GB/s between them; eight cards of 200 Gb/s; two processors
    of 64 cores. Source: DGX A100 data sheet. 5 µs for a launch: a bare one, PyTorch needs more.
    """
    resnet34 = 6 * _macs("resnet34", 224)
    flops = _RESNET50_A100 * _RESNET34_TO_50 * resnet34
    common = {"gpus": 8, "flops": flops, "inside": 235e9, "launch": 5e-6, "hop": hop, "cores": 128}
    return [
        Cluster(name="8 × 200 Gb/s", network=200e9, **common),
        Cluster(name="1 × 100 Gb/s", network=12.5e9, **common),
    ]


def predict(body: BodyName, decoded: Mapping[int, float], hop: float) -> dict[str, Any]:
    """The record: constants, and a row for each kind of node, image size and batch."""
    network = _plain(body)
    facts = {
        "parameters": count_parameters(network),
        "kernels": count_kernels(network),
        "macs": {size: _macs(body, size) for size in SIZES},
        "activations": {size: count_activations(network, torch.zeros(1, 3, size, size)) for size in SIZES},
        "decoded": dict(decoded),
    }
    kinds = clusters(hop)
    return {
        "kind": "scaling",
        "name": body,
        "facts": facts,
        "clusters": [asdict(cluster) for cluster in kinds],
        "rows": [_row(facts, size, images, cluster) for cluster in kinds for size in SIZES for images in IMAGES],
        "provenance": provenance("training.scaling", 1),
    }


def _row(facts: dict[str, Any], size: int, images: int, cluster: Cluster) -> dict[str, Any]:
    work = Work(
        images=images,
        flops=6 * facts["macs"][size],
        gradient=4 * facts["parameters"],
        kernels=facts["kernels"],
        decoded=facts["decoded"][size],
    )
    cells = {}
    for gpus in GPUS:
        nodes = gpus // cluster.gpus
        seconds = step_seconds(work, nodes, cluster)
        cells[str(gpus)] = {
            "seconds": seconds,
            "limit": max(seconds, key=seconds.get),
            "exposed": exposed_seconds(work, nodes, cluster),
            "efficiency": efficiency(work, nodes, cluster),
            "efficiency, meeting in every step": efficiency(work, nodes, cluster, meet_every=1),
        }
    alone = images / compute_seconds(work, cluster)
    return {"network": cluster.name, "size": size, "images": images, "images_per_s alone": alone, "gpus": cells}


def count_kernels(network: nn.Module) -> int:
    """Operations of a training step in mixed precision that compute something: a kernel on a GPU each, or more."""
    network.train()
    with _Counter() as counter:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(torch.zeros(2, 3, 32, 32)), torch.arange(2))
        loss.backward()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
        optimizer.step()
    return counter.count


class _Counter(TorchDispatchMode):
    """Counts operations, those not that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _plain(body: BodyName) -> nn.Module:
    network = build_model(body, "plain", "RGB", 100)
    return nn.Sequential(network.stem.conv, network.stem.norm, network.body)


def _macs(body: BodyName, size: int) -> int:
    return count_macs(_plain(body), torch.zeros(1, 3, size, size))


def main(job: Scaling) -> None:
    """Predict."""
    job.run()


def parse(args: list[str] | None = None) -> Scaling:
    """The prediction that the command line describes."""
    return tyro.cli(Scaling, args=args, prog="python -m training.scaling")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
