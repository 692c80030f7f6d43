"""The resident loader: decodes every image once, keeps the pixels on the device, and cuts the batches there.

For data sets that fit. Decoding is most of a loader's work; without it a loader is many times faster, and the
processor is free for the training. Order and windows are those of the other loaders.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.batch import Loader, View, Work, normalisation, normalise
from pipelines.portable import decode, resize
from pipelines.progress import track
from pipelines.samples import Samples

ROOM = 0.25  # part of the device's free memory that one split may take; the training needs the rest
_GATHER = 2**24  # source pixels that a GPU batch may gather at once; 400 MB with indices and float32


@dataclass(frozen=True)
class Pixels:
    """All images of a split, one after the other.

    Attributes:
        flat: (P, 3) uint8 RGB, row by row, image by image, on the device.
        starts: (N,) int64, first pixel of each image, on the CPU.
        sizes: (N, 2) int32, width and height.
    """

    flat: Tensor
    starts: np.ndarray
    sizes: np.ndarray

    def window(self, i: int, left: int, top: int, width: int, height: int) -> Tensor:
        """A part of the i-th image, 1×3×height×width, a view."""
        stride = 3 * int(self.sizes[i, 0])
        start = 3 * (int(self.starts[i]) + left) + stride * top
        # One call instead of five for slices and axes: on a CPU these calls are a good part of the work. The first
        # stride says that this is channels_last; PyTorch resizes anything else at half the speed.
        return self.flat.as_strided((1, 3, height, width), (stride * height, 1, stride, 3), start)


class ResidentLoader(Loader):
    """Keeps decoded images on the device; see the module.

    Raises:
        DataError: a file cannot be decoded; the message names it.
    """

    def _decode(self, work: Iterator[Work]) -> Iterator[Tensor]:
        if self.device.type == "cuda":
            for piece in work:
                yield normalise(cut_together(self._pixels, piece, self.view.size), self.view.half)
            return
        with ThreadPoolExecutor(self.decoding.threads) as pool:
            for piece in work:
                yield cut_singly(self._pixels, piece, self.view, pool, self.decoding.threads)

    @cached_property
    def _pixels(self) -> Pixels:
        return load_pixels(self.samples, self.device, self.decoding.threads, quiet=self.rank > 0)


def load_pixels(samples: Samples, device: torch.device, threads: int, *, quiet: bool = False) -> Pixels:
    """Decode all samples into the memory of a device."""
    areas = samples.sizes.astype(np.int64).prod(1)
    starts = np.concatenate([[0], np.cumsum(areas)[:-1]])
    flat = torch.empty(int(areas.sum()), 3, dtype=torch.uint8, device=device)
    pixels = Pixels(flat, starts, samples.sizes)

    def load(i: int) -> None:
        pixels.window(i, 0, 0, *samples.sizes[i].tolist()).copy_(decode(samples, i))

    with ThreadPoolExecutor(threads) as pool:  # decoding releases the GIL
        for _ in track(pool.map(load, range(len(samples))), len(samples), "decoding once", quiet=quiet):
            pass
    return pixels


def cut_singly(pixels: Pixels, piece: Work, view: View, pool: ThreadPoolExecutor, threads: int) -> Tensor:
    """Crop, flip, resize and normalise image by image on CPU threads, each while it is in the cache.

    Returns:
        Images as `Batch` wants them.
    """
    ids, windows = piece.share.ids, piece.windows
    images = torch.empty(len(ids), view.size, view.size, 3, dtype=torch.float16 if view.half else torch.float32)
    scale, shift = normalisation(view.size, pixels.flat.device)

    def cut(rows: slice) -> None:
        columns = (images[rows], ids[rows], windows.anchor[rows], windows.shape[rows], windows.flip[rows])
        for out, i, anchor, shape, flip in zip(*columns, strict=True):
            window = pixels.window(i, *anchor.tolist(), *shape.tolist())
            torch.addcmul(shift, resize(window, flip, view.size)[0].permute(1, 2, 0), scale, out=out)

    step = -(-len(ids) // threads)
    list(pool.map(cut, [slice(k, k + step) for k in range(0, len(ids), step)]))
    return images.permute(0, 3, 1, 2)


def cut_together(pixels: Pixels, piece: Work, size: int) -> Tensor:
    """Crop, resize and flip a whole batch in few large operations: the fastest on a GPU.

    Resizing along an axis is a product with a matrix of triangle filters, one for each image, whose rows stand
    in reverse order where the image is flipped.

    Returns:
        N×size×size×3 float32, 0 … 255.
    """
    device, windows = pixels.flat.device, piece.windows
    ids = piece.share.ids
    anchor, shape, flip, width = (
        torch.from_numpy(a).to(device, non_blocking=True)
        for a in (windows.anchor, windows.shape, windows.flip, pixels.sizes[ids, 0].astype(np.int64))
    )
    starts = torch.from_numpy(pixels.starts[ids]).to(device, non_blocking=True)
    reach = windows.shape.max(0).tolist()
    rows = max(1, _GATHER // (reach[0] * reach[1]))
    parts = [
        _resize(_gather(pixels.flat, s, w, a, z, reach), z, f, size)
        for s, w, a, z, f in zip(*(t.split(rows) for t in (starts, width, anchor, shape, flip)), strict=True)
    ]
    return torch.cat(parts)


def _gather(
    flat: Tensor, starts: Tensor, width: Tensor, anchor: Tensor, shape: Tensor, reach: list[int]
) -> Tensor:
    """Windows of different sizes in one N×H×W×3 tensor; beyond a window stand repetitions of its border."""
    x, y = (
        anchor[:, k, None] + torch.arange(reach[k], device=flat.device).minimum(shape[:, k, None] - 1)
        for k in (0, 1)
    )
    index = starts[:, None, None] + y[:, :, None] * width[:, None, None] + x[:, None, :]
    return flat[index]


def _resize(windows: Tensor, shape: Tensor, flip: Tensor, size: int) -> Tensor:
    count, height, width, channels = windows.shape
    across = triangle_filters(shape[:, 0], size, width)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    down = triangle_filters(shape[:, 1], size, height)
    squat = down @ windows.view(count, height, width * channels).float()
    squat = squat.view(count, size, width, channels).transpose(1, 2).reshape(count, width, size * channels)
    return (across @ squat).view(count, size, size, channels).transpose(1, 2).contiguous()


def triangle_filters(length: Tensor, size: int, reach: int) -> Tensor:
    """Weights that resize `length` pixels to `size`, as PyTorch's antialiased bilinear interpolation has them.

    Args:
        length: (N,) pixels of each window.
        size: pixels wanted.
        reach: columns; ≥ every length, those beyond a length get weight 0.

    Returns:
        N×size×reach float32, rows sum to 1.
    """
    at = torch.arange(reach, device=length.device) + 0.5
    scale = (length / size)[:, None, None]
    centre = scale * (torch.arange(size, device=length.device) + 0.5)[:, None]
    weights = (1 - (at - centre).abs() / scale.clamp(min=1)).clamp(min=0) * (at < length[:, None, None])
    return weights / weights.sum(2, keepdim=True)


# --- does it fit? ----------------------------------------------------------------------------------------


def resident_bytes(samples: Samples) -> int:
    """Memory that the decoded images take."""
    return 3 * int(samples.sizes.astype(np.int64).prod(1).sum())


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of this machine divided by the processes that share it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_available(), _left_in_group()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _available() -> int:
    """What the kernel could give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _left_in_group() -> int:
    """What the control group still allows: containers and batch systems limit memory this way."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no group, or "max"
        return 2**63
