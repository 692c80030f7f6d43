"""Which rank reads which sample, when: pure arithmetic over sample positions.

An epoch is one permutation of the samples, the same on every rank and for every world size. Positions
0 … N - 1 of it are dealt out in global batches of `world * batch_size`; rank r takes the r-th slice of each.
The last global batch is filled up with samples from the start of the order, marked not valid, so that every
rank gets the same number of batches and each sample counts exactly once.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """One rank's part of one global batch; arrays of shape (batch_size,).

    Attributes:
        ids: sample indices into the manifest, int64.
        positions: where in the epoch's order each stands, int64; beyond N - 1 on padding rows.
        valid: false on padding rows.
    """

    ids: np.ndarray
    positions: np.ndarray
    valid: np.ndarray


def epoch_order(samples: int, *, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """Sample indices in the order in which an epoch visits them, int64, shape (samples,)."""
    if not shuffle:
        return np.arange(samples, dtype=np.int64)
    return np.random.default_rng([seed, epoch]).permutation(samples)


def batches_left(samples: int, position: int, global_batch: int) -> int:
    """How many global batches an epoch still has after its first `position` samples."""
    return max(0, -(-(samples - position) // global_batch))


def share(order: np.ndarray, position: int, rank: int, batch_size: int) -> Share:
    """What `rank` reads of the global batch whose first sample stands at `position`."""
    positions = position + rank * batch_size + np.arange(batch_size)
    return Share(order[positions % len(order)], positions, positions < len(order))
