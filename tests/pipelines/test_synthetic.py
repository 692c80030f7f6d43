from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import synthetic
from pipelines.errors import DataError
from pipelines.manifest import read_split

SMALL = {"train_per_class": 2, "val_per_class": 1, "test_per_class": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data") / "set", **SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_same_seed_same_bytes(dataset, tmp_path):
    assert contents(synthetic.write_dataset(tmp_path / "again", **SMALL)) == contents(dataset)


def test_another_seed_changes_every_image(dataset, tmp_path):
    other = contents(synthetic.write_dataset(tmp_path / "other", **SMALL, seed=1))
    for name, data in contents(dataset).items():
        assert (other[name] != data) == name.endswith((".JPEG", ".json")), name


def test_all_images_differ(dataset):
    images = [data for name, data in contents(dataset).items() if name.endswith(".JPEG")]
    assert len(set(images)) == len(images) == 12 * 4


def test_a_longer_training_split_keeps_the_test_images(dataset, tmp_path):
    longer = synthetic.write_dataset(tmp_path / "longer", **SMALL | {"train_per_class": 3})
    images = [[Path(f).read_bytes() for f in read_split(root, "test").files] for root in (dataset, longer)]
    assert images[0] == images[1]


def test_layout_is_that_of_the_brief(dataset):
    assert sorted(path.name for path in dataset.iterdir()) == [
        "classes.txt",
        "images",
        "synthetic.json",
        "test.txt",
        "train.txt",
        "val.txt",
    ]
    assert (dataset / "train.txt").read_text().startswith("images/c00/c00_0001.JPEG 0\n")
    assert (dataset / "classes.txt").read_text().startswith("c00 red striped disc\n")


def test_lists_name_every_image_once_under_its_label(dataset):
    splits = {split: read_split(dataset, split) for split in ("train", "val", "test")}
    assert {split: len(manifest) for split, manifest in splits.items()} == {"train": 24, "val": 12, "test": 12}
    listed = [path for manifest in splits.values() for path in manifest.paths]
    assert sorted(listed) == sorted(name for name in contents(dataset) if name.endswith(".JPEG"))
    for manifest in splits.values():
        assert manifest.classes == 12
        for path, label in zip(manifest.paths, manifest.labels, strict=True):
            assert path.split("/")[1] == f"c{label:02d}"


def test_every_class_has_a_name_of_its_own(dataset):
    rows = [row.split(" ", 1) for row in (dataset / "classes.txt").read_text().splitlines()]
    assert [class_id for class_id, _ in rows] == [f"c{label:02d}" for label in range(12)]
    assert len({name for _, name in rows}) == 12


def test_files_are_colour_jpegs_of_varied_size(dataset):
    sizes = set()
    for file in dataset.glob("images/*/*.JPEG"):
        with Image.open(file) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.layer[1][1:3] == image.layer[0][1:3] == (1, 1)  # chroma at full resolution
            assert 72 <= min(image.size) <= 128
            assert max(image.size) <= 1.5 * min(image.size) + 1
            sizes.add(image.size)
    assert len(sizes) > 30


@pytest.mark.parametrize("label", range(12))
def test_the_object_is_bright_in_its_own_channel_and_dark_in_the_others(label):
    """In each channel it stands out; in one alone the other two colours look the same."""
    pixels = synthetic.draw_image(label, np.random.default_rng(0)).astype(float)
    own = label // 4
    excess = pixels[..., own] - pixels.mean(2)
    on = excess > 35  # only the object is that colourful
    assert 0.1 < on.mean() < 0.6
    for channel in range(3):
        step = pixels[on][:, channel].mean() - np.median(pixels[~on][:, channel])
        assert step > 30 if channel == own else step < -30


def test_a_complete_set_is_reused(dataset, monkeypatch):
    monkeypatch.setattr(synthetic, "draw_image", lambda *_: pytest.fail("drawn again"))
    assert synthetic.write_dataset(dataset, **SMALL) == dataset


def test_an_empty_folder_is_filled(tmp_path):
    assert (synthetic.write_dataset(tmp_path, **SMALL) / "train.txt").is_file()


def test_other_parameters_are_refused(dataset):
    with pytest.raises(DataError, match=f"{dataset}.*remove it"):
        synthetic.write_dataset(dataset, **SMALL, seed=1)


def test_a_set_with_a_missing_image_is_refused(tmp_path):
    out = synthetic.write_dataset(tmp_path / "set", **SMALL)
    (out / "images/c03/c03_0002.JPEG").unlink()
    with pytest.raises(DataError, match="remove it"):
        synthetic.write_dataset(out, **SMALL)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_ours_is_refused_and_left_alone(tmp_path, kind):
    thesis = tmp_path / "out" / "thesis.txt" if kind == "folder" else tmp_path / "out"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("years of work")
    with pytest.raises(DataError, match=f"{tmp_path / 'out'}.*choose another path"):
        synthetic.write_dataset(tmp_path / "out", **SMALL)
    assert contents(tmp_path) == {str(thesis.relative_to(tmp_path)): b"years of work"}


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, fault):
    draw, drawn = synthetic.draw_image, []

    def draw_some(*args):
        drawn.append(args)
        if len(drawn) > 20:
            raise fault
        return draw(*args)

    monkeypatch.setattr(synthetic, "draw_image", draw_some)
    expected = DataError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        synthetic.write_dataset(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_losing_a_race_to_an_equal_set_is_no_error(tmp_path, monkeypatch):
    out, save = tmp_path / "set", synthetic._save_image

    def overtaken(*args):
        monkeypatch.setattr(synthetic, "_save_image", save)
        synthetic.write_dataset(out, **SMALL)  # the other process is done first
        save(*args)

    monkeypatch.setattr(synthetic, "_save_image", overtaken)
    assert synthetic.write_dataset(out, **SMALL) == out
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("wrong", [{"train_per_class": 0}, {"test_per_class": -1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(DataError, match="at least 1 image"):
        synthetic.write_dataset(tmp_path / "set", **SMALL | wrong)


def test_command_line_names_the_next_step(tmp_path, capsys):
    out = tmp_path / "my set"
    numbers = ["--train-per-class", "1", "--val-per-class", "1", "--test-per-class", "1"]
    assert synthetic.main([str(out), *numbers]) == 0
    assert f"python -m training.train quickstart --data.path '{out}'" in capsys.readouterr().out


def test_command_line_reports_errors_in_one_line(dataset, capsys):
    assert synthetic.main([str(dataset), "--seed", "7"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
