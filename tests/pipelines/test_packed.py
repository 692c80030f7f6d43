"""Packed images against the loose ones they were made of: the same batches, and nothing half-made or unnoticed."""

import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from images import picture, write_images
from PIL import Image

from pipelines import packed
from pipelines.batch import View
from pipelines.build import build_loader
from pipelines.class_names import class_names
from pipelines.errors import DataError
from pipelines.files import locked
from pipelines.integrity import scan
from pipelines.manifest import Manifest, read_split
from pipelines.samples import Samples, content_hash
from pipelines.shards import Options, TarShards, dump_rows, is_packed, open_packed, read_shard
from pipelines.staging import stage

CPU = torch.device("cpu")
LOADERS = ["dali", "portable"]
VERBATIM = Options(short_side=None, quality=None, shard_mb=1)
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """A shard of "1 MB" holds a handful of the small test images."""
    monkeypatch.setattr(packed, "MB", 40_000)


@pytest.fixture
def out(data_dir, tmp_path) -> Path:
    """`data_dir`, packed."""
    packed.pack(data_dir, tmp_path / "packed", shard_mb=1)
    return tmp_path / "packed"


def loose(folder: Path, split: str = "train", **options) -> Samples:
    return scan(read_split(folder, split, **options))


def opened(folder: Path, split: str = "train", **options) -> Samples:
    return open_packed(read_split(folder, split, **options))


def loader(name: str, samples: Samples, rank: int = 0, world: int = 1, training: bool = True):
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    return build_loader(name, samples, View(size=32, training=training), 8 // world, CPU, rank, world)[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def reseal(tsv: Path, change) -> None:
    """Alter a shard's rows as somebody would who knows how they are sealed."""
    rows = read_shard(tsv.with_suffix(".tar"))
    tsv.write_bytes(dump_rows([change(rows[0]), *rows[1:]]))


# --- the same as the loose images ------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_samples_are_those_of_the_loose_images(data_dir, out, split):
    a, b = loose(data_dir, split), opened(out, split)
    assert (a.paths, a.contents, a.pixels, a.classes) == (b.paths, b.contents, b.pixels, b.classes)
    assert (a.labels == b.labels).all() and (a.sizes == b.sizes).all()
    assert a.fingerprint == b.fingerprint
    assert all((a.read(i) == b.read(i)).all() for i in range(len(a)))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("world", [1, 2])
def test_batches_are_those_of_the_loose_images(name, data_dir, out, world):
    samples = loose(data_dir)
    wanted = [list(loader(name, samples, rank, world)) for rank in range(world)]
    shutil.rmtree(data_dir)  # the packed images stand alone
    for rank in range(world):
        for x, y in zip(wanted[rank], loader(name, opened(out), rank, world), strict=True):
            assert torch.equal(x.images, y.images) and torch.equal(x.ids, y.ids)
            assert torch.equal(x.labels, y.labels) and torch.equal(x.valid, y.valid)


@pytest.mark.parametrize("name", LOADERS)
def test_run_goes_on_from_loose_images_to_packed_ones(name, data_dir, out):
    first = loader(name, loose(data_dir))
    batches = iter(first)
    next(batches), next(batches)
    state, rest = first.state_dict(), list(batches)
    ranks = [loader(name, opened(out), rank, 2) for rank in range(2)]
    for second in ranks:
        second.load_state_dict(state)
    for wanted, *parts in zip(rest, *ranks, strict=True):
        assert torch.equal(wanted.images, torch.cat([part.images for part in parts]))


def test_only_some_classes(data_dir, out):
    a, b = loose(data_dir, labels=[0, 2]), opened(out, labels=[0, 2])
    assert a.fingerprint == b.fingerprint and b.classes == 2
    assert all((a.read(i) == b.read(i)).all() for i in range(len(a)))


def test_classes_keep_their_names(data_dir, tmp_path):
    """Also a name that begins as the images' folder does, where only some classes are packed, and on a copy."""
    (data_dir / "classes.txt").write_text("dog\nimages cat\nimages images of prey\n")
    packed.pack(data_dir, tmp_path / "packed", shard_mb=1)
    packed.pack(data_dir, tmp_path / "two", shard_mb=1, labels="0,2")
    assert class_names(tmp_path / "packed") == class_names(data_dir) == ["dog", "cat", "images of prey"]
    assert class_names(tmp_path / "two") == class_names(data_dir, labels=[0, 2]) == ["dog", "images of prey"]
    assert class_names(stage(tmp_path / "two", tmp_path / "node")) == ["dog", "images of prey"]


def test_list_may_be_called_validation(data_dir, out, tmp_path):
    (data_dir / "val.txt").rename(data_dir / "validation.txt")
    packed.pack(data_dir, tmp_path / "again", shard_mb=1)
    assert files(tmp_path / "again") == files(out)


def test_samples_travel_and_can_be_thinned_out(out):
    samples = opened(out)
    samples.read(0)  # a descriptor is open now
    copy = pickle.loads(pickle.dumps(samples))
    thinner = copy.without({samples.paths[0]: "for a test"})
    assert len(thinner) == len(samples) - 1 == len(thinner.shards)
    assert all((thinner.read(i) == samples.read(i + 1)).all() for i in range(len(thinner)))


def test_many_threads_read_at_once(out):
    samples = opened(out)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: content_hash(samples.read(i % len(samples))), range(400)))
    assert found == samples.contents * 10


def test_descriptors_are_closed(out):
    before = len(list(Path("/proc/self/fd").iterdir()))
    samples = opened(out)
    for i in range(len(samples)):
        samples.read(i)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + len(samples.shards.tars)
    del samples
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- what others read ------------------------------------------------------------------------------------


def test_dali_reads_each_image_once(out):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    samples = opened(out)
    tars = samples.shards.tars
    assert len(tars) > 2

    @pipeline_def(batch_size=len(samples), num_threads=1, device_id=None)
    def graph():
        paths, indexes = [str(tar) for tar in tars], [str(tar.with_suffix(".idx")) for tar in tars]
        image, label = fn.readers.webdataset(
            paths=paths, index_paths=indexes, ext=["jpg;png;webp", "cls"], missing_component_behavior="error"
        )
        return image, label

    pipeline = graph()
    pipeline.build()
    images, labels = pipeline.run()
    found = sorted(
        (content_hash(np.ascontiguousarray(images.at(i))), int(bytes(labels.at(i)))) for i in range(len(samples))
    )
    assert found == sorted(zip(samples.contents, samples.labels.tolist(), strict=True))


def test_index_is_what_dalis_own_tool_writes(out, tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    for tar in (out / "shards").glob("*.tar"):
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_text() == (tmp_path / "theirs.idx").read_text()


def test_python_reads_the_tar_files(out):
    samples = opened(out)
    found = {}
    for tar in samples.shards.tars:
        with tarfile.open(tar) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    for i, label in enumerate(samples.labels):
        assert found.pop(f"{i:09d}.jpg") == samples.read(i).tobytes()
        assert found.pop(f"{i:09d}.cls") == str(label).encode()
    assert not found


def test_shards_mix_the_classes(tmp_path):
    write_images(tmp_path / "data", 60)
    rows = sorted((tmp_path / "data/train.txt").read_text().splitlines(), key=lambda row: row[-1])
    (tmp_path / "data/train.txt").write_text("\n".join(rows))
    packed.pack(tmp_path / "data", tmp_path / "out", shard_mb=1, splits=("train",))
    samples = opened(tmp_path / "out")
    first = samples.labels[samples.shards.shard == 0]
    assert len(first) >= 10 and set(first) == {0, 1, 2}


def test_suffix_is_that_of_the_format(tmp_path):
    (tmp_path / "data").mkdir()
    for i, form in enumerate(("JPEG", "PNG", "WEBP")):
        picture(i, 40, 40).save(tmp_path / f"data/{i}.JPEG", form)  # whatever they are called
    (tmp_path / "data/train.txt").write_text("0.JPEG 0\n1.JPEG 1\n2.JPEG 0\n")
    packed.pack(tmp_path / "data", tmp_path / "out", splits=("train",))
    with tarfile.open(tmp_path / "out/shards/train-00000.tar") as archive:
        assert {"000000000.jpg", "000000001.png", "000000002.webp"} < set(archive.getnames())


# --- names, refused images, scaling ----------------------------------------------------------------------


def test_odd_names(tmp_path):
    """A space, a tab, a line separator of Unicode's, and bytes that are no UTF-8."""
    names = ["a b.jpg", "a\tb.jpg", "a\u2028b.jpg", os.fsdecode(b"caf\xe9.jpg")]
    sizes, contents = [], []
    for i, name in enumerate(names):
        picture(i, 40 + i, 40).save(tmp_path / name, "JPEG")
        sizes.append((40 + i, 40))
        contents.append(content_hash((tmp_path / name).read_bytes()))
    labels = np.zeros(4, np.int64)
    samples = Samples(tmp_path, names, labels, np.array(sizes, np.int32), contents, [""] * 4, 1)
    packed.pack_samples({"train": samples}, tmp_path / "out", VERBATIM)
    list_file = tmp_path / "out/train.txt"
    assert list_file.read_bytes() == b"".join(os.fsencode(name) + b" 0\n" for name in names)
    again = open_packed(Manifest(tmp_path / "out", tuple(names), (0,) * 4, 1, list_file))
    assert again.fingerprint == samples.fingerprint
    assert [content_hash(again.read(i)) for i in range(4)] == contents


def test_refused_images_are_left_out_and_named(data_dir, tmp_path):
    (data_dir / "images/train_0003.JPEG").write_bytes(b"no image")
    packed.pack(data_dir, tmp_path / "out")
    samples = opened(tmp_path / "out")
    assert len(samples) == 39 and "train_0003" not in (tmp_path / "out/train.txt").read_text()
    assert samples.quarantined == loose(data_dir).quarantined
    assert "not an image" in samples.quarantined["images/train_0003.JPEG"]


def test_class_without_a_usable_image_is_refused(tmp_path):
    write_images(tmp_path / "data", 41, classes=40)
    (tmp_path / "data/images/train_0039.JPEG").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no usable image in train.*--labels"):
        packed.pack(tmp_path / "data", tmp_path / "out", splits=("train",))
    assert not (tmp_path / "out").exists()


def test_short_side(tmp_path):
    """Large images come out upright at the short side that was asked for, small ones as they were."""
    (tmp_path / "data").mkdir()
    upright = picture(1, 300, 200)
    turned = Image.Exif()
    turned[0x0112] = 6
    upright.save(tmp_path / "data/large.jpg", quality=98)
    upright.rotate(90, expand=True).save(tmp_path / "data/turned.jpg", quality=98, exif=turned)
    upright.convert("RGBA").save(tmp_path / "data/alpha.png")
    picture(2, 64, 90).save(tmp_path / "data/small.jpg")
    names = ["large.jpg", "turned.jpg", "alpha.png", "small.jpg"]
    (tmp_path / "data/train.txt").write_text("".join(f"{name} 0\n" for name in names))
    packed.pack(tmp_path / "data", tmp_path / "out", short_side=64, splits=("train",))
    samples = opened(tmp_path / "out")
    assert samples.sizes.tolist() == [[96, 64]] * 3 + [[64, 90]]
    wanted = np.asarray(upright.resize((96, 64), Image.Resampling.LANCZOS), np.float32)
    for i in range(3):
        data = samples.read(i)
        assert content_hash(data) == samples.contents[i]
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 64))
        assert not image.getexif()
        assert np.abs(np.asarray(image, np.float32) - wanted).mean() < 3
    assert samples.read(3).tobytes() == (tmp_path / "data/small.jpg").read_bytes()
    assert samples.fingerprint != loose(tmp_path / "data").fingerprint


def test_orientation_that_loaders_do_not_read_is_not_applied(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    picture(1, 300, 200).save(tmp_path / "xmp.jpg", xmp=xmp)
    data, size = packed.shrink((tmp_path / "xmp.jpg").read_bytes(), 64, 92)
    assert size == Image.open(io.BytesIO(data)).size == (96, 64)


def test_twins_are_still_twins_after_scaling(data_dir, tmp_path):
    packed.pack(data_dir, tmp_path / "out", short_side=32)
    assert opened(tmp_path / "out").pixels == loose(data_dir).pixels


def test_image_that_cannot_be_scaled_is_named(data_dir, tmp_path, monkeypatch):
    def fails(*_):
        raise SyntaxError("broken EXIF")

    monkeypatch.setattr(packed, "shrink", fails)
    with pytest.raises(DataError, match=r"train_\d+\.JPEG: cannot be scaled \(broken EXIF\)"):
        packed.pack(data_dir, tmp_path / "out", short_side=32)


# --- going on, and refusing ------------------------------------------------------------------------------


def test_killed_and_run_again_gives_the_same_bytes(data_dir, out, tmp_path):
    """Killed by the system in the midst of the third shard; the second run makes only what is missing."""
    again = tmp_path / "again"
    script = f"""
import os, pathlib
from pipelines import packed

write, add = packed._write_shard, packed._add
def die(*args):
    add(*args)
    os.kill(os.getpid(), 9)
def write_or_die(tar, *rest):
    packed._add = die if tar.name == "train-00002.tar" else add
    write(tar, *rest)
packed.MB, packed._write_shard = 40_000, write_or_die
packed.pack(pathlib.Path({str(data_dir)!r}), pathlib.Path({str(again)!r}), shard_mb=1)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert not is_packed(again) and (again / "shards/.train-00002.tar.tmp").exists()
    finished = sorted((again / "shards").glob("*.tsv"))
    assert [file.stem for file in finished] == ["train-00000", "train-00001"]
    stamps = [file.with_suffix(".tar").stat().st_mtime_ns for file in finished]
    packed.pack(data_dir, again, shard_mb=1)
    assert files(again) == files(out)
    assert [file.with_suffix(".tar").stat().st_mtime_ns for file in finished] == stamps


def test_interrupted_leaves_nothing_half_made(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_add", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        packed.pack(data_dir, tmp_path / "out", shard_mb=1)
    assert files(tmp_path / "out").keys() == {"packing.json"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shard_mb": 2}, "--shard-mb 1, not 2"),
        ({"short_side": 32}, "--short-side None, not 32"),
        ({"labels": "0-1"}, "another (train|val|test) list"),
        ({"splits": ("train", "val")}, "another test list"),
    ],
)
def test_other_options_are_refused(data_dir, out, options, why):
    before = files(out)
    with pytest.raises(DataError, match=f"{why}.*another folder"):
        packed.pack(data_dir, out, **{"shard_mb": 1, **options})
    assert files(out) == before


def test_quality_counts_only_where_something_is_encoded(data_dir, out):
    packed.pack(data_dir, out, shard_mb=1, quality=50)


def test_folder_with_something_else_is_left_alone(data_dir):
    before = files(data_dir)
    with pytest.raises(DataError, match="holds something else"):
        packed.pack(data_dir, data_dir)
    assert files(data_dir) == before


def test_packed_folder_is_not_packed_again(out, tmp_path):
    with pytest.raises(DataError, match="packed already"):
        packed.pack(out, tmp_path / "twice")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"short_side": 8}, "--short-side 8"),
        ({"quality": 0}, "--quality 0"),
        ({"shard_mb": 0}, "--shard-mb 0"),
        ({"splits": ("val",)}, "--splits val"),
    ],
)
def test_senseless_settings_are_refused(data_dir, tmp_path, options, why):
    with pytest.raises(DataError, match=why):
        packed.pack(data_dir, tmp_path / "out", **options)


def test_image_that_changes_after_the_scan_is_named(data_dir, tmp_path):
    samples = loose(data_dir)
    (data_dir / "images/train_0005.JPEG").write_bytes((data_dir / "images/train_0006.JPEG").read_bytes())
    with pytest.raises(DataError, match=r"train_0005\.JPEG: has other bytes"):
        packed.pack_samples({"train": samples}, tmp_path / "out", VERBATIM)
    assert not is_packed(tmp_path / "out") and not list((tmp_path / "out/shards").glob("*.part"))


def test_second_packer_is_turned_away(data_dir, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "busy"), pytest.raises(DataError, match="another process"):
        packed.pack(data_dir, tmp_path / "out")


def test_too_little_room_is_said_before_anything_is_written(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(DataError, match=r"GB more, .* GB are free"):
        packed.pack(data_dir, tmp_path / "out")
    assert files(tmp_path / "out").keys() == {"packing.json"}


def test_full_disk_is_one_line_and_nothing_half_made(data_dir, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"out: No space left on device; .* goes on"):
        packed.pack(data_dir, tmp_path / "out")
    assert not files(tmp_path / "out")


# --- damage ----------------------------------------------------------------------------------------------


def cut(tar: Path) -> None:
    os.truncate(tar, tar.stat().st_size // 2)


def flip(tar: Path) -> None:
    data = bytearray(tar.with_suffix(".tsv").read_bytes())
    data[len(data) // 2] ^= 1
    tar.with_suffix(".tsv").write_bytes(data)


DAMAGE = {
    "cut short": (cut, r"train-00001\.tar: \d+ bytes long"),
    "deleted": (Path.unlink, r"train-00001\.tar: No such file"),
    "table deleted": (lambda tar: tar.with_suffix(".tsv").unlink(), r"train-00001\.tsv: No such file"),
    "table flipped": (flip, r"train-00001\.tsv: damaged"),
    "table empty": (lambda tar: tar.with_suffix(".tsv").write_bytes(b""), r"train-00001\.tsv: damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_mended_by_packing_again(data_dir, out, kind):
    damage, why = DAMAGE[kind]
    whole = files(out)
    damage(out / "shards/train-00001.tar")
    with pytest.raises(DataError, match=f"{why}.*pack' again") as error:
        opened(out)
    assert "\n" not in str(error.value)
    packed.pack(data_dir, out, shard_mb=1)
    assert files(out) == whole


FORGED = {
    "path": lambda row: row._replace(path="../../etc/passwd"),
    "offset": lambda row: row._replace(offset=-1),
    "length": lambda row: row._replace(length=2**62),
    "no number": lambda row: row._replace(width="wide"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_table_is_refused(out, kind):
    reseal(out / "shards/train-00000.tsv", FORGED[kind])
    with pytest.raises(DataError, match="again"):
        opened(out)


def test_list_cannot_lead_out_of_the_folder(out):
    (out / "train.txt").write_text("../../etc/passwd 0\n")
    with pytest.raises(DataError, match="leaves the data folder"):
        opened(out)


def test_list_with_an_image_that_was_not_packed_is_refused(out):
    with (out / "train.txt").open("a") as file:
        file.write("images/new.JPEG 0\n")
    with pytest.raises(DataError, match=r"train\.txt: no shard holds 'images/new.JPEG'"):
        opened(out)


@pytest.mark.parametrize(
    "record", [b"", b"[]", b'{"format": 99}', b'{"format": 1, "options": {"size": 1}, "splits": {}}', b"\xff\xfe"]
)
def test_damaged_record_is_refused(out, tmp_path, record):
    (out / "packed.json").write_bytes(record)
    for use in (opened, lambda folder: stage(folder, tmp_path / "node")):
        with pytest.raises(DataError, match=r"packed\.json: not a record"):
            use(out)


def test_record_cannot_lead_out_of_the_folder(out, tmp_path):
    record = (out / "packed.json").read_text()
    (out / "packed.json").write_text(record.replace('"val"', '"../val"'))
    with pytest.raises(DataError, match=r"not a record of packing \(splits .*\.\./val"):
        stage(out, tmp_path / "node")


def test_split_that_was_not_packed(data_dir, tmp_path):
    packed.pack(data_dir, tmp_path / "out", splits=("train",))
    shutil.copy(data_dir / "val.txt", tmp_path / "out")
    with pytest.raises(DataError, match="packed without val"):
        opened(tmp_path / "out", "val")


def test_shard_that_breaks_while_training_is_named(out):
    samples = opened(out)
    last = np.lexsort((samples.shards.offset, samples.shards.shard))[-1]
    os.truncate(samples.shards.tars[-1], 1000)
    with pytest.raises(DataError, match=r"train-\d+\.tar: ends too early.*--resume"):
        samples.read(last)
    gone = TarShards([out / "gone.tar"], np.zeros(1, int), np.zeros(1, int), np.ones(1, int))
    with pytest.raises(DataError, match=r"gone\.tar: No such file.*--resume"):
        gone.read(0)


def test_verify_finds_a_flipped_bit(out, capsys):
    packed.verify(out)
    assert "val: 13 images are sound" in capsys.readouterr().out
    row = read_shard(out / "shards/val-00000.tar")[4]
    with (out / "shards/val-00000.tar").open("r+b") as file:
        file.seek(row.offset + row.length // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match=rf"val-00000\.tar: {row.path} is damaged"):
        packed.verify(out)


@pytest.mark.parametrize("kind", ["dali", "portable", "resident"])
@pytest.mark.parametrize("fault", ["cut short", "bytes"])
def test_shard_that_goes_bad_while_running_is_named(out, kind, fault):
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    samples = opened(out)
    shards = samples.shards
    last = max(range(len(samples)), key=lambda i: (shards.shard[i], shards.offset[i]))
    tar = shards.tars[shards.shard[last]]
    if fault == "cut short":
        os.truncate(tar, shards.offset[last])
    else:
        with tar.open("r+b") as file:
            file.seek(shards.offset[last])
            file.write(bytes(int(shards.length[last])))
    loader, _ = build_loader(kind, samples, View(size=32, training=False), 8, torch.device("cpu"))
    with pytest.raises(DataError, match=re.escape(tar.name) + ".*--resume"):
        list(loader)


# --- staging ---------------------------------------------------------------------------------------------


def test_stage_copies_once(out, tmp_path):
    copy = stage(out, tmp_path / "node")
    assert files(copy) == files(out)
    stamps = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    assert stage(out, tmp_path / "node") == copy
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == stamps
    assert opened(copy).fingerprint == opened(out).fingerprint


def test_stage_completes_a_copy_that_was_cut_short(out, tmp_path, monkeypatch):
    def dies(source, target, _):
        if Path(target.name).name == ".train-00002.tar.tmp":
            target.write(b"half")
            raise KeyboardInterrupt
        target.write(source.read())

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfileobj", dies)
        stage(out, tmp_path / "node")
    (copy,) = (f for f in (tmp_path / "node").iterdir() if f.is_dir())
    assert not is_packed(copy)
    (copy / "shards/.train-00002.tar.tmp").write_bytes(b"left by a kill")
    assert stage(out, tmp_path / "node") == copy
    assert files(copy) == files(out)


def test_stage_mends_what_a_cleaner_took(out, tmp_path):
    copy = stage(out, tmp_path / "node")
    (copy / "shards/train-00000.tar").unlink()
    cut(copy / "shards/train-00001.tar")
    stage(out, tmp_path / "node")
    assert files(copy) == files(out)


def test_stage_at_once_from_many_processes(out, tmp_path):
    """All print the same path and nothing else, and one of them copied."""
    command = [sys.executable, "-m", "pipelines.packed", "stage", str(out), str(tmp_path / "node")]
    root = Path(__file__).parents[2]
    with (tmp_path / "stderr").open("w") as trouble:
        running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=trouble) for _ in range(3)]
    printed = {process.communicate()[0].decode() for process in running}
    assert [process.returncode for process in running] == [0] * 3, (tmp_path / "stderr").read_text()
    (line,) = printed
    assert files(Path(line.removesuffix("\n"))) == files(out)


def test_stage_says_when_there_is_no_room(out, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(DataError, match=r"node: needs .* GB more"):
        stage(out, tmp_path / "node")
    assert [f.suffix for f in (tmp_path / "node").iterdir()] == [".lock"]


def test_stage_refuses_what_is_not_packed(data_dir, tmp_path):
    with pytest.raises(DataError, match=r"not a packed folder.*pipelines\.packed pack"):
        stage(data_dir, tmp_path)


def test_stage_does_not_make_a_disk(out, tmp_path):
    with pytest.raises(DataError, match=r"No such file or directory on .*own disk"):
        stage(out, tmp_path / "no/such")


# --- the program -----------------------------------------------------------------------------------------


def test_program_says_what_it_did_and_what_comes_next(data_dir, tmp_path, capsys):
    packed.main(["pack", str(data_dir), str(tmp_path / "out"), "--short-side", "32", "--splits", "train", "val"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in lines[:2]] == ["train: 40 images", "val: 13 images"]
    assert lines[-1] == f"next: python -m training.train RECIPE --data.path {tmp_path / 'out'}"


def test_hash_of_bytes_is_the_scans(data_dir):
    samples = loose(data_dir)
    assert content_hash(Path(samples.files[0]).read_bytes()) == samples.contents[0]
