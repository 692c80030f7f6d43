"""Picks a loader and says why."""

from typing import Literal

import torch

from pipelines.batch import Loader, View
from pipelines.errors import DataError
from pipelines.samples import Samples

LoaderName = Literal["auto", "dali", "portable"]


def build_loader(
    name: LoaderName,
    samples: Samples,
    view: View,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    *,
    threads: int = 2,
) -> tuple[Loader, str]:
    """Build the named loader, or for "auto" the best that runs here.

    Returns:
        The loader, and one line that says which it is and why.

    Raises:
        DataError: DALI was asked for by name and is not installed.
    """
    args = (samples, view, batch_size, device, rank, world)
    place = "GPU" if device.type == "cuda" else "CPU"
    if name == "portable":
        from pipelines.portable import PortableLoader

        return PortableLoader(*args, threads=threads), "portable loader (torchvision on CPU threads), as asked"
    try:
        from pipelines.dali import DaliLoader
    except ImportError as error:
        if name == "dali":
            raise DataError(f"DALI is not installed ({error}); use --data.loader portable") from None
        from pipelines.portable import PortableLoader

        return PortableLoader(*args, threads=threads), "portable loader (torchvision): DALI is not installed here"
    return DaliLoader(*args, threads=threads), f"DALI loader, decoding on the {place}"
