"""From a folder of class folders to lists that the rest of the project reads."""

import shutil
import sys
from pathlib import Path

import pytest
from images import picture

from pipelines import lists
from pipelines.class_names import class_names
from pipelines.cli import run_program
from pipelines.manifest import find_list, read_split


@pytest.fixture
def program(monkeypatch):
    def run(*args: object) -> int:
        words = [str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", ["lists", *words])
        try:
            run_program(lambda: lists.main(lists.parse(words)))
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """Names with blanks, a class in subfolders, a small class, and things that are no images."""
    counts = {"red panda": 20, "train": 10, "zebra/near": 5, "zebra/far": 5, "lynx": 2}
    for name, count in counts.items():
        (tmp_path / "own images" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "own images" / name / f"photo {i}.{'JPG' if i % 2 else 'png'}").write_bytes(b"unread")
    (tmp_path / "own images" / "red panda" / "notes.txt").write_text("not an image")
    (tmp_path / "own images" / ".thumbnails").mkdir()
    (tmp_path / "own images" / "empty").mkdir()
    return tmp_path / "own images"


def split_of(folder: Path) -> dict[str, str]:
    return {path: split for split in ("train", "val", "test") for path in read_split(folder, split).paths}


def test_every_image_is_in_one_list_under_the_class_of_its_folder(folder, program, capsys):
    assert program(folder, "--val", "0.2", "--test", "0.1") == 0
    names = ["lynx", "red panda", "train", "zebra"]
    assert class_names(folder) == names
    manifests = {split: read_split(folder, split) for split in ("train", "val", "test")}
    found = [path for manifest in manifests.values() for path in manifest.paths]
    assert len(found) == len(set(found)) == 42
    for manifest in manifests.values():
        for path, label in zip(manifest.paths, manifest.labels, strict=True):
            assert path.split("/")[0] == names[label]
            assert (folder / path).is_file()
    counts = {split: [manifest.labels.count(label) for label in range(4)] for split, manifest in manifests.items()}
    assert counts == {"train": [2, 14, 7, 7], "val": [0, 4, 2, 2], "test": [0, 2, 1, 1]}
    told = capsys.readouterr()
    assert "--data.path '" in told.out
    assert "--schedule.epochs 600 --schedule.eval-epochs 100" in told.out  # few images need many passes
    assert "fewer than 3 images, so all of them train: lynx" in told.err
    assert f"{folder / 'empty'} holds no images" in told.err


def test_the_division_depends_on_names_and_seed_alone(folder, tmp_path, program):
    assert program(folder) == 0
    first = split_of(folder)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("*.txt"))
    assert program(moved) == 0
    assert split_of(moved) == first
    assert program(moved, "--seed", "1", "--force") == 0
    assert split_of(moved) != first


def test_few_images_change_places_when_others_come(folder, program):
    """Sorted by hash, the places of a class's images among the others stay; only borders between splits move."""
    paths = [f"zebra/{i}.jpg" for i in range(1000)]
    before = {path: split for split, rows in lists.divide(paths, 0.1, 0.1, 0).items() for path in rows}
    more = lists.divide([*paths, *(f"zebra/more-{i}.jpg" for i in range(100))], 0.1, 0.1, 0)
    after = {path: split for split, rows in more.items() for path in rows}
    assert sum(before[path] != after[path] for path in paths) < 40
    assert {split: len(rows) for split, rows in more.items()} == {"train": 880, "val": 110, "test": 110}


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.45, 0.5), (0.1, 0), (0.9, 0.05)])
def test_small_classes_leave_something_to_train(count, val, test):
    parts = lists.divide([f"a/{i}.png" for i in range(count)], val, test, 0)
    sizes = {split: len(rows) for split, rows in parts.items()}
    assert sum(sizes.values()) == count
    if count >= 3:
        assert all(sizes[split] >= 1 for split in ("train", "val"))
        assert (sizes["test"] >= 1) == (test > 0)
    else:
        assert sizes["train"] == count


def test_lists_that_are_there_stay(folder, program, capsys):
    (folder / "validation.txt").write_text("mine 0\n")
    assert program(folder) == 2
    assert "has validation.txt already" in capsys.readouterr().err
    assert not (folder / "train.txt").exists()
    assert program(folder, "--force", "--test", "0") == 0
    assert not (folder / "validation.txt").exists()
    assert not (folder / "test.txt").exists()
    assert find_list(folder, "val").name == "val.txt"


def test_lists_elsewhere_and_the_flag_that_they_need(folder, tmp_path, program, capsys):
    assert program(folder, "--out", tmp_path / "lists") == 0
    assert f"--data.root '{folder}'" in capsys.readouterr().out
    manifest = read_split(tmp_path / "lists", "train", root=folder)
    assert all(Path(file).is_file() for file in manifest.files)
    assert class_names(tmp_path / "lists", labels=[3, 1]) == ["red panda", "zebra"]


def test_names_that_a_list_cannot_hold_are_left_out(folder, program, capsys):
    for name in ("two\nlines.jpg", "back\\slash.jpg", b"caf\xe9.jpg".decode(errors="surrogateescape")):
        (folder / "train" / name).write_bytes(b"")
    assert program(folder) == 0
    found = [path for path in split_of(folder) if path.startswith("train/")]
    assert len(found) == 11  # a name need not be UTF-8
    assert capsys.readouterr().err.count("left out: ") == 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ([], "0 folders with images"),
        (
            ["images/cat/1.jpg", "images/dog/1.jpg"],
            "1 folder with images, and two classes are the least; did you mean",
        ),
        (["1.jpg", "2.jpg"], "looks like one class: give the folder around it"),
        (["train/cat/1.jpg", "val/cat/1.jpg"], "look like splits"),
        (["cat/1.jpg", "dog/1.jpg"], "no class has 3 images"),
    ],
)
def test_other_layouts_are_refused(tmp_path, program, capsys, make, reason):
    for name in make:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0, 8, 8).save(tmp_path / name)
    assert program(tmp_path) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
    assert not list(tmp_path.glob("*.txt"))


def test_bad_parts_are_refused(folder, program, capsys):
    for val, test in ((0, 0.1), (0.5, 0.5), (0.1, -0.1)):
        assert program(folder, "--val", val, "--test", test) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: --val {val:g} --test {test:g}: ")
        assert message.count("\n") == 1


def test_names_from_classes_txt_and_from_folders(tmp_path, capsys):
    (tmp_path / "train.txt").write_text("images/n01/1.jpg 0\nimages/n02/1.jpg 1\nimages/n03/1.jpg 2\n")
    assert class_names(tmp_path) == ["n01", "n02", "n03"]
    (tmp_path / "classes.txt").write_text("n01 house finch, linnet\r\nn02 robin\r\nn0 odd\r\n")
    assert class_names(tmp_path) == ["house finch, linnet", "robin", "n0 odd"]
    assert class_names(tmp_path, labels=[0, 2]) == ["house finch, linnet", "n0 odd"]
    (tmp_path / "classes.txt").write_text("n01 house finch\n")
    assert class_names(tmp_path) == ["n01", "n02", "n03"]
    assert "names 1 of 3 classes" in capsys.readouterr().err
    (tmp_path / "train.txt").write_text("images/1.jpg 0\nimages/2.jpg 1\n")
    assert class_names(tmp_path, labels=[0]) is None
