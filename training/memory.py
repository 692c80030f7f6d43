"""How many parts a batch must be worked through in to fit into the memory: found by trying."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.runtime import Runtime


def parts_that_fit(attempt: Callable[[int], None], rows: int, runtime: Runtime) -> int:
    """The smallest of 1, 2, 4, … parts that every rank gets through.

    Args:
        attempt: works through one part of this many rows, and may run out of memory.
        rows: of this rank's share of a batch.
        runtime: the ranks must agree.

    Raises:
        torch.OutOfMemoryError: even two rows are too many.
    """
    parts = 1
    while runtime.any(not _fits(attempt, -(-rows // parts))):
        parts *= 2
        if rows // parts < 2:
            raise torch.OutOfMemoryError(
                f"not even {-(-rows // (parts // 2))} images at a time fit into the memory"
            )
    return parts


def _fits(attempt: Callable[[int], None], rows: int) -> bool:
    try:
        attempt(rows)
    except torch.OutOfMemoryError:
        return False
    return True


class Rehearsed:
    """Around steps that are only tried: afterwards the network is as it was, and what they took is free again.

    Args:
        network: whose statistics and gradients the steps change.
        spare: times the weights that are held back meanwhile, for the optimizer's state.
    """

    def __init__(self, network: nn.Module, spare: int = 2) -> None:
        self.network, self.spare = network, spare
        self._held: list[Tensor] = []

    def __enter__(self) -> None:
        self._buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        self._held = [torch.empty_like(weight) for weight in self.network.parameters() for _ in range(self.spare)]

    def __exit__(self, *_: object) -> None:
        for name, buffer in self.network.named_buffers():
            buffer.copy_(self._buffers[name])
        self.network.zero_grad(set_to_none=True)
        self._held, self._buffers = [], {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
