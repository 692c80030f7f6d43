"""The portable loader: the DALI loader's contract on torchvision, where DALI does not run.

Slower, and the oracle that tests hold the DALI loader against: same order, same windows, and pixels equal
up to rounding.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, Loader, Work
from pipelines.samples import Samples, changed_after_scan

_AHEAD = 2  # batches decoded ahead


class PortableLoader(Loader):
    """Decodes with torchvision on CPU threads (which run side by side: decoding releases the GIL).

    Raises:
        DataError: a file cannot be decoded; the message names it.
    """

    def _decode(self, work: Iterator[Work]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(self.threads) as pool:
            ahead: deque[list[Future[Tensor]]] = deque()
            for piece in work:
                ahead.append([pool.submit(self._one, piece, row) for row in range(self.batch_size)])
                if len(ahead) > _AHEAD:
                    yield self._finish(ahead.popleft())
            while ahead:
                yield self._finish(ahead.popleft())

    def _one(self, piece: Work, row: int) -> Tensor:
        """One image: decode, cut, resize, flip; 3×H×W uint8."""
        image = decode(self.samples, piece.share.ids[row])
        (left, top), (width, height) = piece.windows.anchor[row], piece.windows.shape[row]
        size = [self.view.size, self.view.size]
        image = F.resized_crop(image, int(top), int(left), int(height), int(width), size, antialias=True)
        return image.flip(-1) if piece.windows.flip[row] else image

    def _finish(self, images: list[Future[Tensor]]) -> Tensor:
        batch = torch.stack([image.result() for image in images]).to(self.device)
        batch = batch.to(torch.float32).contiguous(memory_format=torch.channels_last)
        batch = (batch - _per_channel(255 * np.array(IMAGENET_MEAN), batch)) / _per_channel(
            255 * np.array(IMAGENET_STD), batch
        )
        return batch.half() if self.view.half else batch


def decode(samples: Samples, i: int) -> Tensor:
    """The i-th image, upright, 3×H×W uint8 RGB.

    Raises:
        DataError: it cannot be read or decoded.
    """
    data = torch.from_numpy(samples.read(i))
    try:
        return decode_image(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise changed_after_scan(samples.files[i], " ".join(str(error).split())[:160]) from error


def _per_channel(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
