"""How modules keep to their precision under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def uncast(device: torch.device) -> AbstractContextManager:
    """Within it, autocast is off; devices that have none, like `meta`, go without."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device) else nullcontext()


def like(weight: Tensor, x: Tensor) -> Tensor:
    """A generated weight in the precision of the input, or as it is under autocast, which casts by itself."""
    cast = _has_autocast(x.device) and torch.is_autocast_enabled(x.device.type)
    return weight if cast else weight.to(x.dtype)


def _has_autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type)
