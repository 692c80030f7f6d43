"""How fast each loader hands out training batches, against what one would write with torchvision alone."""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from modeling.channels import ChannelSet
from modeling.zoo import BodyName
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, Decoding, Loader, View
from pipelines.build import LoaderName, build_loader
from pipelines.integrity import scan
from pipelines.manifest import parse_labels, read_folder, read_split
from pipelines.packed import pack_samples
from pipelines.samples import Samples
from pipelines.shards import Options, open_packed
from training.benchmarks.harness import Contender, measure, show, summary
from training.benchmarks.steps import CLASSES, noise, training_steps
from training.build import cpu_threads, new_model
from training.config import Model
from training.records import provenance, write_record
from training.runtime import Runtime

PLAIN = "plain DataLoader"
ENOUGH = 40  # batches in an epoch; smaller data sets are gone through several times in one


@dataclass(kw_only=True)
class LoaderBenchmark:
    """Images per second of every loader, of a plain torchvision DataLoader, and of the model that eats them."""

    data: Path
    """Folder of train.txt and its images, or any folder with images below."""
    labels: str | None = None
    """Keep only these classes of train.txt, e.g. 0-19."""
    size: int = 84
    """Height and width of the batches' images, in pixels."""
    batch_size: int = 128
    """Images in a batch."""
    threads: int | None = None
    """CPU threads, or worker processes of the plain DataLoader; by default the cores at hand."""
    prefetch: int = 3
    """Batches that DALI and the portable loader decode ahead."""
    hardware_load: float = 0.65
    """Part of the images that DALI gives to a GPU's JPEG engine."""
    body: BodyName = "resnet18"
    """The model whose demand is measured, as a training step on images that are there already."""
    only: str = ""
    """Measure only contenders with this in their names, and the plain DataLoader."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 4.0
    """How long each is timed in a round."""
    record: Path | None = None
    """Where to keep the result as a record."""

    def run(self) -> None:
        """Measure, print, and keep the record where one is wanted."""
        runtime = Runtime("auto")
        samples = read_samples(self.data, self.labels)
        with tempfile.TemporaryDirectory() as scratch:
            contenders = _contenders(self, samples, runtime, Path(scratch))
            chosen = {name: start for name, start in contenders.items() if self.only in name or name == PLAIN}
            rates = measure(chosen, rounds=self.rounds, seconds=self.seconds)
        rows = summary(rates, PLAIN)
        show(f"{self.data.name}: {len(samples)} images, to {self.size} px", rows, PLAIN)
        if self.record:
            write_record(self.record, _record(self, samples, runtime, rates, rows))


def read_samples(data: Path, labels: str | None = None) -> Samples:
    """The training images of a folder with lists, or of one without all images that are there."""
    chosen = parse_labels(labels) if labels else None
    listed = (data / "train.txt").is_file()
    return scan(read_split(data, "train", labels=chosen) if listed else read_folder(data))


def _contenders(
    job: LoaderBenchmark, samples: Samples, runtime: Runtime, scratch: Path
) -> dict[str, Callable[[], Contender]]:
    """All that is measured; DALI is left out where it is not installed."""
    view = View(size=job.size, training=True, half=runtime.device.type == "cuda")
    decoding = Decoding(job.threads or cpu_threads(), job.prefetch, job.hardware_load)

    @cache
    def read(packed: bool) -> Samples:
        return _enough(_packed(samples, scratch) if packed else samples, job.batch_size)

    def ours(name: LoaderName, device: torch.device, packed: bool = False) -> Callable[[], Contender]:
        @cache  # a resident loader must not decode anew in every round
        def loader() -> Loader:
            return build_loader(name, read(packed), view, job.batch_size, device, decoding=decoding)[0]

        return lambda: _endless(loader(), runtime.device)

    found = {PLAIN: lambda: _plain(job, read(False), runtime.device, decoding.threads)}
    if _has_dali():
        for device in dict.fromkeys([torch.device("cpu"), runtime.device]):
            found[f"DALI on {device.type}"] = ours("dali", device)
            found[f"DALI on {device.type}, packed"] = ours("dali", device, packed=True)
    found["portable"] = ours("portable", runtime.device)
    found["resident"] = ours("resident", runtime.device)
    found[f"{job.body}, training"] = lambda: _training(job, runtime)
    return found


def _has_dali() -> bool:
    try:
        importlib.import_module("pipelines.dali")
    except ImportError:
        return False
    return True


def _enough(samples: Samples, batch_size: int) -> Samples:
    """The same images over and over, until an epoch is long enough to be timed."""
    times = max(1, -(-ENOUGH * batch_size // len(samples)))
    return samples.take(list(range(len(samples))) * times)


def _packed(samples: Samples, scratch: Path) -> Samples:
    pack_samples({"train": samples}, scratch, Options())
    return open_packed(read_split(scratch, "train"))


def _endless(loader: Loader, device: torch.device) -> Contender:
    while True:
        for batch in loader:
            batch.images.to(device)
            yield len(batch.valid)


class _Images(Dataset):
    """What torchvision's ImageFolder does, for a list of files."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.samples = samples
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(View.scale, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(default_loader(self.samples.files[i])), int(self.samples.labels[i])


def _plain(job: LoaderBenchmark, samples: Samples, device: torch.device, workers: int) -> Contender:
    """The loader of PyTorch's own ImageNet example, with the settings that its documentation advises."""
    loader = DataLoader(
        _Images(samples, job.size),
        job.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    while True:
        for images, _ in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            yield len(images)


def _training(job: LoaderBenchmark, runtime: Runtime) -> Contender:
    """What a loader must keep up with."""
    model = new_model(Model(body=job.body), CLASSES)
    every = ChannelSet.full(model.stem.vocabulary)
    images = noise(job.batch_size, len(every), job.size, runtime.device)
    return training_steps(model, images, every, runtime.precision)


def _record(job: LoaderBenchmark, samples: Samples, runtime: Runtime, rates: dict, rows: dict) -> dict[str, Any]:
    settings = {k: v for k, v in asdict(job).items() if k not in ("data", "record")}
    return {
        "kind": "benchmark loader",
        "name": job.data.name,
        "images": len(samples),
        "median_size": np.median(samples.sizes, axis=0).tolist(),
        "fingerprint": samples.fingerprint,
        "settings": settings | {"threads": job.threads or cpu_threads()},
        "precision": runtime.precision,
        "baseline": PLAIN,
        "rates": rates,
        "summary": rows,
        "provenance": provenance("training.benchmark", runtime.world),
    }
