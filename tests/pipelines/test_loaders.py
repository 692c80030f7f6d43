"""Both loaders against one contract, and against each other."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import picture, write_images
from PIL import Image
from torch.nn import functional as F

from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, View, Work, normalise
from pipelines.build import build_loader
from pipelines.errors import DataError
from pipelines.integrity import scan
from pipelines.manifest import read_manifest
from pipelines.resident import ROOM, ResidentLoader, cut_together, free_bytes, resident_bytes, triangle_filters

CPU = torch.device("cpu")
LOADERS = ["dali", "portable", "resident"]


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


def grey_levels(a, b):
    return (a.float() - b.float()).abs() * 255 * min(IMAGENET_STD)


@pytest.mark.parametrize("training", [True, False])
def test_dali_and_torchvision_give_the_same_pixels(samples, training):
    both = [list(make(name, samples, training)) for name in ("dali", "portable")]
    for ours, oracle in zip(*both, strict=True):
        assert (ours.ids == oracle.ids).all()
        difference = grey_levels(ours.images, oracle.images)
        assert difference.mean() < 0.5  # torchvision rounds after resizing, DALI does not
        assert difference.max() < 4


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_decoding_once_changes_no_pixel(samples, training, half):
    both = [list(make(name, samples, training, half=half)) for name in ("resident", "portable")]
    for ours, oracle in zip(*both, strict=True):
        assert torch.equal(ours.ids, oracle.ids)
        assert torch.allclose(ours.images, oracle.images, atol=1e-6)


@pytest.mark.parametrize("size", [16, 32, 45, 100])
def test_resizing_by_matrices_equals_resizing_singly(samples, size):
    """The resident loader's way on a GPU, against its way on a CPU; it too leaves the rounding out."""
    loader = make("resident", samples, batch_size=29)
    loader.view = View(size=size, training=True, seed=3)
    work = next(Work(share, loader._windows(share)) for share in loader._shares())
    together = normalise(cut_together(loader._pixels, work, size), half=False)
    singly = next(iter(loader)).images
    assert together.shape == singly.shape
    assert together.is_contiguous(memory_format=torch.channels_last)
    assert grey_levels(together, singly).max() < 1.1  # each of the kernel's two passes rounds


@settings(deadline=None)
@given(length=st.integers(1, 90), size=st.integers(1, 64), spare=st.integers(0, 9))
def test_triangle_filters_are_those_of_pytorch(length, size, spare):
    """The filters applied to every unit vector in turn."""
    filters = triangle_filters(torch.tensor([length]), size, length + spare)[0]
    ours = filters[:, :length].T
    units = torch.eye(length)[:, None, None]
    wanted = F.interpolate(units, size=(1, size), mode="bilinear", antialias=True)[:, 0, 0]
    assert torch.allclose(ours, wanted, atol=1e-5)
    assert not filters[:, length:].any()


def test_resident_is_chosen_where_it_fits_and_pays(samples, monkeypatch):
    view = View(size=32, training=True)

    def chosen(passes):
        return build_loader("auto", samples, view, 4, CPU, passes=passes)

    loader, reason = chosen(passes=2)
    assert isinstance(loader, ResidentLoader)
    assert "GB of decoded images fit into CPU memory" in reason
    assert not isinstance(chosen(passes=1)[0], ResidentLoader)
    monkeypatch.setattr("pipelines.build.free_bytes", lambda device: resident_bytes(samples) / ROOM - 1)
    loader, reason = chosen(passes=2)
    assert not isinstance(loader, ResidentLoader)
    assert "do not fit" in reason


def test_free_memory_heeds_the_machine_and_its_ranks(monkeypatch):
    alone = free_bytes(CPU)
    assert 0 < alone < 2**50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(CPU) < alone / 3


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
    dali, oracle = (
        next(iter(make(name, samples, training=False, batch_size=2))).images for name in ("dali", "portable")
    )
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
