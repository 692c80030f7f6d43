"""Synthetic bands: fixed mixtures of an image's colours."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines import spectral
from pipelines.batch import View
from pipelines.build import build_loader
from pipelines.integrity import scan
from pipelines.manifest import read_split

BANDS = ("450", "500", "550", "600", "650")


@given(st.floats(400, 700), st.permutations(["R", "G", "B"]))
def test_weights_are_means(length, colours):
    rows = spectral.weights([str(length), *colours])
    assert (rows >= 0).all()
    assert torch.allclose(rows.sum(1), torch.ones(4))
    assert rows[1:].argmax(1).tolist() == ["RGB".index(colour) for colour in colours]
    assert (rows[1:] == rows[1:].round()).all()  # a colour is itself


def test_each_band_is_most_like_the_colour_next_to_it():
    assert spectral.weights(["465", "540", "610"]).argmax(1).tolist() == [2, 1, 0]
    red = spectral.weights([str(length) for length in range(400, 701, 10)])[:, 0]
    assert (red.diff() >= 0).all()


def test_known_mixture():
    """Half-way between green and red, 575 nm, both count alike; blue is 110 nm away: exp(-110²/3200) = 0.023."""
    red, green, blue = spectral.weights(["575"])[0].tolist()
    assert red == pytest.approx(green, abs=1e-6)
    assert blue / red == pytest.approx(0.02280 / 0.68194, rel=1e-3)


@pytest.mark.parametrize("name", ["X", "399", "701", "nan", "inf", "-500", ""])
def test_what_images_cannot_give(name):
    with pytest.raises(ValueError, match=r"images give no channel .*name R, G, B, or a wavelength"):
        spectral.weights(["R", name])


@pytest.mark.parametrize("name", ["portable", "dali", "resident"])
@pytest.mark.parametrize("training", [True, False])
def test_every_loader_gives_the_bands_of_its_own_colours(data_dir, name, training):
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    samples = scan(read_split(data_dir, "train"))

    def batches(channels):
        view = View(size=32, training=training, channels=channels)
        return list(build_loader(name, samples, view, 8, torch.device("cpu"))[0])

    for colours, bands in zip(batches(("R", "G", "B")), batches((*BANDS, "G")), strict=True):
        assert bands.images.is_contiguous(memory_format=torch.channels_last)
        wanted = torch.einsum("nchw,bc->nbhw", colours.images, spectral.weights((*BANDS, "G")))
        assert torch.allclose(bands.images, wanted, atol=1e-5)
        assert torch.allclose(bands.images[:, -1], colours.images[:, 1], atol=1e-6)
        assert torch.equal(bands.ids, colours.ids)
