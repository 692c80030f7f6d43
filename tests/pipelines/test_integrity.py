import csv
import io
import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from images import picture, write_images
from PIL import Image

from pipelines.duplicates import Duplicate, find_duplicates
from pipelines.errors import DataError
from pipelines.integrity import Check, inspect, main, scan, scan_splits
from pipelines.manifest import Manifest, read_manifest, read_split
from pipelines.verdicts import Verdict

ROOT = Path(__file__).parents[2]


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
    pytest.importorskip("nvidia.dali")
    from pipelines import dali

    name = replace_first(folder, with_bogus_table_in_the_middle(PHOTO))
    assert not dali.undecodable([str(folder / name)])
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


# --- the store of verdicts --------------------------------------------------------------------------------


@pytest.fixture
def inspected(monkeypatch) -> list[str]:
    """Names of the files that scans look at, as they do."""
    names: list[str] = []

    def note(file: str) -> Verdict:
        names.append(Path(file).name)
        return inspect(file)

    monkeypatch.setattr("pipelines.integrity.inspect", note)
    return names


def test_killed_scan_goes_on_where_it_was(folder, monkeypatch):
    manifest, looked = read_manifest(folder / "train.txt"), []

    def killed_at_the_ninth(file: str) -> Verdict:
        if len(looked) == 9:
            raise KeyboardInterrupt
        looked.append(file)
        return inspect(file)

    monkeypatch.setattr("pipelines.integrity.CHUNK", 4)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.integrity.inspect", killed_at_the_ninth)
        with pytest.raises(KeyboardInterrupt):
            scan(manifest)
    looked.clear()
    monkeypatch.setattr("pipelines.integrity.inspect", lambda file: looked.append(file) or inspect(file))
    assert len(scan(manifest)) == 12
    assert looked == manifest.files[8:]  # two chunks of four were stored


def test_only_new_and_changed_files_are_inspected(folder, inspected):
    scan(read_manifest(folder / "train.txt"))
    inspected.clear()
    replace_first(folder, GOOD["gray"][0])
    (folder / "images/new.JPEG").write_bytes(PHOTO)
    with (folder / "train.txt").open("a") as out:
        out.write("images/new.JPEG 0\n")
    assert len(scan(read_manifest(folder / "train.txt"))) == 13
    assert sorted(inspected) == ["new.JPEG", "train_0000.JPEG"]


def test_another_list_of_the_same_files_needs_no_scan(folder, inspected):
    scan(read_manifest(folder / "train.txt"))
    inspected.clear()
    rows = (folder / "train.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(reversed(rows[3:])))
    assert len(scan(read_manifest(folder / "test.txt"))) == 9
    assert not inspected


def test_refusals_are_stored_too(folder, inspected):
    name = replace_first(folder, BAD["cut in half"][0])
    first = scan(read_manifest(folder / "train.txt"), max_bad=0.1)
    inspected.clear()
    again = scan(read_manifest(folder / "train.txt"), max_bad=0.1)
    assert not inspected
    assert again.quarantined == first.quarantined
    assert list(again.quarantined) == [name]


def test_other_decoders_scan_anew(folder, inspected, monkeypatch):
    scan(read_manifest(folder / "train.txt"))
    monkeypatch.setattr("PIL.__version__", "0")
    scan(read_manifest(folder / "train.txt"))
    assert len(inspected) == 24


@pytest.mark.parametrize("damage", ["junk", "torn", "another table"])
def test_damaged_database_is_set_aside(folder, tmp_path, capfd, inspected, damage):
    manifest, cache = read_manifest(folder / "train.txt"), tmp_path / "verdicts"
    fingerprint = scan(manifest, cache=cache).fingerprint
    file = cache / "verdicts.sqlite"
    if damage == "junk":
        file.write_bytes(b"this is no database" * 100)
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        file.unlink()
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE verdicts (surprise TEXT)")
    assert scan(manifest, cache=cache).fingerprint == fingerprint
    assert "set aside as verdicts.damaged" in capfd.readouterr().err
    assert (cache / "verdicts.damaged").exists()
    assert len(inspected) == 24
    scan(manifest, cache=cache)
    assert len(inspected) == 24  # the new database serves


def test_place_that_cannot_be_written_costs_a_scan_only(folder, tmp_path, capfd):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    assert len(scan(read_manifest(folder / "train.txt"), cache=blocked / "below")) == 12
    assert capfd.readouterr().err.count("not cached") == 1


def test_locked_database_costs_a_scan_only(folder, tmp_path, capfd, monkeypatch, inspected):
    manifest = read_manifest(folder / "train.txt")
    scan(manifest, cache=tmp_path)
    replace_first(folder, GOOD["gray"][0])
    monkeypatch.setattr("pipelines.verdicts._PATIENCE_S", 0.1)
    with closing(sqlite3.connect(tmp_path / "verdicts.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")  # others may read, not write
        assert len(scan(manifest, cache=tmp_path)) == 12
    assert len(inspected) == 13  # what was known could be read
    assert capfd.readouterr().err.count("not cached") == 1


def test_several_scans_at_the_same_time(folder, monkeypatch, capfd):
    monkeypatch.setattr("pipelines.integrity.CHUNK", 2)
    manifest = read_manifest(folder / "train.txt")
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(scan, manifest) for _ in range(12)]
        prints = {scanned.result().fingerprint for scanned in together}
    assert len(prints) == 1
    assert not capfd.readouterr().err


# --- policy and duplicates --------------------------------------------------------------------------------


def test_policy_fail_refuses_the_first_unusable_image(folder):
    replace_first(folder, b"")
    (folder / "images/train_0005.JPEG").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"train\.txt: 2 of 12 images.*--data\.policy quarantine.*train_0000\.JPEG: zero bytes long",
    ):
        scan(read_manifest(folder / "train.txt"), policy="fail", max_bad=0.5)


@pytest.fixture
def splits(data_dir) -> Path:
    """Three lists; train's second image is a copy of a test image, its third and fourth only look like val's."""
    images = data_dir / "images"
    shutil.copy(images / "test_0004.JPEG", images / "train_0001.JPEG")
    comment = b"\xff\xfe\x00\x07hello"
    for train, val in [(2, 3), (3, 5)]:
        data = (images / f"val_{val:04d}.JPEG").read_bytes()
        (images / f"train_{train:04d}.JPEG").write_bytes(data[:2] + comment + data[2:])
    return data_dir


def manifests(folder: Path) -> dict[str, Manifest]:
    return {split: read_split(folder, split) for split in ("train", "val", "test")}


def test_training_images_that_are_in_val_or_test_are_left_out(splits, capfd):
    scanned = scan_splits(manifests(splits))
    assert scanned["train"].quarantined == {
        f"images/train_000{i}.JPEG": f"same {twin}; keep one of the two rows"
        for i, twin in [
            (1, "file as images/test_0004.JPEG of test"),
            (2, "pixels as images/val_0003.JPEG of val with label 0"),
            (3, "pixels as images/val_0005.JPEG of val with label 2"),
        ]
    }
    assert [len(scanned[split]) for split in ("train", "val", "test")] == [37, 13, 13]
    assert not scanned["test"].quarantined
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "left out: training images that are also in val or test: 3; the first is images/train_0001.JPEG of train: "
    )


def test_policy_fail_refuses_duplicates(splits):
    with pytest.raises(DataError, match=r"train\.txt: training images that are.*: 3; .*--data\.policy quarantine"):
        scan_splits(manifests(splits), policy="fail")


def test_the_same_image_in_another_format(data_dir):
    """Lossless, so the pixels are the same; likewise an image and its turned twin with an orientation."""
    images = data_dir / "images"
    source = picture(77, 50, 40)
    source.save(images / "test_0000.JPEG", "PNG")
    source.save(images / "train_0000.JPEG", "WEBP", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    source.rotate(90, expand=True).save(images / "train_0001.JPEG", "PNG", exif=exif)
    kinds = {twin.path: (twin.twin_path, twin.kind) for twin in found_in(data_dir)}
    assert kinds == dict.fromkeys(
        ["images/train_0000.JPEG", "images/train_0001.JPEG"], ("images/test_0000.JPEG", "pixels")
    )


def found_in(folder: Path) -> list[Duplicate]:
    return find_duplicates({split: scan(manifest) for split, manifest in manifests(folder).items()})


def test_two_labels_and_shared_images_are_reported_only(data_dir, capfd):
    images = data_dir / "images"
    shutil.copy(images / "train_0000.JPEG", images / "train_0001.JPEG")  # labels 0 and 1
    shutil.copy(images / "train_0000.JPEG", images / "train_0003.JPEG")  # label 0 again: no trouble
    shutil.copy(images / "val_0002.JPEG", images / "test_0002.JPEG")
    scanned = scan_splits(manifests(data_dir), policy="fail")
    assert [len(scanned[split]) for split in ("train", "val", "test")] == [40, 13, 13]
    assert [(twin.problem, twin.path, twin.twin_path) for twin in find_duplicates(scanned)] == [
        ("two labels", "images/train_0001.JPEG", "images/train_0000.JPEG"),
        ("shared", "images/val_0002.JPEG", "images/test_0002.JPEG"),
    ]
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in said] == [
        "note: images that stand in one list under two labels: 1",
        "note: val images that are also in test: 1",
    ]


def test_equal_files_are_named_before_equal_pixels(data_dir):
    images = data_dir / "images"
    data = (images / "test_0000.JPEG").read_bytes()
    (images / "test_0000.JPEG").write_bytes(data[:2] + b"\xff\xfe\x00\x04hi" + data[2:])
    (images / "test_0007.JPEG").write_bytes(data)
    (images / "train_0000.JPEG").write_bytes(data)
    leaks = [twin for twin in found_in(data_dir) if twin.problem == "leak"]
    assert [(twin.twin_path, twin.kind) for twin in leaks] == [("images/test_0007.JPEG", "bytes")]


def test_train_and_test_of_the_same_images_are_refused(data_dir):
    shutil.copy(data_dir / "train.txt", data_dir / "test.txt")
    with pytest.raises(DataError, match=r"train\.txt: training images.*: 40;.*no other is left"):
        scan_splits(manifests(data_dir))


def test_duplicates_do_not_count_as_unusable(splits):
    assert len(scan_splits(manifests(splits), max_bad=0.0)["train"]) == 37


# --- the program ------------------------------------------------------------------------------------------


def test_program_shows_reports_and_says_what_is_next(splits, tmp_path, capsys):
    (splits / "images/val_0000.JPEG").write_bytes(b"")
    report = tmp_path / "report.tsv"
    main(Check(folder=splits, max_bad=0.1, report=report))
    out = capsys.readouterr().out
    rows = [line.strip("│ ").split() for line in out.splitlines() if line.startswith("│")]
    counts = {row[0]: [int(cell) for cell in row if cell.isdecimal()] for row in rows}
    assert counts == {"train": [40, 40, 0, 3], "val": [13, 12, 1, 0], "test": [13, 13, 0, 0]}
    assert f"--data.path {splits}" in out.splitlines()[-1]
    with report.open(newline="") as lines:
        table = list(csv.DictReader(lines, dialect="excel-tab"))
    assert [(row["problem"], row["split"], row["twin_path"]) for row in table] == [
        ("unusable", "val", ""),
        ("leak", "train", "images/test_0004.JPEG"),
        ("leak", "train", "images/val_0003.JPEG"),
        ("leak", "train", "images/val_0005.JPEG"),
    ]
    assert table[0]["path"] == "images/val_0000.JPEG"
    assert "zero bytes" in table[0]["reason"]


def test_program_writes_its_report_before_it_refuses(splits, tmp_path):
    shutil.rmtree(splits / "images")
    with pytest.raises(DataError, match=r"40 of 40 .* --max-bad 0.05 allows; check --root"):
        main(Check(folder=splits, report=tmp_path / "report.tsv"))
    assert len((tmp_path / "report.tsv").read_text().splitlines()) == 67


def test_program_refuses_a_percentage(splits):
    with pytest.raises(DataError, match=r"^--max-bad 5: give a part between 0 and 1"):
        main(Check(folder=splits, max_bad=5))


def test_program_with_train_alone_and_names_of_any_bytes(tmp_path):
    folder, report = tmp_path / os.fsdecode(b"f\xfcr alle"), tmp_path / "report.tsv"
    write_images(folder, 12)
    odd = os.fsdecode(b"images/caf\xe9\t.JPEG")
    (folder / odd).write_bytes(b"")
    with (folder / "train.txt").open("ab") as out:
        out.write(os.fsencode(odd) + b" 0\n")
    command = [sys.executable, "-m", "pipelines.integrity", folder, "--report", report, "--max-bad", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b'"images/caf\xe9\t.JPEG"' in report.read_bytes()
    assert done.stdout.endswith(b"/f\xfcr alle'\n")


def test_fingerprint_is_of_contents_not_of_places_or_times(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    for file in (copy / "images").iterdir():
        os.utime(file, (1, 1))
    assert (
        scan(read_manifest(copy / "train.txt")).fingerprint
        == scan(read_manifest(folder / "train.txt")).fingerprint
    )
