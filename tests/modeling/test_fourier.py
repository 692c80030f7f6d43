import pytest
import torch

from modeling import ChannelConv2d, ChannelSet
from modeling.fourier import FourierCode

RGB = ("R", "G", "B")
WAVELENGTHS = {"R": 0.665, "G": 0.56, "B": 0.49}


def test_codes_are_of_unit_norm_and_tell_every_quantity_apart():
    code = FourierCode({"a": (0.5, 10), "b": (0.5, 20), "c": (0.7, 10)})
    code.add("d", (0.7, 40))
    codes = code(ChannelSet(tuple("abcd")))
    assert torch.allclose(codes @ codes.T, torch.eye(4, dtype=codes.dtype), atol=0.3)
    assert torch.allclose(codes.norm(dim=1), torch.ones(4, dtype=codes.dtype))


@pytest.mark.parametrize(
    ("descriptors", "reason"),
    [
        ({"R": 0.6, "G": 0.5}, "given for R, G, the vocabulary is RGB"),
        ({**WAVELENGTHS, "nir": 0.84}, "vocabulary is RGB.*describe"),
        ({**WAVELENGTHS, "G": float("nan")}, "'G' is nan; give finite"),
        ({**WAVELENGTHS, "G": "green"}, "'G' is 'green'; give finite"),
        ({**WAVELENGTHS, "G": (0.5, 1)}, "'G' has length 2, not 1"),
        ({**WAVELENGTHS, "R": ()}, r"'R' is \(\); give finite"),
        ({**WAVELENGTHS, "R": None}, "'R' is None; give finite"),
        ({**WAVELENGTHS, "R": 0.49}, "'R' and 'B' are both described by 0.49"),
        ([0.665, 0.56, 0.49], "given by name"),
    ],
)
def test_bad_descriptors_are_refused(descriptors, reason):
    with pytest.raises(ValueError, match=reason):
        ChannelConv2d("RGB", 4, 3, descriptors=descriptors)


def test_descriptors_may_be_tensors():
    tensors = {name: torch.tensor(wavelength) for name, wavelength in WAVELENGTHS.items()}
    assert torch.allclose(
        FourierCode(tensors)(ChannelSet(RGB)), FourierCode(WAVELENGTHS)(ChannelSet(RGB)), atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codes_do_not_depend_on_defaults(dtype):
    wanted = FourierCode(WAVELENGTHS)(ChannelSet(RGB))
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            found = FourierCode(WAVELENGTHS)(ChannelSet(RGB))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)


def test_frequencies_are_what_they_were():
    """They are not saved: were they others tomorrow, trained weights would mean other kernels."""
    frequencies = FourierCode({"a": 1.0, "b": 2.0, "c": 4.0, "d": 5.0, "e": 9.0}).frequencies.flatten()
    wanted = [-0.024893, 0.060123, 0.487783, -0.460511]
    assert torch.allclose(frequencies[: len(wanted)], torch.tensor(wanted, dtype=torch.float64), atol=1e-6)
    assert frequencies.abs().max() <= 0.5  # cycles in the median gap, which is 1: not the smallest of all, nor 4
