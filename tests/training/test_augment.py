"""Mixup and CutMix, and what else a step may do."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import train_args
from torch import nn

from modeling.network import ChannelNet
from training.augment import Augmentation
from training.config import Augment
from training.loop import running_mean
from training.monitor import read_metrics


@pytest.mark.parametrize("settings", [Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=0.4, cutmix=1.0)])
def test_what_is_drawn_depends_on_seed_step_and_rank_alone(settings):
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3

    def mixed(seed=0, rank=0, step=5):
        torch.manual_seed(torch.seed() % 1000)
        before = torch.get_rng_state()
        result = Augmentation(settings, 3, seed, rank)(images, labels, step)
        assert torch.equal(torch.get_rng_state(), before)
        return result

    ours, targets = mixed()
    assert torch.equal(ours, mixed()[0])
    for other in ({"seed": 1}, {"rank": 1}, {"step": 6}):
        assert not torch.equal(ours, mixed(**other)[0])
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert targets.shape == (6, 3)
    assert torch.allclose(targets.sum(1), torch.ones(6))


def test_images_and_labels_are_mixed_by_the_same_parts():
    """Images that are their own label in every pixel show by how much each was mixed."""
    labels = torch.arange(4)
    images = nn.functional.one_hot(labels, 4).float()[:, :, None, None].expand(4, 4, 8, 8)
    for settings in (Augment(mixup=1.0), Augment(cutmix=1.0)):
        for step in range(20):
            mixed, targets = Augmentation(settings, 4, 0, 0)(images, labels, step)
            assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-5)


def test_nothing_to_mix_is_nothing_done():
    images, labels = torch.randn(2, 3, 8, 8), torch.arange(2)
    assert Augmentation(Augment(), 2, 0, 0)(images, labels, 0) == (images, labels)


@pytest.fixture
def frozen_norms(monkeypatch):
    """Norms that use running statistics in training too, so that an image's gradient is its own."""
    monkeypatch.setattr(ChannelNet, "train", lambda self, mode=True: nn.Module.train(self, False))


def test_parts_of_a_batch_add_up(frozen_norms, data_dir, tmp_path, program):
    for parts in ("1", "2", "3"):
        flags = ["--schedule.channel-sets", "full", "--schedule.accumulate", parts, "--optim.lr", "0.001"]
        assert program("train", *train_args(data_dir, tmp_path / parts, *flags, "--schedule.epochs", "1")) == 0
    whole, halves, thirds = (load_file(tmp_path / parts / "model.safetensors") for parts in "123")
    for name, weight in whole.items():
        assert torch.allclose(weight, halves[name], atol=1e-5), name
        assert torch.allclose(weight, thirds[name], atol=1e-5), name


def test_clipped_gradients_move_nothing_far(data_dir, tmp_path, program):
    for name, flags in {"free": (), "clipped": ("--optim.clip", "1e-6", "--optim.weight-decay", "0")}.items():
        assert program("train", *train_args(data_dir, tmp_path / name, *flags, "--schedule.epochs", "1")) == 0
    norms = [row["train/grad_norm"] for row in read_metrics(tmp_path / "clipped") if "train/grad_norm" in row]
    assert min(norms) > 0.01  # as they were before
    free, clipped = (
        load_file(tmp_path / name / "model.safetensors")["body.fc.weight"] for name in ("free", "clipped")
    )
    start = fresh_weight(data_dir, tmp_path, program)
    assert (clipped - start).abs().max() < 1e-6 < 1e-3 < (free - start).abs().max()


def fresh_weight(data_dir, tmp_path, program):
    """The same weight after steps of next to no length."""
    flags = ("--optim.lr", "1e-12", "--schedule.epochs", "1")
    assert program("train", *train_args(data_dir, tmp_path / "fresh", *flags)) == 0
    return load_file(tmp_path / "fresh" / "model.safetensors")["body.fc.weight"]


def test_running_mean_of_weights():
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("seen", torch.zeros(1))
    mean = running_mean(model, 0.75)
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        model.seen.fill_(value)
        mean.update_parameters(model)
    wanted = 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 4
    assert float(mean.module.weight.detach()) == float(mean.module.seen) == pytest.approx(wanted)
    assert running_mean(model, 0.0) is None
