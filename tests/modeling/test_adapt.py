import copy
from functools import partial

import pytest
import timm
import torch
import torchvision.models as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from modeling import ChannelSet, adapt
from modeling.adapt import first_conv
from modeling.dynamic_conv import ChannelConv2d

RGB = ("R", "G", "B")
WAVELENGTHS = {"R": 0.665, "G": 0.56, "B": 0.49}
# name → network with random weights, its first convolution, the size it takes
NETWORKS = {
    "resnet18": (partial(tv.resnet18, num_classes=7), "conv1", 40),
    "convnext_tiny": (partial(tv.convnext_tiny, num_classes=7), "features.0.0", 32),
    "vision_transformer": (
        partial(tv.VisionTransformer, 32, 8, 2, 2, 48, 96, num_classes=7),
        "conv_proj",
        32,
    ),
    "efficientnet_b0": (partial(tv.efficientnet_b0, num_classes=7), "features.0.0", 40),
    "timm vit_tiny_patch16_224": (partial(timm.create_model, "vit_tiny_patch16_224"), "patch_embed.proj", 224),
    "timm convnext_atto": (partial(timm.create_model, "convnext_atto"), "stem.0", 32),
    # its first convolution is a subclass that pads by itself
    "timm tf_mobilenetv3": (partial(timm.create_model, "tf_mobilenetv3_small_minimal_100"), "conv_stem", 41),
}


def settled(network, size: int):
    """With signals of ordinary size, where fresh norms and heads make an output of about zero."""
    if hasattr(network, "heads"):
        nn.init.normal_(network.heads.head.weight)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            network.train()(torch.randn(8, 3, size, size))
    return network.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network as it was, its adapted copy, and an image for both."""
    make, first, size = NETWORKS[request.param]
    torch.manual_seed(0)
    network = settled(make(), size)
    adapted = adapt(copy.deepcopy(network), "RGB", size=size)
    assert adapted.first == first
    return network, adapted, torch.randn(2, 3, size, size)


def close(a, b) -> bool:
    """Within 1e-4, of the largest logit where logits exceed 1."""
    return (a - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1)


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(2)).eval()


def trained(adapted):
    """As training would, move what starts at zero away from it."""
    for parameter in adapted.conv.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return adapted


@torch.no_grad()
def test_adapted_networks_start_as_they_were_and_take_any_set(case):
    network, adapted, x = case
    wanted = network(x)
    assert wanted.std() > 1e-3
    assert (adapted(x) - wanted).abs().max() <= 1e-4
    assert close(adapted(x[:, [2, 0, 1]], "BRG"), wanted)
    assert close(adapted(x[:, :1], "G"), network(x[:, :1].expand(-1, 3, -1, -1)))  # gray: filled with the mean


@torch.no_grad()
def test_materialized_networks_are_the_original_architecture(case):
    network, adapted, x = case
    plain = adapted.materialize("BG")
    assert type(plain) is type(network)
    assert type(plain.get_submodule(adapted.first)) is type(network.get_submodule(adapted.first))
    assert (
        plain.get_submodule(adapted.first).weight.shape[1] == plain.get_submodule(adapted.first).in_channels == 2
    )
    assert plain.state_dict().keys() == network.state_dict().keys() == adapted.body.state_dict().keys()
    assert close(plain(x[:, :2]), adapted(x[:, :2], "BG"))


def test_gradients_reach_every_parameter(case):
    _, adapted, x = case
    adapted = copy.deepcopy(adapted).train()
    for step in range(2):
        adapted.zero_grad()
        adapted(x[:, :2], "RB").square().mean().backward()
        assert all(parameter.grad is not None for parameter in adapted.parameters())
        reached = {name for name, parameter in adapted.conv.named_parameters() if parameter.grad.any()}
        assert reached >= {"mixing", "refine.2.weight", "refine.2.bias"}  # the rest wait for these to leave zero
        if step:
            assert len(reached) == len(list(adapted.conv.parameters()))
        torch.optim.SGD(adapted.conv.parameters(), 0.1).step()


def test_modes_pass_to_the_body():
    adapted = adapt(tiny(), "RGB")
    norm = adapted.body[1]
    adapted.train()(torch.randn(4, 1, 8, 8), "R")
    assert norm.num_batches_tracked == 1
    adapted.eval()(torch.randn(4, 1, 8, 8), "R")
    assert norm.num_batches_tracked == 1


def test_probing_leaves_the_network_alone():
    network = tiny().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert adapt(network, "RGB").body is network
    assert network.training and network[0].weight.device.type == "cpu"
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_copies_and_state_dicts():
    adapted = trained(adapt(tiny(), "RGB"))
    twin, other = copy.deepcopy(adapted), adapt(tiny(), "RGB")
    other.load_state_dict(adapted.state_dict())
    x = torch.randn(2, 2, 9, 9)
    wanted = adapted(x, "GB")
    adapted.body[0].weight.data.zero_()
    assert torch.equal(twin(x, "GB"), wanted)
    assert torch.equal(other(x, "GB"), wanted)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), count=st.integers(1, 8), kernel=st.tuples(*[st.integers(1, 3)] * 2))
def test_a_set_stands_for_all_with_the_missing_filled_by_the_mean(data, count, kernel):
    vocabulary = tuple("abcdefgh"[:count])
    names = data.draw(st.lists(st.sampled_from(vocabulary), min_size=1, unique=True))
    torch.manual_seed(0)
    conv = nn.Conv2d(count, 4, kernel)
    adapted = adapt(conv, vocabulary, size=8)
    x = torch.randn(2, len(names), 5, 6)
    filled = x.mean(1, keepdim=True).repeat(1, count, 1, 1)
    filled[:, [vocabulary.index(name) for name in names]] = x
    assert torch.allclose(adapted(x, names), conv(filled), atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(data=st.data(), described=st.booleans())
def test_permuting_channels_with_their_names_changes_nothing(data, described):
    adapted = adapt(tiny(), "RGB", descriptors=WAVELENGTHS, size=8)
    if described:
        adapted.describe("nir", 0.84)
    trained(adapted)
    names = data.draw(st.lists(st.sampled_from(adapted.conv.known), min_size=1, unique=True))
    order = data.draw(st.permutations(range(len(names))))
    x = torch.randn(1, len(names), 7, 5)
    shuffled = adapted(x[:, order], [names[i] for i in order])
    assert (adapted(x, names) - shuffled).abs().max() <= 1e-5


def test_a_described_channel_fills_gaps_at_first_and_learns_its_own_kernel():
    network, adapted = tiny(), adapt(tiny(), "RGB", descriptors=WAVELENGTHS)
    adapted.describe("nir", 0.84)
    x = torch.randn(2, 4, 8, 8)
    assert torch.allclose(adapted(x[:, 3:], ["nir"]), network(x[:, 3:].expand(-1, 3, -1, -1)), atol=1e-5)
    assert torch.allclose(adapted(x, [*RGB, "nir"]), network(x[:, :3]), atol=1e-5)
    trained(adapted)
    assert (adapted(x, [*RGB, "nir"]) - adapted(x[:, :3])).abs().max() > 1e-2


@pytest.mark.parametrize("chosen", [str(chosen) for chosen in ChannelSet.all_of(RGB)])
def test_variance_is_kept_at_the_start_for_white_and_for_gray_images(chosen):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 256, 7, bias=False)
    adapted = adapt(conv, "RGB", size=8)
    white, gray = torch.randn(8, len(chosen), 20, 20), torch.randn(8, 1, 20, 20).expand(-1, len(chosen), -1, -1)
    wanted = conv(torch.randn(8, 3, 20, 20)).var()
    assert 0.75 < adapted(white, chosen).var() / wanted < 1.15
    assert torch.allclose(adapted(gray, chosen), conv(gray[:, :1].expand(-1, 3, -1, -1)), atol=1e-5)


def test_frozen_bodies_stay_as_they_are():
    adapted = adapt(tiny().requires_grad_(False), "RGB")
    adapted(torch.randn(2, 2, 8, 8), "RG").sum().backward()
    assert all(parameter.grad is None for parameter in adapted.body.parameters())
    assert adapted.conv.mixing.grad.any()


def test_autocast_and_export():
    adapted = trained(adapt(tiny(), "RGB"))
    x = torch.randn(2, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert adapted.kernel("RG").dtype == torch.float32
        cast = adapted(x, "RG")
    assert cast.dtype == torch.bfloat16
    assert torch.allclose(cast.float(), adapted(x, "RG"), atol=0.05)
    plain = adapted.materialize("RG")
    exported = torch.export.export(plain, (x,))
    assert torch.allclose(exported.module()(x), adapted(x, "RG"), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_keep_their_precision(dtype):
    network = tiny().to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    adapted = adapt(copy.deepcopy(network), "RGB")
    assert torch.equal(adapted(x), network(x))
    assert adapted.materialize("RG")(x[:, :2]).dtype == dtype


def test_materialized_networks_are_for_inference():
    plain = adapt(tiny(), "RGB").train().materialize("RG")
    assert not any(module.training for module in plain.modules())
    assert not any(parameter.requires_grad for parameter in plain.parameters())


class Resizes(nn.Module):
    """Reads the image twice, the second time not as it is."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.fine(x).mean() + self.coarse(F.avg_pool2d(x, 2)).mean()


class Twice(Resizes):
    """Reads the image twice."""

    def forward(self, x):
        return self.fine(x) + self.coarse(x)


@pytest.mark.parametrize(
    ("network", "vocabulary", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "RGB", "no nn.Conv2d reads an image of 64×64.*size="),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1)), "RGB", "no nn.Conv2d reads"),
        (tv.VisionTransformer(32, 8, 1, 1, 8, 8), "RGB", r"Wrong image.*; try another size="),
        (nn.ReLU(), "RGB", "ReLU has no weights"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 1)), "RGB", "weight of '' is made of others"),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 2, 1)), "RGB", "weight of '' is made of others"),
        (nn.Conv2d(3, 2, 1), "RG", "reads 3 channels, the vocabulary has 2"),
        (nn.Conv2d(3, 3, 1, groups=3), "RGB", "groups=3"),
        (Twice(), "RGB", "2 convolutions read the image: fine, coarse"),
        (Resizes(), "RGB", "not 'fine' alone sees"),
        (nn.Conv2d(3, 2, 1), "RGG", "given twice"),
    ],
)
def test_networks_that_cannot_be_adapted_are_refused(network, vocabulary, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        adapt(network, vocabulary, size=64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "planes", "reason"),
    [
        ("RX", 2, "unknown channel 'X'.*RGB"),
        ("RR", 2, "given twice"),
        ((), 0, "empty"),
        ("RG", 3, "input has 3 channels, but the channel set RG has 2"),
        (None, 2, "input has 2 channels, but the channel set RGB has 3"),
    ],
)
def test_bad_input_is_one_clear_error(channels, planes, reason):
    with pytest.raises(ValueError, match=reason):
        adapt(tiny(), "RGB")(torch.randn(1, planes, 8, 8), channels)


def test_first_conv_is_found_by_what_it_reads_not_by_its_place():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.a_head, self.z_first = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.a_head(self.z_first(x))

    assert first_conv(Backwards(), 3) == "z_first"
    assert isinstance(adapt(Backwards(), "RGB").conv, ChannelConv2d)
