"""Distillation: the distance, and who teaches which image what."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import train_args
from torch import nn
from torch.nn import functional as F

from training.build import new_model
from training.config import Model, Optim, Recipe, Schedule
from training.distill import Teacher, distance
from training.loop import Trainer
from training.runtime import Runtime


def test_distance_is_cross_entropy_with_the_teachers_answers():
    """Up to the teacher's own entropy, which has no gradient."""
    logits, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    wanted = F.cross_entropy(logits, teacher.softmax(1), reduction="none")
    ours = distance(logits, teacher)
    assert torch.allclose(ours, wanted - torch.distributions.Categorical(logits=teacher).entropy(), atol=1e-6)
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (ours, wanted)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_temperature_softens_both_and_keeps_the_gradient():
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    ours = distance(logits, teacher, temperature=3.0).sum()
    p, q = (teacher / 3).softmax(1), (logits / 3).softmax(1)
    assert torch.isclose(ours, 9 * (p * (p / q).log()).sum(), atol=1e-5)
    gradient = torch.autograd.grad(ours, logits)[0]
    assert torch.allclose(gradient, 3 * (q - p), atol=1e-5)  # T² · 1/T · (q - p)


@pytest.mark.parametrize("itself", [False, True])
def test_loss_of_each_image_by_hand(fresh_accelerate, itself):
    """Another network teaches every image; the student itself those that lack channels, in inference mode."""
    torch.manual_seed(0)
    schedule = Schedule(distill=0.25, temperature=3.0, teacher=None if itself else Path("run"))
    recipe = Recipe(model=Model(body="resnet10"), optim=Optim(label_smoothing=0.1), schedule=schedule)
    student, other = new_model(recipe.model, 3), nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    trainer, teacher = Trainer.__new__(Trainer), Teacher.__new__(Teacher)
    trainer.recipe, trainer.runtime, trainer.model, trainer.step = recipe, Runtime("fp32"), student, 0
    trainer.vocabulary, trainer.teacher = recipe.model.channels, teacher
    teacher.part, teacher.temperature, teacher.student = schedule.distill, schedule.temperature, student
    teacher.runtime, teacher.channels = trainer.runtime, student.stem.parse()
    teacher.other = None if itself else other
    images, targets = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    groups = trainer._groups(images)
    seen = [chosen.select(part, trainer.vocabulary) for part, chosen in groups]
    norms = {name: value.clone() for name, value in student.state_dict().items()}
    with torch.no_grad():
        found = trainer._loss(images, targets, torch.ones(12, dtype=torch.bool))
        student.load_state_dict(norms)
        logits = student(seen, [chosen for _, chosen in groups])  # statistics move on, as they did above
        answers = student.eval()(images) if itself else other(images)
    names = [chosen for part, chosen in groups for _ in range(len(part))]
    assert {len(chosen) for chosen in names} >= {1, 3}
    for i, chosen in enumerate(names):
        wanted = F.cross_entropy(logits[i], targets[i], label_smoothing=0.1)
        if not itself or len(chosen) < 3:
            p, q = (answers[i] / 3).softmax(0), (logits[i] / 3).softmax(0)
            wanted = 0.75 * wanted + 0.25 * 9 * (p * (p / q).log()).sum()
        assert torch.isclose(found[i], wanted, rtol=1e-3), (i, str(chosen))


def retold(run: Path, to: Path, **metadata: str) -> Path:
    """A copy of a finished run whose weights say something else of themselves."""
    to.mkdir()
    (to / "config.yaml").write_text((run / "config.yaml").read_text())
    with safe_open(run / "model.safetensors", "pt") as file:
        told = file.metadata()
    save_file(load_file(run / "model.safetensors"), to / "model.safetensors", told | metadata)
    return to


def test_a_teacher_of_other_classes_is_refused(data_dir, finished_run, tmp_path, program, capsys):
    (data_dir / "classes.txt").write_text("cat\ndog\nfox\n")
    teacher = retold(finished_run, tmp_path / "teacher", class_names=json.dumps(["car", "bus", "van"]))
    flags = ("--schedule.distill", "0.5", "--schedule.teacher", str(teacher))
    assert program("train", *train_args(data_dir, tmp_path / "student", *flags)) == 2
    assert "was trained on other class names (['car', 'bus', 'van'])" in capsys.readouterr().err


def test_a_teacher_of_other_images_is_told(data_dir, finished_run, tmp_path, program, capsys):
    teacher = retold(finished_run, tmp_path / "teacher", train_fingerprint="0" * 64)
    flags = ("--schedule.distill", "0.5", "--schedule.teacher")
    assert program("train", *train_args(data_dir, tmp_path / "student", *flags, str(teacher))) == 0
    told = capsys.readouterr().err
    assert f"note: {teacher} was trained on other images than this run" in told
    assert "see that its classes are the same, in the same order" in told  # the lists name none
    assert program("train", *train_args(data_dir, tmp_path / "again", *flags, str(finished_run))) == 0
    assert "other images" not in capsys.readouterr().err


def test_classes_that_are_chosen_in_other_words_are_the_same(data_dir, tmp_path, program):
    teacher = tmp_path / "teacher"
    assert program("train", *train_args(data_dir, teacher, "--data.labels", "0-1")) == 0
    flags = ("--schedule.distill", "0.5", "--schedule.teacher", str(teacher), "--data.labels")
    assert program("train", *train_args(data_dir, tmp_path / "student", *flags, "1,0")) == 0
    assert program("train", *train_args(data_dir, tmp_path / "other", *flags, "1-2")) == 2


def test_an_expert_on_some_channels_cannot_teach(data_dir, tmp_path, program, capsys):
    expert = ("--model.stem", "plain", "--model.plain-channels", "RG", "--schedule.channel-sets", "RG")
    assert program("train", *train_args(data_dir, tmp_path / "expert", *expert)) == 0
    flags = ("--schedule.distill", "0.5", "--schedule.teacher", str(tmp_path / "expert"))
    assert program("train", *train_args(data_dir, tmp_path / "student", *flags)) == 2
    assert "cannot teach: this plain stem takes the channels RG only" in capsys.readouterr().err


def test_a_teacher_that_never_saw_all_channels_cannot_teach(data_dir, tmp_path, program, capsys):
    parts = ("--schedule.channel-sets", "RG B")
    assert program("train", *train_args(data_dir, tmp_path / "parts", *parts)) == 0
    flags = ("--schedule.distill", "0.5", "--schedule.teacher", str(tmp_path / "parts"))
    assert program("train", *train_args(data_dir, tmp_path / "student", *flags)) == 2
    assert "cannot teach: it never saw all channels, but RG B" in capsys.readouterr().err
