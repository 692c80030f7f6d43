import io
import json
import os
import shutil
from pathlib import Path

import pytest
from images import picture, write_images
from PIL import Image

from pipelines.errors import DataError
from pipelines.integrity import inspect, scan
from pipelines.manifest import read_manifest


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(picture(1, 60, 40), exif=exif)


def with_junk_between_markers(data: bytes) -> bytes:
    """libjpeg passes over bytes between two segments; DALI's own parser does not."""
    tables = data.index(b"\xff\xdb")
    return data[:tables] + b"\x00\x01junk" + data[tables:]


def with_bogus_table_in_the_middle(data: bytes) -> bytes:
    """DALI's decoder stops there and leaves the rest gray without a word; Pillow refuses."""
    middle = len(data) // 2
    return data[:middle] + b"\xff\xc4" + data[middle + 2 :]


PHOTO = jpeg(picture(0, 60, 40))
BAD = {
    "zero bytes": (b"", "zero bytes"),
    "text": (b"this is not an image\n", "not an image"),
    "cut in half": (PHOTO[: len(PHOTO) // 2], "damaged"),
    "head only": (PHOTO[:300], "damaged"),
    "foreign format": (b"GIF89a" + bytes(20), "damaged|not one of|not an image"),
}
GOOD = {
    "jpeg": (PHOTO, (60, 40)),
    "gray": (jpeg(picture(2, 50, 41).convert("L")), (50, 41)),
    "cmyk": (jpeg(picture(3, 50, 42).convert("CMYK")), (50, 42)),
    "upside down": (oriented(3), (60, 40)),
    "on its side": (oriented(6), (40, 60)),
    "on its other side": (oriented(8), (40, 60)),
    "one pixel": (jpeg(picture(4, 1, 1)), (1, 1)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", 12)


def replace_first(folder: Path, data: bytes) -> str:
    name = "images/train_0000.JPEG"
    (folder / name).write_bytes(data)
    return name


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_quarantined_with_a_reason(folder, kind, capfd):
    data, reason = BAD[kind]
    name = replace_first(folder, data)
    samples = scan(read_manifest(folder / "train.txt"), max_bad=0.1)
    assert list(samples.quarantined) == [name]
    assert len(samples) == 11
    assert any(part in samples.quarantined[name] for part in reason.split("|"))
    assert f"quarantined {folder / name}: " in capfd.readouterr().err


@pytest.mark.parametrize("kind", GOOD)
def test_odd_but_sound_files_pass_with_their_upright_size(folder, kind):
    data, size = GOOD[kind]
    replace_first(folder, data)
    samples = scan(read_manifest(folder / "train.txt"))
    assert not samples.quarantined
    assert tuple(samples.sizes[0]) == size


def test_png_and_palette_named_jpeg_pass(folder):
    for i, image in enumerate([picture(5, 50, 40).convert("RGBA"), picture(6, 50, 40).convert("P")]):
        image.save(folder / f"images/train_000{i}.JPEG", "PNG")
    assert not scan(read_manifest(folder / "train.txt")).quarantined


def test_damage_that_dali_would_not_notice(folder):
    dali = pytest.importorskip("pipelines.dali")
    name = replace_first(folder, with_bogus_table_in_the_middle(PHOTO))
    assert not dali.undecodable([str(folder / name)], [1])
    assert "damaged" in scan(read_manifest(folder / "train.txt"), max_bad=0.1).quarantined[name]


def test_file_that_only_dali_refuses(folder):
    pytest.importorskip("nvidia.dali")
    name = replace_first(folder, with_junk_between_markers(PHOTO))
    assert not inspect(str(folder / name)).reason
    reason = scan(read_manifest(folder / "train.txt"), max_bad=0.1).quarantined[name]
    assert reason.startswith("DALI cannot decode it (nvImageCodec failure")


def test_several_culprits_are_all_found(folder):
    pytest.importorskip("nvidia.dali")
    for i in (2, 3, 9):
        (folder / f"images/train_{i:04d}.JPEG").write_bytes(with_junk_between_markers(PHOTO))
    samples = scan(read_manifest(folder / "train.txt"), max_bad=0.5)
    assert list(samples.quarantined) == [f"images/train_{i:04d}.JPEG" for i in (2, 3, 9)]


def test_absent_file(folder):
    (folder / "images/train_0003.JPEG").unlink()
    samples = scan(read_manifest(folder / "train.txt"), max_bad=0.1)
    assert "no such file" in samples.quarantined["images/train_0003.JPEG"]


def test_too_many_bad_files_stop_the_run(folder):
    shutil.rmtree(folder / "images")
    with pytest.raises(
        DataError, match=r"12 of 12 images are unusable.*--data\.root.*train_0000\.JPEG: no such file"
    ):
        scan(read_manifest(folder / "train.txt"))


def test_verdicts_are_cached_until_a_file_changes(folder, monkeypatch):
    manifest = read_manifest(folder / "train.txt")
    first = scan(manifest)
    monkeypatch.setattr("pipelines.integrity.inspect", None)  # a second look would fail
    again = scan(manifest)
    assert again.fingerprint == first.fingerprint
    assert (again.sizes == first.sizes).all()
    monkeypatch.undo()
    replace_first(folder, GOOD["gray"][0])
    assert scan(manifest).fingerprint != first.fingerprint


def test_trouble_that_may_pass_is_not_cached(folder, monkeypatch):
    """Permissions can be mended without a trace in size or time."""
    manifest, denied = read_manifest(folder / "train.txt"), str(folder / "images/train_0002.JPEG")
    read = Path.read_bytes

    def refuse(self):
        if str(self) == denied:
            raise PermissionError(13, "Permission denied")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        samples = scan(manifest, max_bad=0.1)
    assert "Permission denied" in samples.quarantined["images/train_0002.JPEG"]
    assert not scan(manifest).quarantined


def test_damaged_or_unwritable_cache_costs_a_scan_only(folder, tmp_path, capfd):
    manifest, cache = read_manifest(folder / "train.txt"), tmp_path / "verdicts"
    fingerprint = scan(manifest, cache=cache).fingerprint
    (file,) = cache.iterdir()
    file.write_text(json.dumps([{"surprise": 1}]))
    assert scan(manifest, cache=cache).fingerprint == fingerprint
    blocked = tmp_path / "a file"
    blocked.write_text("")
    assert scan(manifest, cache=blocked / "below").fingerprint == fingerprint
    assert "not cached" in capfd.readouterr().err


def test_fingerprint_is_of_contents_not_of_places_or_times(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    for file in (copy / "images").iterdir():
        os.utime(file, (1, 1))
    assert (
        scan(read_manifest(copy / "train.txt")).fingerprint
        == scan(read_manifest(folder / "train.txt")).fingerprint
    )
