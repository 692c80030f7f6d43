"""Synthetic spectral bands: an RGB image as narrow filters at other wavelengths would have shown it.

A channel is R, G or B, or a wavelength in nm such as 530. A band's image is a weighted mean of the three colours:

    x_λ = Σ_c w_c(λ) · x_c,   w_c(λ) ∝ exp(-(λ - λ_c)² / 2σ²),   Σ_c w_c(λ) = 1

with λ_c = 610, 540 and 465 nm for R, G and B and σ = 40 nm, about what cameras have. Bands are mixed from
normalised colours, and colours are strongly correlated, so a band too has about zero mean and unit variance. Any
number of bands holds no more than the image's three colours do; what is new to a network is which mixtures it is
given, and how many.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

COLOURS = {"R": 610.0, "G": 540.0, "B": 465.0}  # nm, where each is most sensitive
WIDTH = 40.0  # nm, σ of all three
SHORTEST, LONGEST = 400.0, 700.0  # nm


def wavelength(channel: str) -> float:
    """Of a channel, in nm.

    Raises:
        ValueError: neither R, G, B nor a wavelength that can be seen.
    """
    try:
        length = COLOURS.get(channel) or float(channel)
    except ValueError:
        length = math.nan
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(
            f"images give no channel {channel!r}; name R, G, B, or a wavelength of "
            f"{SHORTEST:.0f} to {LONGEST:.0f} nm, as in R+G+B or 450+530+610"
        )
    return length


def weights(channels: Sequence[str]) -> Tensor:
    """What each channel takes from R, G and B, C×3 in float32; rows sum to 1.

    Raises:
        ValueError: see `wavelength`.
    """
    return torch.tensor([_weights(channel) for channel in channels])


def mix(images: Tensor, weights: Tensor) -> Tensor:
    """N×3×H×W colours → N×C×H×W channels, in the memory format of the images."""
    return F.conv2d(images, weights.to(images)[:, :, None, None])


def _weights(channel: str) -> list[float]:
    length = wavelength(channel)
    if channel in COLOURS:
        return [float(channel == colour) for colour in COLOURS]
    near = [math.exp(-((length - peak) ** 2) / (2 * WIDTH**2)) for peak in COLOURS.values()]
    return [value / sum(near) for value in near]
