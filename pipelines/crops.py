"""Where to crop and whether to flip, decided here and nowhere else.

Randomness is a pure function of (seed, epoch, position in the epoch), so every loader cuts the same windows,
on any world size and after any resume; the loaders only carry them out.
"""

from dataclasses import dataclass

import numpy as np

ATTEMPTS = 10  # torchvision's RandomResizedCrop tries as often before it falls back to the centre
_DRAWS = 2 * ATTEMPTS + 3  # per sample: area and aspect for each attempt, then x, y, flip
_BLOCK = 1024  # positions drawn from one generator


@dataclass(frozen=True)
class Windows:
    """Crop windows in pixels of the upright image (EXIF orientation applied).

    Attributes:
        anchor: (N, 2) int32, left and top.
        shape: (N, 2) int32, width and height, ≥ 1.
        flip: (N,) bool, mirror left to right after cropping.
    """

    anchor: np.ndarray
    shape: np.ndarray
    flip: np.ndarray


def random_resized(
    sizes: np.ndarray,
    positions: np.ndarray,
    *,
    seed: int,
    epoch: int,
    scale: tuple[float, float] = (0.25, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Windows:
    """Windows of random area and aspect, the distribution of torchvision's `RandomResizedCrop`.

    Args:
        sizes: (N, 2) width and height of each image.
        positions: (N,) position of each sample in the epoch.
        seed, epoch: with the position, all that the draw depends on.
        scale: range of the window's area as a part of the image's.
        ratio: range of width / height, drawn log-uniformly.
        flip: probability of mirroring.
    """
    u = _uniform(positions, seed, epoch)
    sizes = sizes.astype(np.float64)
    area = sizes.prod(1, keepdims=True) * (scale[0] + (scale[1] - scale[0]) * u[:, :ATTEMPTS])
    aspect = np.exp(np.log(ratio[0]) + np.log(ratio[1] / ratio[0]) * u[:, ATTEMPTS : 2 * ATTEMPTS])
    shapes = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=2).round()
    fits = ((shapes >= 1) & (shapes <= sizes[:, None])).all(2)
    chosen = shapes[np.arange(len(sizes)), fits.argmax(1)]
    shape = np.where(fits.any(1)[:, None], chosen, _largest(sizes, ratio))
    room = sizes - shape + 1
    anchor = np.minimum(np.floor(u[:, -3:-1] * room), room - 1)
    centred = (sizes - shape) // 2
    anchor = np.where(fits.any(1)[:, None], anchor, centred)
    return Windows(anchor.astype(np.int32), shape.astype(np.int32), u[:, -1] < flip)


def central(sizes: np.ndarray, part: float = 0.875) -> Windows:
    """Centred squares whose side is `part` of the short side, not flipped: evaluation's view.

    Cutting first and resizing after is the usual resize-then-centre-crop without its wasted pixels.
    """
    side = np.maximum(1, np.round(sizes.min(1, keepdims=True) * part)).repeat(2, axis=1)
    anchor = (sizes - side) // 2
    return Windows(anchor.astype(np.int32), side.astype(np.int32), np.zeros(len(sizes), dtype=bool))


def _largest(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The largest window of allowed aspect in each image, (N, 2): the fallback after all attempts."""
    width, height = sizes.T
    aspect = np.clip(width / height, *ratio)
    largest = np.stack([np.minimum(width, height * aspect), np.minimum(height, width / aspect)], axis=1)
    return np.maximum(1, largest.round())


def _uniform(positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Uniform draws in [0, 1), shape (N, _DRAWS), the same for a position whoever asks."""
    out = np.empty((len(positions), _DRAWS))
    blocks = positions // _BLOCK
    for block in np.unique(blocks):
        drawn = np.random.default_rng([seed, epoch, int(block)]).random((_BLOCK, _DRAWS))
        rows = blocks == block
        out[rows] = drawn[positions[rows] % _BLOCK]
    return out
