"""Both loaders against one contract, and against each other."""

import io

import numpy as np
import pytest
import torch
from images import picture, write_images
from PIL import Image

from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, View
from pipelines.build import build_loader
from pipelines.errors import DataError
from pipelines.integrity import scan
from pipelines.manifest import read_manifest

CPU = torch.device("cpu")
LOADERS = ["dali", "portable"]


@pytest.fixture
def samples(tmp_path):
    return scan(read_manifest(write_images(tmp_path / "data", 29) / "train.txt"))


def make(name, samples, training=True, batch_size=8, rank=0, world=1, **view):
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    view = View(size=32, training=training, **view)
    return build_loader(name, samples, view, batch_size, CPU, rank, world)[0]


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("half", [False, True])
def test_batches_keep_the_contract(name, samples, half):
    loader = make(name, samples, half=half)
    batches = list(loader)
    assert len(batches) == 4
    for batch in batches:
        assert batch.images.shape == (8, 3, 32, 32)
        assert batch.images.dtype == (torch.float16 if half else torch.float32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.labels.dtype, batch.valid.dtype, batch.ids.dtype) == (torch.int64, torch.bool, torch.int64)
        assert (batch.labels == torch.from_numpy(samples.labels)[batch.ids]).all()
    assert sum(int(batch.valid.sum()) for batch in batches) == 29
    assert batches[-1].valid.tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize("training", [True, False])
def test_dali_and_torchvision_give_the_same_pixels(samples, training):
    both = [list(make(name, samples, training)) for name in LOADERS]
    for ours, oracle in zip(*both, strict=True):
        assert (ours.ids == oracle.ids).all()
        difference = (ours.images - oracle.images).abs() * 255 * min(IMAGENET_STD)
        assert difference.mean() < 0.5  # of 255 grey levels: torchvision rounds after resizing, DALI does not
        assert difference.max() < 4


@pytest.mark.parametrize("name", LOADERS)
def test_batches_may_be_kept(name, samples):
    loader = make(name, samples)
    kept = [(batch, batch.images.clone()) for batch in loader]
    assert len(kept) == 4
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_once_on_any_world_size(name, samples, world):
    loaders = [make(name, samples, batch_size=4, rank=rank, world=world) for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1
    seen = [i for loader in loaders for batch in loader for i in batch.ids[batch.valid].tolist()]
    assert sorted(seen) == list(range(29))


@pytest.mark.parametrize("name", LOADERS)
def test_epochs_differ_in_order_and_crops(name, samples):
    loader = make(name, samples)
    first, second = (torch.cat([b.ids for b in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    assert loader.epoch == 2
    whole = list(make(name, samples, scale=1.0))
    assert not torch.allclose(whole[0].images, next(iter(make(name, samples))).images)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("world_after", [1, 2])
def test_resume_in_mid_epoch_on_any_world_size(name, samples, world_after):
    through = make(name, samples)
    iterator = iter(through)
    next(iterator), next(iterator)
    state = through.state_dict()
    rest = list(iterator)
    size = 8 // world_after
    ranks = [make(name, samples, batch_size=size, rank=rank, world=world_after) for rank in range(world_after)]
    for loader in ranks:
        loader.load_state_dict(state)
    parts = [list(loader) for loader in ranks]
    for i, wanted in enumerate(rest):
        assert torch.equal(torch.cat([part[i].ids for part in parts]), wanted.ids)
        assert torch.equal(torch.cat([part[i].images for part in parts]), wanted.images)
    # and the epoch after is the uninterrupted run's
    assert torch.equal(torch.cat([next(iter(loader)).ids for loader in ranks]), next(iter(through)).ids)


def test_state_of_other_data_is_refused(samples, tmp_path):
    other = scan(read_manifest(write_images(tmp_path / "other", 29, seed=1) / "train.txt"))
    with pytest.raises(DataError, match="data fingerprint"):
        make("portable", other).load_state_dict(make("portable", samples).state_dict())


@pytest.mark.parametrize("name", LOADERS)
def test_file_that_vanishes_after_the_scan_is_named(name, samples):
    from pathlib import Path

    Path(samples.files[17]).unlink()
    with pytest.raises(DataError, match=r"train_0017\.JPEG.*--resume"):
        list(make(name, samples, training=False))


@pytest.mark.parametrize("name", LOADERS)
def test_odd_files_decode_to_upright_rgb(name, tmp_path):
    """A gradient, red to the right and green downwards, stored in many ways, must look the same in all."""
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 128, np.uint8)], 2
    )
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter, so stored turned the other way
    stored = {
        "plain": (upright, "JPEG", {}),
        "turned": (upright.rotate(90, expand=True), "JPEG", {"exif": exif}),
        "png": (upright.convert("RGBA"), "PNG", {}),
    }
    (tmp_path / "images").mkdir()
    for kind, (image, form, options) in stored.items():
        image.save(tmp_path / f"images/{kind}.JPEG", form, **options)
    (tmp_path / "train.txt").write_text("".join(f"images/{kind}.JPEG 0\n" for kind in stored))
    (batch,) = make(name, scan(read_manifest(tmp_path / "train.txt")), training=False, batch_size=3)
    shown = batch.images * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(
        1, 3, 1, 1
    )
    assert (shown - shown[:1]).abs().max() < 0.05
    assert shown[0, 0, 16, -1] > 0.8 > 0.2 > shown[0, 0, 16, 0]
    assert shown[0, 1, -1, 16] > 0.8 > 0.2 > shown[0, 1, 0, 16]


def test_gray_and_cmyk_decode_alike_in_both(tmp_path):
    pytest.importorskip("nvidia.dali")
    (tmp_path / "images").mkdir()
    for mode in ("L", "CMYK"):
        picture(0, 50, 50).convert(mode).save(tmp_path / f"images/{mode}.JPEG", quality=95)
    (tmp_path / "train.txt").write_text("images/L.JPEG 0\nimages/CMYK.JPEG 1\n")
    samples = scan(read_manifest(tmp_path / "train.txt"))
    dali, oracle = (next(iter(make(name, samples, training=False, batch_size=2))).images for name in LOADERS)
    assert (dali - oracle).abs().mean() < 0.05


def test_dali_missing_is_said(samples, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pipelines.dali", None)
    view = View(size=32, training=False)
    assert "DALI is not installed" in build_loader("auto", samples, view, 4, CPU)[1]
    with pytest.raises(DataError, match=r"--data\.loader portable"):
        build_loader("dali", samples, view, 4, CPU)


def test_pictures_of_the_fixture_are_real_jpegs(samples):
    from pathlib import Path

    assert all(Image.open(io.BytesIO(Path(file).read_bytes())).format == "JPEG" for file in samples.files[:3])
