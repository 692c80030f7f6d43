"""What large runs want: a rehearsal, a batch that fits, images that grow, an error that says where."""

import io
import re

import pytest
import torch
import yaml
from tiny import train_args
from torch import nn

from modeling.zoo import build_model
from training.augment import Augmentation, grown, rand_augment, resized
from training.build import load_model
from training.config import Augment, ConfigError, Data, Model, Optim, Recipe
from training.loop import Trainer
from training.memory import Rehearsed
from training.monitor import read_metrics
from training.recipe_file import to_dict
from training.recipes import RECIPES


def test_rehearsal_says_what_a_run_takes_and_keeps_nothing(data_dir, tmp_path, program, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    run = tmp_path / "run"
    assert program("train", *train_args(data_dir, run, "--dry-run")) == 0
    said = capsys.readouterr().out
    for line in ("network ", "batch ", "memory ", "step ", "sweep ", "checkpoint ", "all of it "):
        assert f"\n  {line}" in said
    assert "1 × 8 images, each 3×32×32" in said
    assert "10 of them" in said  # steps
    assert not run.exists()
    assert not list((tmp_path / "scratch").glob("*/config.yaml"))


def test_rehearsal_of_a_run_that_stands_leaves_it_alone(data_dir, finished_run, program):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    assert program("train", *train_args(data_dir, finished_run, "--dry-run")) == 0
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_printed_config_is_the_recipe(tmp_path, program, capsys):
    args = ("train", "quickstart", "--data.path", tmp_path, "--optim.lr", "0.3", "--print-config")
    assert program(*args) == 0
    printed = yaml.safe_load(io.StringIO(capsys.readouterr().out))
    wanted = to_dict(RECIPES["quickstart"][1])
    wanted["data"]["path"], wanted["optim"]["lr"] = str(tmp_path), 0.3
    assert printed == wanted


@pytest.fixture
def small_memory(monkeypatch):
    """A network that runs out of memory with more than so many images at a time; what it was given is kept."""
    seen = []

    def limit(rows: int) -> list[int]:
        loss = Trainer._loss

        def limited(self, images, *rest):
            seen.append(len(images))
            if len(images) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss(self, images, *rest)

        monkeypatch.setattr(Trainer, "_loss", limited)
        return seen

    return limit


def test_a_batch_is_halved_until_it_fits(data_dir, tmp_path, program, small_memory, capsys):
    seen = small_memory(3)
    args = ("--schedule.accumulate", "auto", "--schedule.epochs", "1")
    assert program("train", *train_args(data_dir, tmp_path / "run", *args)) == 0
    assert seen[:3] == [8, 4, 2]
    assert set(seen[3:]) == {2}
    assert "takes its batch in 4 parts" in capsys.readouterr().out


def test_trying_sizes_changes_nothing(data_dir, tmp_path, program):
    """Statistics of norms included: the run is that of a number given by hand."""
    for name, parts in (("tried", "auto"), ("given", "1")):
        args = train_args(data_dir, tmp_path / name, "--schedule.accumulate", parts, "--schedule.epochs", "1")
        assert program("train", *args) == 0
    ours, theirs = (load_model(tmp_path / name)[1].state_dict() for name in ("tried", "given"))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_what_never_fits_is_one_line(data_dir, tmp_path, program, small_memory, capsys):
    small_memory(0)
    assert program("train", *train_args(data_dir, tmp_path / "run", "--schedule.accumulate", "auto")) == 1
    assert "not even 2 images at a time fit" in capsys.readouterr().err
    small_memory(1)
    assert program("train", *train_args(data_dir, tmp_path / "other")) == 1
    assert "CUDA out of memory; add --schedule.accumulate auto" in capsys.readouterr().err


def test_a_norm_of_vectors_is_not_left_alone_with_one_image(data_dir, tmp_path, program, capsys):
    flags = ("--model.body", "matched", "--model.width", "0.1", "--schedule.accumulate", "8")
    assert program("train", *train_args(data_dir, tmp_path / "run", *flags)) == 2
    assert "needs two images at a time: give --data.batch-size 16" in capsys.readouterr().err


def test_rehearsed_steps_leave_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Rehearsed(model):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_compiled_body_computes_the_same():
    torch.manual_seed(0)
    model = build_model("strict", "any-channel", "RGB", 3, width=0.05).train()
    images = [torch.randn(2, 3, 32, 32), torch.randn(2, 1, 32, 32)]
    sets = [model.stem.parse("RGB"), model.stem.parse("G")]
    plain = model(images, sets)
    names = list(model.state_dict())
    # Traced and differentiated as always, but not translated: that takes half a minute of a C++ compiler.
    model.body.compile(dynamic=False, backend="aot_eager")
    assert torch.allclose(model(images, sets), plain, atol=1e-5)
    assert list(model.state_dict()) == names
    assert type(model.materialize("G").body) is type(model.body)


def test_best_checkpoint_outlives_the_newest(data_dir, tmp_path, program, monkeypatch):
    """The first sweep is made the best one; two newer checkpoints are kept beside it."""
    whole, sweeps = Trainer._validate, []

    def first_is_best(self):
        sweeps.append(whole(self))
        return len(sweeps) == 1

    monkeypatch.setattr(Trainer, "_validate", first_is_best)
    run = tmp_path / "run"
    assert program("train", *train_args(data_dir, run, "--schedule.epochs", "3", "--schedule.keep", "1")) == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "BEST",
        "LAST",
        "step-00000005",
        "step-00000015",
    ]
    assert (run / "checkpoints/BEST").read_text() == "step-00000005"


def test_learning_rate_follows_the_batch(data_dir, tmp_path, program):
    args = ("--schedule.epochs", "1", "--optim.warmup-epochs", "0", "--optim.decay", "constant")
    for name, flags in {"as it is": (), "scaled": ("--optim.lr-batch", "32")}.items():
        assert program("train", *train_args(data_dir, tmp_path / name, *args, *flags)) == 0
    rates = {
        name: {row["train/lr"] for row in read_metrics(tmp_path / name) if "train/lr" in row}
        for name in ("as it is", "scaled")
    }
    assert rates["as it is"] == {0.02}
    assert rates["scaled"] == {0.02 * 8 / 32}


def test_error_names_the_step_and_what_came_before(data_dir, tmp_path, program, monkeypatch, capsys):
    loss = Trainer._loss

    def broken(self, *args):
        return loss(self, *args) * (float("nan") if self.step == 5 else 1)

    monkeypatch.setattr(Trainer, "_loss", broken)
    flags = ("--schedule.log-steps", "8", "--schedule.checkpoint-steps", "4", "--schedule.epochs", "3")
    assert program("train", *train_args(data_dir, tmp_path / "run", *flags, "--data.batch-size", "4")) == 1
    said = capsys.readouterr().err
    assert re.search(r"the loss is nan on rank 0 at step 6 \(before it: (\d\.\d{3} ){4}\d\.\d{3}\)", said), said
    assert "the last checkpoint is of step 4" in said


def test_a_gradient_that_breaks_is_not_saved_either(data_dir, tmp_path, program, monkeypatch, capsys):
    """The loss of that step is sound, but the weights behind it are not."""
    backward = Trainer._backward

    def broken(self, batch):
        value = backward(self, batch)
        if self.step == 4:  # an epoch's last: a checkpoint follows at once
            next(self.model.parameters()).grad.fill_(float("inf"))
        return value

    monkeypatch.setattr(Trainer, "_backward", broken)
    assert program("train", *train_args(data_dir, tmp_path / "run", "--schedule.log-steps", "50")) == 1
    assert "a gradient stopped being finite by step 5; the last checkpoint is of step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [(32, 64, [32, 32, 48, 48, 64, 64]), (64, 64, [64] * 6), (40, 64, [40, 40, 40, 56, 64, 64])],
)
def test_images_grow_until_half_of_the_training_is_over(first, last, wanted):
    assert [grown(first, last, progress) for progress in (0, 0.2, 0.25, 0.45, 0.5, 1)] == wanted


def test_a_shrunken_image_keeps_its_mean_and_labels_stay():
    images = torch.rand(4, 3, 64, 64)
    labels = torch.arange(4)
    small, same = Augmentation(Augment(grow_from=32), 4, 0, 0)(images, labels, 0, progress=0.0)
    assert small.shape == (4, 3, 32, 32)
    assert same is labels
    assert torch.allclose(small.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=5e-3)
    assert resized(images, 64) is images


def test_rand_augment_stays_in_the_range_of_images_and_repeats():
    from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    images = ((torch.rand(20, 3, 32, 32) - mean) / std).half()
    change = Augmentation(Augment(rand_augment=2, magnitude=15), 3, 0, 0)
    once, again, other = (change(images, torch.arange(20), step)[0] for step in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.dtype == torch.float16
    assert once.is_contiguous(memory_format=torch.channels_last)
    shown = once.float() * std + mean
    assert shown.min() > -0.01 and shown.max() < 1.01
    nothing = torch.nn.Identity()
    assert torch.allclose(rand_augment(images, nothing).float(), images.float(), atol=2e-3)


@pytest.mark.parametrize(
    ("flag", "make"),
    [
        ("--augment.rand-augment", lambda: Augment(rand_augment=-1)),
        ("--augment.magnitude", lambda: Augment(magnitude=31)),
        ("--augment.grow-from", lambda: Augment(grow_from=16)),
        ("--augment.grow-from", lambda: Recipe(augment=Augment(grow_from=96), data=Data(size=64))),
        (
            "--augment.rand-augment",
            lambda: Recipe(augment=Augment(rand_augment=1), model=Model(vocabulary="450+550")),
        ),
        ("--optim.lr-batch", lambda: Optim(lr_batch=0)),
    ],
)
def test_settings_that_cannot_be(flag, make):
    with pytest.raises(ConfigError, match=re.escape(flag)):
        make()
