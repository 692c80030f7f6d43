"""Statistics of norms, taken anew."""

import pytest
import torch
from tiny import train_args
from torch import nn

from modeling.channels import ChannelSet
from modeling.zoo import build_model
from pipelines.batch import Batch
from training.evaluation.recalibrate import recalibrate
from training.records import read_record
from training.runtime import Runtime
from training.sweep import specialise


def batch(images):
    rows = torch.zeros(len(images), dtype=torch.int64)
    return Batch(images, rows, torch.ones(len(images), dtype=torch.bool), rows)


def test_statistics_are_means_over_the_batches_of_that_set(fresh_accelerate):
    torch.manual_seed(0)
    sets = [ChannelSet(("R", "G")), ChannelSet(("B",))]
    networks = {chosen: nn.Sequential(nn.BatchNorm2d(len(chosen)), nn.ReLU()).eval() for chosen in sets}
    for network in networks.values():
        network[0].running_mean.fill_(9)
    batches = [batch(3 * torch.randn(4, 3, 5, 5) + k) for k in range(3)]
    recalibrate(networks, ("R", "G", "B"), batches, Runtime())
    for chosen, network in networks.items():
        parts = [b.images[:, chosen.indices(("R", "G", "B"))] for b in batches]
        mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
        var = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
        assert torch.allclose(network[0].running_mean, mean, atol=1e-5)
        assert torch.allclose(network[0].running_var, var, atol=1e-5)
        assert not network[0].training
        assert network[0].momentum == 0.1


@pytest.mark.parametrize("norm", ["shared", "per-set"])
@pytest.mark.parametrize("body", ["resnet10", "strict", "matched"])
def test_norms_that_would_be_folded_are_measured_too(fresh_accelerate, norm, body):
    """The stem's, which has the statistics of a mixture where all sets share it, and those of two-layer bodies."""
    torch.manual_seed(0)
    network = build_model(body, "any-channel", "RGB", 4, width=0.25, norm=norm).eval()
    chosen, images = ChannelSet(("G",)), 5 + torch.randn(6, 3, 32, 32)
    before = network.stem.norm.ordinary(chosen).running_mean
    plain = network.materialize(chosen)
    (unfolded,) = specialise(network, [chosen], fold=False).values()
    alone = images[:, 1:2]
    assert torch.allclose(unfolded(alone), plain(alone), atol=1e-4)
    recalibrate({chosen: unfolded}, ("R", "G", "B"), [batch(images)], Runtime())
    features = network.stem.convolve(alone, chosen)
    assert torch.allclose(unfolded.stem.norm.running_mean, features.mean((0, 2, 3)), atol=1e-4)
    assert torch.equal(network.stem.norm.ordinary(chosen).running_mean, before)
    bodies = [m for m in unfolded.body.modules() if hasattr(m, "running_mean")]
    assert bodies and all(m.running_mean.abs().max() > 0 for m in bodies)


def test_evaluation_keeps_both_records(finished_run, program):
    assert program("evaluate", finished_run) == 0
    assert program("evaluate", finished_run, "--recalibrate", "24") == 0
    plain, again = (read_record(finished_run / f"sweep-test{kind}.json") for kind in ("", "-recalibrated"))
    assert again["name"] == f"{plain['name']}, recalibrated"
    assert (plain["recalibrated_on"], again["recalibrated_on"]) == (0, 24)
    assert plain["scores"].keys() == again["scores"].keys()
    assert any(plain["scores"][name]["nll"] != again["scores"][name]["nll"] for name in plain["scores"])


def test_an_ordinary_network_with_other_things_for_missing_channels(data_dir, tmp_path, program, capsys):
    """What stands for missing channels makes no difference while none are missing, in training or in a test."""
    runs = {}
    for stem in ("zero-fill", "repeat"):
        runs[stem] = tmp_path / stem
        flags = ("--model.stem", stem, "--schedule.channel-sets", "full", "--schedule.eval-epochs", "2")
        assert program("train", *train_args(data_dir, runs[stem], *flags)) == 0
    ways = ("mean", "rescaled", "repeat", "black")
    for way in ways:
        assert program("evaluate", runs["zero-fill"], "--missing", way) == 0
    scores = {way: read_record(runs["zero-fill"] / f"sweep-test-{way}.json")["scores"] for way in ways}
    assert len({scores[way]["RGB"]["top1"] for way in ways}) == 1
    assert len({scores[way]["R"]["nll"] for way in ways}) == 4
    assert program("evaluate", runs["zero-fill"], runs["repeat"]) == 0
    as_trained = {stem: read_record(run / "sweep-test.json")["scores"] for stem, run in runs.items()}
    assert as_trained["zero-fill"] == scores["black"]
    assert as_trained["repeat"] == scores["repeat"]


def test_networks_that_leave_nothing_open(finished_run, program, capsys):
    assert program("evaluate", finished_run, "--missing", "mean") == 2
    assert "any-channel stem and was trained on sandwich channel sets" in capsys.readouterr().err
