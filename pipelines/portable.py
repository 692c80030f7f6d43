"""The portable loader: the DALI loader's contract on torchvision, where DALI does not run.

Slower, and the oracle that tests hold the DALI loader against: same order, same windows, and pixels equal
up to rounding.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image

from pipelines.batch import Loader, Work, normalise
from pipelines.samples import Samples, changed_after_scan


class PortableLoader(Loader):
    """Decodes with torchvision on CPU threads (which run side by side: decoding releases the GIL).

    Raises:
        DataError: a file cannot be decoded; the message names it.
    """

    def _decode(self, work: Iterator[Work]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(self.decoding.threads) as pool:
            ahead: deque[list[Future[Tensor]]] = deque()
            for piece in work:
                ahead.append([pool.submit(self._one, piece, row) for row in range(self.batch_size)])
                if len(ahead) > self.decoding.prefetch:
                    yield self._finish(ahead.popleft())
            while ahead:
                yield self._finish(ahead.popleft())

    def _one(self, piece: Work, row: int) -> Tensor:
        """One image: decode, cut, flip, resize; 1×3×size×size uint8."""
        image = decode(self.samples, piece.share.ids[row])
        (left, top), (width, height) = piece.windows.anchor[row], piece.windows.shape[row]
        window = image[None, :, top : top + height, left : left + width]
        return resize(window, piece.windows.flip[row], self.view.size)

    def _finish(self, images: list[Future[Tensor]]) -> Tensor:
        batch = torch.cat([image.result() for image in images]).to(self.device)
        return normalise(batch.permute(0, 2, 3, 1).contiguous(), self.view.half)


def decode(samples: Samples, i: int) -> Tensor:
    """The i-th image, upright, 3×H×W uint8 RGB.

    Raises:
        DataError: it cannot be read or decoded.
    """
    data = torch.from_numpy(samples.read(i))
    try:
        return decode_image(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise changed_after_scan(samples.name(i), " ".join(str(error).split())[:160]) from error


def resize(window: Tensor, flip: bool, size: int) -> Tensor:
    """A window, 1×3×H×W uint8, flipped if so wanted and resized with antialiasing to size×size."""
    window = window.flip(3) if flip else window
    return F.interpolate(window, size=(size, size), mode="bilinear", antialias=True)
