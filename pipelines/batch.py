"""Batch, and the Loader that all pipelines share: order, shards, crops and resume; subclasses decode."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines import crops, sharding, spectral
from pipelines.errors import DataError
from pipelines.samples import Samples

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # per channel R, G, B, of pixels scaled to 0 … 1
IMAGENET_STD = (0.229, 0.224, 0.225)
RGB = ("R", "G", "B")


@dataclass(frozen=True)
class Batch:
    """What a loader yields; every tensor is on the loader's device.

    Attributes:
        images: N×C×H×W, normalised, in channels_last memory, float32 or float16.
        labels: N, int64.
        valid: N, bool; false on padding rows, which count for nothing.
        ids: N, int64, index of each sample in the manifest.
    """

    images: Tensor
    labels: Tensor
    valid: Tensor
    ids: Tensor


@dataclass(frozen=True)
class View:
    """How a loader looks at images.

    Attributes:
        size: height and width of the images it yields, in pixels.
        training: random crops, flips and order; else centre crops in list order.
        seed: of order, crops and flips.
        scale: smallest part of the area that a random crop may keep.
        half: yield float16 instead of float32.
        channels: what the images shall show: R, G, B, or wavelengths, see `pipelines.spectral`.
    """

    size: int
    training: bool
    seed: int = 0
    scale: float = 0.25
    half: bool = False
    channels: tuple[str, ...] = RGB

    def windows(self, sizes: np.ndarray, positions: np.ndarray, epoch: int) -> crops.Windows:
        """The crop window of each sample."""
        if not self.training:
            return crops.central(sizes)
        return crops.random_resized(sizes, positions, seed=self.seed, epoch=epoch, scale=(self.scale, 1.0))


@dataclass(frozen=True)
class Decoding:
    """How images are decoded; changes the speed and nothing else.

    Attributes:
        threads: CPU threads of this process.
        prefetch: batches decoded ahead.
        hardware_load: part of the images that DALI gives to the GPU's JPEG engine, where it has one; 0 … 1.
    """

    threads: int = 2
    prefetch: int = 3
    hardware_load: float = 0.65


@dataclass(frozen=True)
class Work:
    """One batch still to be decoded: which samples, and what to cut from each."""

    share: sharding.Share
    windows: crops.Windows


class Loader(ABC):
    """Iterates over the rest of the current epoch, then stands at the start of the next.

    Args:
        samples: scanned images with labels and sizes.
        view: size, augmentation, precision.
        batch_size: images per rank and batch.
        device: where batches are wanted.
        rank, world: this process's place among all.
        decoding: threads and prefetching.
    """

    def __init__(
        self,
        samples: Samples,
        view: View,
        batch_size: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        decoding: Decoding | None = None,
    ) -> None:
        self.samples, self.view, self.batch_size, self.device = samples, view, batch_size, device
        self.rank, self.world = rank, world
        self.decoding = decoding or Decoding()
        self.epoch = 0
        self.position = 0  # samples of this epoch that all ranks together have been given

    @abstractmethod
    def _decode(self, work: Iterator[Work]) -> Iterator[Tensor]:
        """Turn each piece of work into images as `Batch` wants them, in order, with the channels R, G, B."""

    def __len__(self) -> int:
        """Batches left in this epoch, the same on every rank."""
        return sharding.batches_left(len(self.samples), self.position, self.batch_size * self.world)

    def __iter__(self) -> Iterator[Batch]:
        labels = torch.from_numpy(self.samples.labels)
        shares = list(self._shares())
        work = (Work(share, self._windows(share)) for share in shares)
        for share, images in zip(shares, self._decode(work), strict=True):
            # Advance before yielding: a checkpoint written while the caller holds this batch counts it.
            self.position += self.batch_size * self.world
            ids = torch.from_numpy(share.ids)
            rows = [t.to(self.device) for t in (labels[ids], torch.from_numpy(share.valid), ids)]
            yield Batch(self._mixed(images), *rows)
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int | str]:
        """Where the loader stands, independent of world size and batch size."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.view.seed,
            "fingerprint": self.samples.fingerprint,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue where another loader over the same data stood.

        Raises:
            DataError: the state belongs to other data or another seed.
        """
        mine = self.state_dict()
        for key in ("fingerprint", "seed"):
            if state[key] != mine[key]:
                raise DataError(
                    f"cannot resume: the checkpoint was made with data {key} {state[key]}, "
                    f"this run has {mine[key]}; choose another --run-dir"
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _shares(self) -> Iterator[sharding.Share]:
        order = sharding.epoch_order(
            len(self.samples), shuffle=self.view.training, seed=self.view.seed, epoch=self.epoch
        )
        global_batch = self.batch_size * self.world
        for batch in range(len(self)):
            yield sharding.share(order, self.position + batch * global_batch, self.rank, self.batch_size)

    def _mixed(self, images: Tensor) -> Tensor:
        """Images with the channels that the view wants."""
        return images if self.view.channels == RGB else spectral.mix(images, spectral.weights(self.view.channels))

    def _windows(self, share: sharding.Share) -> crops.Windows:
        return self.view.windows(self.samples.sizes[share.ids], share.positions, self.epoch)


def normalise(pixels: Tensor, half: bool) -> Tensor:
    """N×S×S×3 pixels, 0 … 255, as `Batch` wants images."""
    scale, shift = normalisation(pixels.shape[1], pixels.device)
    images = torch.addcmul(shift, pixels, scale).permute(0, 3, 1, 2)
    return images.half() if half else images


def normalisation(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift that normalise pixels of 0 … 255, each size×size×3.

    Stretched to a whole image, since arithmetic that repeats every three numbers is not vectorised.
    """
    scale = [1 / (255 * std) for std in IMAGENET_STD]
    shift = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return tuple(torch.tensor(v, device=device).expand(size, size, 3).contiguous() for v in (scale, shift))
