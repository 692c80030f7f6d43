import copy
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from modeling.affine import prove
from modeling.channels import ChannelSet
from modeling.cost import count_macs, count_parameters
from modeling.depth import audit
from modeling.merge import compose
from modeling.network import ChannelNet
from modeling.resnet import resnet_body
from modeling.zoo import BODIES, StemShape, build_model, build_stem

ROOT = Path(__file__).parents[2]
RGB = ("R", "G", "B")
SETS = [str(chosen) for chosen in ChannelSet.all_of(RGB)]
SMALL = {  # bodies at widths that take no time
    "strict": {"width": 1 / 16},
    "matched": {"width": 1 / 16},
    "rrdb": {"width": 1 / 2, "growth": 8},
    "attention": {"width": 1 / 6},
    "graph": {"width": 1 / 6, "neighbours": 5},
    "rrdb-attention": {"width": 1 / 2, "growth": 8},
    "recurrent": {"width": 1 / 2, "steps": 2},
}
DEPTHS = {  # D0 to D3, as modeling/two_layer.py tells them
    "strict": (4, 4, 4, 4),
    "matched": (4, 6, 4, 6),
    "rrdb": (4, 33, 27, 33),
    "attention": (4, 17, 11, 13),
    "graph": (4, 17, 9, 15),
    "rrdb-attention": (4, 25, 19, 23),
    "recurrent": (4, 12, 12, 6),
}
CONVOLUTIONAL = ["strict", "matched"]


def fresh(body, stem="any-channel", **options):
    torch.manual_seed(0)
    return build_model(body, stem, RGB, 5, **{**SMALL[body], **options})


@cache
def settled(body, stem="any-channel", **options):
    """A small network whose norms have seen data of every channel set."""
    model = fresh(body, stem, **options).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name in SETS:
            model(torch.randn(4, len(name), 32, 32), name)
    return model.eval()


@pytest.mark.parametrize("body", SMALL)
@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 33, 47), (1, 64, 50)])
def test_any_channels_and_any_size(body, shape):
    batch, height, width = shape
    for name in ("RGB", "GB", "R"):
        logits = settled(body)(torch.randn(batch, len(name), height, width), name)
        assert logits.shape == (batch, 5)
        assert logits.isfinite().all()


@pytest.mark.parametrize("body", SMALL)
def test_materialized_network_computes_the_same(body):
    model = settled(body)
    with torch.no_grad():
        for name in SETS:
            x = torch.randn(2, len(name), 37, 32)
            assert torch.allclose(model.materialize(name)(x), model(x, name), atol=1e-4)


@pytest.mark.parametrize("stem", ["zero-fill", "slices", "table", "hypernet", "attention"])
def test_any_stem(stem):
    model, x = settled("strict", stem), torch.randn(2, 2, 33, 32)
    with torch.no_grad():
        assert torch.allclose(model.materialize("RB")(x), model(x, "RB"), atol=1e-4)


@pytest.mark.parametrize("body", SMALL)
def test_channels_may_stand_in_any_order(body):
    model, x = settled(body), torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        assert torch.allclose(model(x), model(x[:, [2, 0, 1]], "BRG"), atol=1e-4)


@pytest.mark.parametrize("body", SMALL)
def test_memory_format_does_not_matter(body):
    model, x = settled(body), torch.randn(2, 3, 40, 32)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(model(x), other(x.contiguous(memory_format=torch.channels_last)), atol=1e-4)


@pytest.mark.parametrize("body", SMALL)
@pytest.mark.parametrize("options", [{}, {"pooling": "covariance"}])
def test_every_parameter_gets_a_gradient(body, options):
    model = fresh(body, stem="slices", **options).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model([torch.randn(2, 3, 33, 32), torch.randn(2, 1, 33, 32)], ChannelSet.all_of(RGB)[::6])
    logits.float().logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("body", SMALL)
def test_half_precision_is_close(body):
    model, x = settled(body), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x).float()
    bound = 0.5 if body == "graph" else 0.1  # neighbours may change
    assert (half - wanted).norm() < bound * wanted.norm()


@pytest.mark.parametrize("body", SMALL)
def test_weights_survive_being_saved(body):
    model, other, x = settled(body), fresh(body).eval(), torch.randn(1, 3, 32, 32)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("body", SMALL)
def test_export(body):
    plain, x = settled(body).materialize("RG"), torch.randn(1, 2, 32, 32)
    exported = torch.export.export(plain, (x,)).module()
    assert torch.allclose(exported(x), plain(x), atol=1e-5)


@pytest.mark.parametrize("body", SMALL)
def test_four_blocks(body):
    model = fresh(body)
    names = model.body.blocks
    assert len(names) + 1 == 4
    assert [name for name, part in model.body.named_children() if count_parameters(part)] == names
    assert isinstance(model.body.get_submodule(names[-1])[-1], nn.Linear)


@pytest.mark.parametrize("body", SMALL)
def test_depth_is_as_told(body):
    options = {"steps": 4} if body == "recurrent" else {}
    network, x = fresh(body, **options).materialize(), torch.randn(1, 3, 32, 32)
    found = audit(network, x)
    assert prove(network, x).error < 1e-9
    assert (found.d0, found.d1, found.d2, found.d3) == DEPTHS[body]


@pytest.mark.parametrize(("body", "affine"), [("strict", 5), ("attention", 11)])
def test_covariances_are_one_affine_map_more_behind_a_nonlinearity(body, affine):
    network = fresh(body, pooling="covariance").materialize()
    found = audit(network, torch.randn(1, 3, 32, 32))
    assert (found.d2, found.d3) == (affine, DEPTHS[body][3] + 1)


@pytest.mark.parametrize("file", ["modeling/two_layer.py", "docs/report.md"])
def test_tables_of_depths_are_those_that_are_measured(file):
    """Rows of `| body … | … | D1 | D2 | D3 |`, which all have D0 = 4."""
    rows = re.findall(
        r"^\| `?([a-z-]+)[^|]*\|.*\| (\d+) \| (\d+) \| (\d+) \|$", (ROOT / file).read_text(), re.MULTILINE
    )
    assert {body: (4, *map(int, depths)) for body, *depths in rows} == DEPTHS


@pytest.mark.parametrize(("body", "count"), [("strict", 4), ("matched", 6)])
@pytest.mark.parametrize("deep", [False, True])
def test_weight_layers_of_what_is_deployed(body, count, deep):
    model = settled(body, deep=deep)
    model.anneal(1)
    plain = model.materialize("RGB")
    layers = [part for part in plain.modules() if any(True for _ in part.parameters(recurse=False))]
    assert [type(layer) for layer in layers] == [nn.Conv2d] * (count - 1) + [nn.Linear]


def test_matched_layers_are_one_affine_map_each():
    """What stands before the ReLU of such a layer is one convolution of rank 1 in each pair of features."""
    layer = settled("matched").materialize("RGB").body.layer1
    x = torch.randn(1, 32, 17, 17)
    dense = compose(layer[0], layer[1])
    assert dense.weight.shape == (64, 32, 7, 7)
    assert torch.allclose(dense(x), layer[1](layer[0](x)), atol=1e-4)


@pytest.mark.parametrize("body", CONVOLUTIONAL)
def test_trained_deep_and_merged_computes_the_same(body):
    model, x = settled(body, deep=True), torch.randn(2, 3, 33, 32)
    with torch.no_grad():
        for progress in (0, 0.5, 1, 2):
            model.anneal(progress)
            assert torch.allclose(model.materialize()(x), model(x), atol=1e-4)
    shallow = settled(body)
    assert count_parameters(model) > 1.1 * count_parameters(shallow)
    assert count_parameters(model.materialize()) == count_parameters(shallow.materialize())


@pytest.mark.parametrize("body", CONVOLUTIONAL)
def test_deep_training_changes_what_is_computed_until_it_is_annealed(body):
    model, x = settled(body, deep=True), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = []
        for progress in (0, 0.5, 1):
            model.anneal(progress)
            outputs.append(model(x))
    assert not any(torch.allclose(one, other, atol=1e-2) for one, other in pairwise(outputs))


def test_costs_against_hand_counts():
    x = torch.zeros(1, 3, 64, 64)
    stem, c = 3 * 49 * 32 * 256, 32
    strict = 25 * c * 2 * c * 64 + 9 * 2 * c * 4 * c * 16
    assert count_macs(settled("strict").materialize(), x) == stem + strict + 8 * c * 5
    matched = (49 * c + c * 2 * c) * 256 + (49 * 2 * c + 2 * c * 4 * c) * 64
    assert count_macs(settled("matched").materialize(), x) == stem + matched + 8 * c * 5


@pytest.mark.parametrize("body", [body for body in SMALL if body != "strict"])
def test_costs_no_more_than_a_resnet34(body):
    """Which has 300 million multiply-adds at 64 px and 21 million parameters."""
    model = build_model(body, "zero-fill", RGB, 100)
    assert count_macs(model.materialize(), torch.zeros(1, 3, 64, 64)) < 300e6
    assert count_parameters(model) < 4e6


def test_the_classifier_of_a_wide_body_sees_what_that_of_a_resnet_sees():
    """A vector as long as 512 features: steps that suit one suit the other."""
    model, seen = build_model("matched", "any-channel", RGB, 5, width=1 / 4).train(), []
    model.body.head.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(torch.randn(32, 3, 64, 64))
    assert seen[0].shape[1] == 1024
    assert seen[0].square().sum(1).mean().item() == pytest.approx(512, rel=0.02)


@pytest.mark.parametrize("pooling", ["mean", "mean-std", "covariance"])
def test_pooling_of_the_head(pooling):
    model = settled("strict", pooling=pooling)
    assert model.body.head.fc.in_features == {"mean": 128, "mean-std": 256, "covariance": 64 * 65 // 2}[pooling]
    x = torch.randn(2, 1, 40, 32)
    with torch.no_grad():
        assert torch.allclose(model.materialize("G")(x), model(x, "G"), atol=1e-4)


def test_options_reach_the_body():
    assert fresh("strict", kernel_size=3).body.layer1[0].kernel_size == (3, 3)
    assert fresh("matched", kernel_size=9).body.layer2[0].kernel_size == (9, 9)
    assert fresh("rrdb", growth=4).body.layer2[3].dense[0].convs[0].out_channels == 8
    assert fresh("graph", neighbours=3).body.layer1.grapher[2].neighbours == 3
    assert fresh("recurrent", steps=7).body.layer1.steps == 7
    assert fresh("attention", width=1 / 3).stem.norm.weight.shape == (7, 64)
    assert fresh("attention", norm="shared").stem.norm.weight.shape == (32,)


@pytest.mark.parametrize("options", [{"width": 0}, {"kernel_size": 4}, {"growth": 0}, {"steps": 0}])
def test_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        build_model("rrdb", "slices", RGB, 5, **options)


def test_an_option_that_nobody_has():
    with pytest.raises(TypeError, match="wheels"):
        build_model("rrdb", "slices", RGB, 5, wheels=4)


def test_resnets_are_what_they_were():
    torch.manual_seed(0)
    ours = build_model("resnet10", "any-channel", RGB, 5, width=3.0)
    torch.manual_seed(0)
    reference = ChannelNet(build_stem("any-channel", RGB), resnet_body("resnet10", 5))
    weights = reference.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    assert BODIES["resnet10"].stem == StemShape(64, 7, 2)
