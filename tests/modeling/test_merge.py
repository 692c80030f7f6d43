import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling.merge import AnnealedReLU, anneal, compose, merged
from modeling.resnet import resnet_body


def settle(module, shape):
    """Give norms statistics and gains unlike those at the start."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    module.train()(torch.randn(shape))
    return module.eval()


def deep_layer(groups=1):
    return nn.Sequential(
        nn.Conv2d(4, 6, 5, stride=2, padding=2, groups=groups, bias=False),
        nn.BatchNorm2d(6),
        AnnealedReLU(),
        nn.Conv2d(6, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    )


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_annealed_relu_is_a_leaky_one(slope):
    x, activation = torch.randn(3, 4), AnnealedReLU()
    activation.anneal(slope)
    assert torch.equal(activation(x), F.leaky_relu(x, slope))
    assert activation.is_identity == (slope == 1)
    assert activation(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("progress", "slope"), [(-1, 0), (0.25, 0.25), (3, 1)])
def test_annealing_ends(progress, slope):
    layer = deep_layer()
    anneal(layer, progress)
    assert layer[2].slope.item() == slope
    other = deep_layer()
    other.load_state_dict(layer.state_dict())
    assert other[2].slope.item() == slope


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        (1, {"padding": 2}),
        (1, {"stride": 2, "bias": False}),
        (2, {"dilation": 2, "padding": 1}),
        (4, {"padding": 2}),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_two_convolutions_are_one(groups, options, bias):
    first = nn.Conv2d(4, 8, 5, groups=groups, **options)
    second = nn.Conv2d(8, 3, 1, bias=bias)
    x = torch.randn(2, 4, 13, 12)
    with torch.no_grad():
        assert torch.allclose(compose(first, second)(x), second(first(x)), atol=1e-5)


def test_trained_deep_and_merged_computes_the_same():
    layer = settle(deep_layer(), (8, 4, 9, 11))
    anneal(layer, 1)
    x = torch.randn(2, 4, 9, 11)
    plain = merged(layer)
    assert [type(part) for part in plain] == [nn.Conv2d, nn.ReLU]
    assert torch.allclose(plain(x), layer(x), atol=1e-5)
    assert len(layer) == 6  # which goes on training


def test_an_activation_that_is_left_is_kept():
    layer = settle(deep_layer(), (8, 4, 9, 11))
    anneal(layer, 0.9)
    x = torch.randn(2, 4, 9, 11)
    plain = merged(layer)
    assert [type(part) for part in plain] == [nn.Conv2d, AnnealedReLU, nn.Conv2d, nn.ReLU]
    assert torch.allclose(plain(x), layer(x), atol=1e-5)


def test_a_grouped_convolution_stays_cheap():
    layer = settle(deep_layer(groups=2), (8, 4, 9, 11))
    anneal(layer, 1)
    x = torch.randn(2, 4, 9, 11)
    plain = merged(layer)
    assert [type(part) for part in plain] == [nn.Conv2d, nn.Conv2d, nn.ReLU]
    assert torch.allclose(plain(x), layer(x), atol=1e-5)
    assert torch.allclose(compose(plain[0], plain[1])(x).relu(), layer(x), atol=1e-5)


def test_layers_within_layers_are_merged_and_names_kept():
    inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    network = nn.ModuleDict({"a": nn.Sequential(inner, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))})
    settle(network["a"], (8, 4, 5, 5))
    plain = merged(network)
    assert {name for name, _ in plain["a"].named_children()} == {"0", "1", "2"}
    assert len(plain["a"][0]) == 1
    x = torch.randn(1, 4, 5, 5)
    assert torch.allclose(plain["a"](x), network["a"](x), atol=1e-5)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_of_any_kind_is_kept(mode):
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.Conv2d(4, 5, 1)).eval()
    x = torch.randn(1, 3, 6, 6)
    plain = merged(layers)
    assert len(plain) == 1
    assert torch.allclose(plain(x), layers(x), atol=1e-5)


def test_layers_that_stand_there_twice_stay_twice():
    conv, relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
    x = torch.randn(1, 3, 6, 6)
    for layers in (
        nn.Sequential(conv, relu, conv, relu),
        nn.Sequential(conv, nn.BatchNorm2d(3), relu, conv, nn.BatchNorm2d(3)),
    ):
        settle(layers, (8, 3, 6, 6))
        assert torch.allclose(merged(layers)(x), layers(x), atol=1e-5)
        assert not merged(layers.train()).training


def test_a_network_without_values_can_be_printed():
    assert str(AnnealedReLU()) == "AnnealedReLU(slope=0)"
    assert str(AnnealedReLU().to("meta")) == "AnnealedReLU()"


def test_parts_that_a_module_does_without_are_no_trouble():
    block = nn.Module()
    block.shortcut, block.layers = None, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    block.register_module("absent", None)
    plain = merged(block)
    assert plain.absent is None
    assert len(plain.layers) == 1


def test_a_norm_without_statistics_stays():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(merged(layers)(x), layers(x), atol=1e-5)


def test_norms_of_a_resnet_are_folded():
    body = settle(resnet_body("resnet18", 4), (8, 64, 16, 16))
    plain, x = merged(body), torch.randn(2, 64, 15, 17)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in plain.modules())
    assert torch.allclose(plain(x), body(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_before_a_linear_map_is_taken_in(bias):
    layers = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4, bias=bias))
    nn.init.uniform_(layers[0].weight, 0.5, 2)
    nn.init.normal_(layers[0].bias)
    layers(3 + 2 * torch.randn(50, 6))
    plain, x = merged(layers.eval()), torch.randn(5, 6)
    assert [type(part) for part in plain] == [nn.Linear]
    assert torch.allclose(plain(x), layers(x), atol=1e-5)
    bare = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4))
    bare(3 + 2 * torch.randn(50, 6))
    assert torch.allclose(merged(bare.eval())(x), bare(x), atol=1e-5)
