"""The scan decides, and the loaders then never fail: every fault that a file can have, through both loaders.

`odd-jpegs/` comes from the tests of Pillow's source distribution; PILLOW_LICENSE there is its licence.
"""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from images import picture, write_images
from PIL import Image

from pipelines.batch import View
from pipelines.build import build_loader
from pipelines.integrity import scan
from pipelines.manifest import read_manifest
from pipelines.samples import Samples

ODD = sorted((Path(__file__).parent / "odd-jpegs").glob("*.jpg"))
REFUSED = "refused"
SOUND = "sound"


def encoded(form: str = "JPEG", seed: int = 0, orientation: int | None = None, **options) -> bytes:
    out = io.BytesIO()
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    picture(seed, 60, 40).save(out, form, **options)
    return out.getvalue()


def segment(payload: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload


def with_segments(*payloads: bytes) -> bytes:
    plain = encoded()
    return plain[:2] + b"".join(map(segment, payloads)) + plain[2:]


def exif_block(orientation: int, kind: int = 3) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHIII", 0x0112, kind, 1, orientation, 0)


def deep_gray() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(out, "PNG")
    return out.getvalue()


def flipped(data: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    damaged = bytearray(data)
    for position in rng.integers(0, len(data), 1 + seed % 4):
        damaged[position] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


PHOTO = encoded(quality=92)
PROGRESSIVE = encoded(progressive=True, seed=1)
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>'
FRAMES = {"save_all": True, "append_images": [picture(2, 60, 40)]}
FIXED = {
    "zero": (b"", REFUSED),
    "one byte": (b"\xff", REFUSED),
    "text": (b"no image at all\n", REFUSED),
    "gif": (encoded("GIF"), REFUSED),
    "16 bit.png": (deep_gray(), REFUSED),
    "moving.webp": (encoded("WEBP", **FRAMES), REFUSED),
    "last byte gone": (PHOTO[:-1], REFUSED),
    "last byte gone, progressive": (PROGRESSIVE[:-1], REFUSED),
    "two orientations": (with_segments(exif_block(6), exif_block(1)), REFUSED),  # decoders disagree which holds
    "webp on its side": (encoded("WEBP", orientation=6), REFUSED),  # torchvision does not turn it
    "plain": (PHOTO, SOUND),
    "progressive": (PROGRESSIVE, SOUND),
    "png named so.JPEG": (encoded("PNG"), SOUND),
    "webp named so.JPEG": (encoded("WEBP"), SOUND),
    "moving.png": (encoded("PNG", **FRAMES), SOUND),
    "two pictures.mpo": (encoded("MPO", **FRAMES), SOUND),
    "png on its side": (encoded("PNG", orientation=6), SOUND),
    "jpeg on its side": (encoded(orientation=8), SOUND),
    "orientation 9": (encoded(orientation=9), SOUND),
    "orientation in XMP only": (with_segments(XMP), SOUND),
    "orientation as long": (with_segments(exif_block(6, kind=4)), SOUND),
    "garbage as EXIF": (with_segments(b"Exif\0\0garbage"), SOUND),
    "bytes after the end": (PHOTO + bytes(50), SOUND),
    " two  spaces, 'quotes' and a\ttab.JPEG": (PHOTO, SOUND),
    "$(rm) ; * ? \x01 \u2028 名前.JPEG": (PHOTO, SOUND),
    "caf\udce9.JPEG": (PHOTO, SOUND),
}


def make_list(folder: Path, names: list[str]) -> Path:
    file = folder / "train.txt"
    file.write_bytes(b"".join(b"d/%b %d\n" % (os.fsencode(name), i % 3) for i, name in enumerate(names)))
    return file


def write_all(folder: Path, files: dict[str, bytes]) -> Samples:
    """Write files and a list of them, and scan it; an anchor keeps the data set from being empty."""
    files = files | {"anchor.JPEG": PHOTO}
    (folder / "d").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / "d" / name).write_bytes(data)
    return scan(read_manifest(make_list(folder, list(files))), max_bad=1.0)


def check_loaders(samples: Samples) -> None:
    """Both loaders, two epochs: each sound image comes back once, with finite pixels."""
    for name in ("dali", "portable"):
        if name == "dali":
            pytest.importorskip("nvidia.dali")
        view = View(size=32, training=True)
        loader, _ = build_loader(name, samples, view, 8, torch.device("cpu"))
        for _ in range(2):
            batches = list(loader)
            seen = torch.cat([batch.ids[batch.valid] for batch in batches])
            assert sorted(seen.tolist()) == list(range(len(samples)))
            assert all(batch.images.isfinite().all() for batch in batches)
            assert all(batch.images.abs().max() < 3 for batch in batches)  # normalised from 0 … 255


def check_reasons(samples: Samples) -> None:
    for path, reason in samples.quarantined.items():
        assert reason.isprintable(), (path, reason)  # one line, and not empty:
        assert "; " in reason, (path, reason)  # what is wrong, and what to do


def test_odd_files(tmp_path):
    samples = write_all(tmp_path, {name: data for name, (data, _) in FIXED.items()})
    wanted = {f"d/{name}" for name, (_, fate) in FIXED.items() if fate == REFUSED}
    if not has_dali():
        wanted -= {"d/two orientations", "d/webp on its side"}
    assert set(samples.quarantined) == wanted
    check_reasons(samples)
    check_loaders(samples)


def test_pillows_odd_jpegs(tmp_path):
    samples = write_all(tmp_path, {file.name: file.read_bytes() for file in ODD})
    assert len(ODD) == 11
    refused = {"d/truncated_jpeg.jpg"} | ({"d/junk_jpeg_header.jpg"} if has_dali() else set())
    assert set(samples.quarantined) == refused
    check_reasons(samples)
    check_loaders(samples)


def test_cut_at_each_tenth(tmp_path):
    kinds = {"jpg": PHOTO, "prog": PROGRESSIVE, "png": encoded("PNG"), "webp": encoded("WEBP")}
    samples = write_all(
        tmp_path,
        {f"{kind}{tenth}": data[: len(data) * tenth // 10] for kind, data in kinds.items() for tenth in range(10)},
    )
    assert samples.paths == ["d/anchor.JPEG"]
    check_reasons(samples)
    check_loaders(samples)


def test_flipped_bits(tmp_path):
    """Damage in the pixels may go unseen; whatever passes must load."""
    kinds = {
        "jpg": PHOTO,
        "prog": PROGRESSIVE,
        "turned": encoded(orientation=6),
        "mpo": encoded("MPO", **FRAMES),
        "png": encoded("PNG"),
        "webp": encoded("WEBP"),
    }
    samples = write_all(
        tmp_path, {f"{kind}{seed}": flipped(data, seed) for kind, data in kinds.items() for seed in range(30)}
    )
    assert 30 < len(samples) < 150
    check_reasons(samples)
    check_loaders(samples)


def test_a_header_that_dali_cannot_parse_among_others(tmp_path):
    """DALI 2.4 dies of such a file in a batch with others: the scan must not."""
    pytest.importorskip("nvidia.dali")
    junk = PHOTO[:20] + b"\0\1junk" + PHOTO[20:]
    samples = write_all(tmp_path, {f"{i}": junk if i % 3 == 0 else encoded(seed=i) for i in range(40)})
    assert len(samples.quarantined) == 14
    check_loaders(samples)


def test_things_that_are_no_files(tmp_path):
    write_images(tmp_path, 3)
    things = tmp_path / "images"
    (things / "loop").symlink_to("loop")
    (things / "dangling").symlink_to("nowhere")
    (things / "to a folder").symlink_to(".")
    (things / "folder.JPEG").mkdir()
    (things / "good link").symlink_to("train_0000.JPEG")
    os.mkfifo(things / "pipe.JPEG")
    names = sorted(file.name for file in things.iterdir())
    (tmp_path / "train.txt").write_text(
        "".join(f"images/{name} 0\n" for name in [*names, "train_0000.JPEG/below"])
    )
    samples = scan(read_manifest(tmp_path / "train.txt"), max_bad=1.0)
    assert {Path(path).name: reason.partition(";")[0] for path, reason in samples.quarantined.items()} == {
        "loop": "cannot be read (Too many levels of symbolic links)",
        "dangling": "no such file",
        "to a folder": "no regular file",
        "folder.JPEG": "no regular file",
        "pipe.JPEG": "no regular file",
        "below": "cannot be read (Not a directory)",
    }
    check_loaders(samples)


def test_absent_name_in_another_encoding_says_so(tmp_path):
    write_images(tmp_path, 3)
    with (tmp_path / "train.txt").open("ab") as out:
        out.write(b"images/caf\xe9.JPEG 0\n")  # Latin-1; the file may be there under its UTF-8 name
    samples = scan(read_manifest(tmp_path / "train.txt"), max_bad=0.5)
    assert "another encoding" in samples.quarantined["images/caf\udce9.JPEG"]


def test_dali_names_a_file_that_vanished_whatever_its_name(tmp_path):
    pytest.importorskip("nvidia.dali")
    from pipelines import dali

    for name in ("plain", "caf\udce9"):
        file = str(tmp_path / name)
        assert dali.undecodable([file])[file]


def test_small_and_narrow(tmp_path):
    out = {}
    for width, height in [(1, 1), (1, 300), (300, 1), (2, 3)]:
        for form in ("JPEG", "PNG"):
            data = io.BytesIO()
            picture(0, width, height).save(data, form)
            out[f"{width}x{height}.{form}"] = data.getvalue()
    samples = write_all(tmp_path, out)
    assert not samples.quarantined
    check_loaders(samples)


@pytest.mark.slow
def test_huge(tmp_path):
    """108 megapixels load; 200 are more than Pillow's bound against decompression bombs."""
    sizes = {"large": (12000, 9000), "too large": (20000, 10000)}
    files = {}
    for name, size in sizes.items():
        data = io.BytesIO()
        Image.new("RGB", size, (200, 30, 60)).save(data, "JPEG")
        files[name] = data.getvalue()
    samples = write_all(tmp_path, files)
    assert list(samples.quarantined) == ["d/too large"]
    assert tuple(samples.sizes[0]) == (12000, 9000)
    check_loaders(samples)


def has_dali() -> bool:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True
