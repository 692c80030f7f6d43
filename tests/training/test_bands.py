"""Networks on synthetic bands: sets and bands that training never saw."""

from pathlib import Path

import pytest
import torch
from tiny import train_args

from modeling.channels import ChannelSet
from training.build import new_model
from training.config import ConfigError, Model
from training.drawings import channel_grid
from training.evaluate import Evaluation
from training.evaluation.metrics import from_hex
from training.evaluation.variants import say_what_has_no_norm
from training.recipes import RECIPES
from training.records import read_record

VOCABULARY = "450+530+610"
SETS = "450+530+610 530 450+610"


@pytest.fixture
def band_run(data_dir, tmp_path, program):
    """A run directory of a network on three bands, by its embedding."""

    def train(embedding):
        run_dir = tmp_path / embedding
        flags = ["--model.vocabulary", VOCABULARY, "--model.norm", "moments", "--model.embedding", embedding]
        words = [*flags, "--schedule.channel-sets", SETS]
        assert program("train", *train_args(data_dir, run_dir, *words)) == 0
        return run_dir

    return train


def test_bands_that_training_never_saw(band_run, program, capsys):
    run_dir = band_run("wavelengths")
    assert "channel sets 450+530+610 530 450+610" in capsys.readouterr().out
    assert program("evaluate", run_dir) == 0
    everything = read_record(run_dir / "sweep-test.json")
    assert len(everything["scores"]) == 7
    assert everything["trained_on"] == SETS.split()

    assert program("evaluate", run_dir, "--channel-sets", "450+530+610", "475", "450+500+640", "610") == 0
    chosen = read_record(run_dir / "sweep-test-450+530+610-475-450+500+640-610.json")
    assert list(chosen["scores"]) == ["450+530+610", "475", "450+500+640", "610"]
    assert chosen["cost"]["sets"].keys() == chosen["scores"].keys()
    for name in ("450+530+610", "610"):
        assert chosen["scores"][name] == everything["scores"][name]
        assert chosen["right"][name] == everything["right"][name]

    assert program("evaluate", run_dir, "--channel-sets", "475", "451", "--unknown", "nearest") == 0
    nearest = read_record(run_dir / "sweep-test-475-451-nearest.json")
    assert nearest["stand_ins"] == {"475": "450", "451": "450"}
    assert nearest["scores"]["475"]["nll"] != chosen["scores"]["475"]["nll"]


def test_learned_ids_take_the_nearest_band_or_refuse(band_run, program, capsys):
    run_dir = band_run("ids")
    assert program("evaluate", run_dir, "--channel-sets", "475") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: --channel-sets 475: ")
    assert "--unknown nearest" in line
    assert program("evaluate", run_dir, "--channel-sets", "475", "450", "--unknown", "nearest") == 0
    for bad in ("900", "RG", "450+450"):
        assert program("evaluate", run_dir, "--channel-sets", bad) == 2
        assert f"--channel-sets {bad}: " in capsys.readouterr().err
    assert not (run_dir / "sweep-test.json").exists()


def test_questions_that_make_no_sense():
    with pytest.raises(ConfigError, match="--unknown nearest is for bands that --channel-sets names"):
        Evaluation(run_dirs=(Path("run"),), unknown="nearest")
    with pytest.raises(ConfigError, match="--recalibrate -1 must not be negative"):
        Evaluation(run_dirs=(Path("run"),), recalibrate=-1)


def test_other_channel_sets_are_another_record():
    def name(*sets):
        return Evaluation(run_dirs=(Path("run"),), channel_sets=sets).record

    many = [str(length) for length in range(400, 480, 5)]
    names = [name(), name("RG"), name("R", "G"), name(*many), name(*many[::-1])]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 100


def test_sets_without_a_norm_of_their_own_are_said(data_dir, tmp_path, program, capsys):
    run_dir = tmp_path / "run"
    assert program("train", *train_args(data_dir, run_dir, "--schedule.channel-sets", "RG B")) == 0
    assert program("evaluate", run_dir) == 0
    assert "was not trained on RGB RB GB R G, and its norm" in capsys.readouterr().err
    assert program("evaluate", run_dir, "--channel-sets", "GR", "B") == 0
    assert "was not trained" not in capsys.readouterr().err


def test_a_record_says_which_images_were_right(finished_run, program):
    assert program("evaluate", finished_run) == 0
    record = read_record(finished_run / "sweep-test.json")
    for name, score in record["scores"].items():
        assert from_hex(record["right"][name], record["images"]).sum() == score["top1"]


def test_grid_of_bands_is_gray():
    images = torch.randn(2, 5, 8, 8)
    grid = channel_grid(images, ("450", "500", "550", "600", "650"))
    assert grid.shape == (3, 16, 40)
    assert torch.equal(grid[0], grid[2])
    assert 0 <= grid.min() <= grid.max() <= 1
    shown = images.permute(0, 2, 1, 3).reshape(16, 40)  # images below each other, bands side by side
    inner = (grid[0] > 0) & (grid[0] < 1)
    assert torch.corrcoef(torch.stack([grid[0][inner], shown[inner]]))[0, 1] > 0.999


def test_pairs_that_never_met_are_told(capsys):
    recipe = RECIPES["spectral"][1]
    model = new_model(recipe.model, 4)
    say_what_has_no_norm(model, recipe, [ChannelSet(("450", "530"))])
    assert "never saw 450 450+530 530 in one image" in capsys.readouterr().err
    for name in ("450", "530"):
        model.stem.train()(torch.randn(2, 1, 16, 16), ChannelSet((name,)))
    say_what_has_no_norm(model, recipe, [ChannelSet(("450", "530")), ChannelSet(("450",))])
    assert "spectral never saw 450+530 in one image" in capsys.readouterr().err
    model.stem(torch.randn(2, 2, 16, 16), ChannelSet(("450", "530")))
    say_what_has_no_norm(model, recipe, [ChannelSet(("450", "530"))])
    assert capsys.readouterr().err == ""


def test_kernels_mixed_for_each_image_have_no_moments():
    with pytest.raises(ConfigError, match="norm moments is for stems with one kernel"):
        Model(stem="attention", norm="moments")
