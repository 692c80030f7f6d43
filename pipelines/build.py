"""Picks a loader and says why."""

from typing import Literal

import torch

from pipelines.batch import Decoding, Loader, View
from pipelines.errors import DataError
from pipelines.portable import PortableLoader
from pipelines.resident import ROOM, ResidentLoader, free_bytes, resident_bytes
from pipelines.samples import Samples

LoaderName = Literal["auto", "dali", "portable", "resident"]


def build_loader(
    name: LoaderName,
    samples: Samples,
    view: View,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    decoding: Decoding | None = None,
    *,
    passes: int = 1,
) -> tuple[Loader, str]:
    """Build the named loader, or for "auto" the fastest that runs here.

    Args:
        name: which loader.
        samples, view, batch_size, device, rank, world, decoding: see `Loader`.
        passes: how often the samples will be gone through; decoding once pays from the second on.

    Returns:
        The loader, and one line that says which it is and why.

    Raises:
        DataError: DALI was asked for by name and is not installed.
    """
    kind, reason = _choose(name, samples, device, passes)
    return kind(samples, view, batch_size, device, rank, world, decoding), reason


def _choose(name: LoaderName, samples: Samples, device: torch.device, passes: int) -> tuple[type[Loader], str]:
    place = "GPU" if device.type == "cuda" else "CPU"
    if name == "portable":
        return PortableLoader, "portable loader (torchvision on CPU threads), as asked"
    need, room = resident_bytes(samples), ROOM * free_bytes(device)
    size = f"{need / 1e9:.2g} GB of decoded images"
    if name == "resident":
        return ResidentLoader, f"resident loader, as asked: {size} in {place} memory"
    if name == "auto" and passes > 1 and need <= room:
        return ResidentLoader, f"resident loader: {size} fit into {place} memory, so each image is decoded once"
    why_not = f"; {size} do not fit into {room / 1e9:.2g} GB of {place} memory" if passes > 1 else ""
    try:
        from pipelines.dali import DaliLoader
    except ImportError as error:
        if name == "dali":
            raise DataError(f"DALI is not installed ({error}); use --data.loader portable") from None
        return PortableLoader, f"portable loader (torchvision): DALI is not installed here{why_not}"
    return DaliLoader, f"DALI loader, decoding on the {place}{', as asked' if name == 'dali' else why_not}"
