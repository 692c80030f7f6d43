import pytest
import torch

from modeling.channels import ChannelSet
from modeling.cost import channel_cost, channel_costs, count_activations, count_macs, count_parameters
from modeling.zoo import build_model, build_stem

RGB = ("R", "G", "B")
SETS = [str(chosen) for chosen in ChannelSet.all_of(RGB)]
BLACK = (-2.1, -2.0, -1.8)


def settled(stem: str, **options):
    """A small network whose norms have seen data of every channel set."""
    torch.manual_seed(0)
    model = build_model("resnet18", stem, RGB, 5, **options).train()
    with torch.no_grad():
        for parameter in model.stem.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name in SETS:
            model(torch.randn(4, len(name), 32, 32), name)
    return model.eval()


STEMS = {
    "any-channel": {},
    "zero-fill": {"fill": BLACK},
    "zero-fill-rescaled": {},
    "repeat": {},
    "table": {},
    "slices": {},
    "depthwise": {},
    "hypernet": {},
    "attention": {},
}


@pytest.fixture(scope="module", params=STEMS)
def model(request):
    return settled(request.param, **STEMS[request.param])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 45, 64)])
def test_materialized_network_computes_the_same(model, name, shape):
    batch, height, width = shape
    x = torch.randn(batch, len(name), height, width)
    with torch.no_grad():
        wanted = model.stem(x, ChannelSet.parse(name, RGB))
        assert (model.stem.materialize(ChannelSet.parse(name, RGB))(x) - wanted).abs().max() <= 1e-5
        assert torch.allclose(model.materialize(name)(x), model(x, name), atol=1e-4)


def test_materialized_network_shares_nothing(model):
    plain = model.materialize("RG")
    x = torch.randn(1, 2, 32, 32)
    before = plain(x)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.add_(1)
    assert torch.equal(plain(x), before)
    model.load_state_dict(kept)


@pytest.mark.parametrize("name", [name for name in STEMS if name not in ("zero-fill", "attention")])
def test_stems_of_one_kernel_become_one_plain_conv(name):
    stem = build_stem(name, RGB)
    plain = stem.materialize(ChannelSet.parse("GB", RGB))
    assert type(plain) is torch.nn.Conv2d
    assert plain.weight.shape == (64, 2, 7, 7)


def test_groups_with_their_own_sets_equal_separate_passes(model):
    parts = [torch.randn(2, len(name), 40, 40) for name in ("RGB", "B", "RG")]
    sets = [ChannelSet.parse(name, RGB) for name in ("RGB", "B", "RG")]
    with torch.no_grad():
        together = model(parts, sets)
        apart = torch.cat([model(part, chosen) for part, chosen in zip(parts, sets, strict=True)])
    assert torch.allclose(together, apart, atol=1e-4)


def test_channels_may_stand_in_any_order(model):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(x), model(x[:, [2, 0, 1]], "BRG"), atol=1e-4)


def test_naive_stem_fills_missing_channels():
    stem = build_stem("zero-fill", RGB, fill=BLACK).eval()
    x = torch.randn(2, 1, 16, 16)
    full = torch.tensor(BLACK).view(1, 3, 1, 1).expand(2, 3, 16, 16).clone()
    full[:, 1:2] = x
    assert torch.allclose(stem(x, ChannelSet(("G",))), stem(full, ChannelSet(RGB)), atol=1e-6)


@pytest.mark.parametrize("stem", STEMS)
def test_every_parameter_gets_a_gradient(stem):
    model = build_model("resnet18", stem, RGB, 5).train()
    model(torch.randn(2, 2, 32, 32), "RG").sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_network_equals_torchvision_on_all_channels():
    """The naive network with all channels is torchvision's ResNet-18, weight for weight."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    reference, ours = resnet18(num_classes=5).eval(), build_model("resnet18", "zero-fill", RGB, 5).eval()
    weights = {
        "stem.conv." + k[6:]
        if k.startswith("conv1")
        else "stem.norm." + k[4:]
        if k.startswith("bn1")
        else "body." + k: v
        for k, v in reference.state_dict().items()
    }
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)  # as loaders give it
    assert torch.equal(ours(x), reference(x))
    assert count_parameters(ours) == count_parameters(reference)


def test_costs_against_hand_counts():
    model = settled("any-channel")
    full, one = (channel_cost(model, ChannelSet.parse(name, RGB), 64) for name in ("RGB", "R"))
    assert full.macs - one.macs == 2 * 64 * 7 * 7 * 32 * 32  # two more input channels of the first conv
    assert full.parameters - one.parameters == 2 * 64 * 7 * 7
    assert one.kernel_macs < full.kernel_macs < full.macs / 100
    # templates mixed (3·8·64·49), context (16·16), refine per channel (32·64 + 64·512)
    by_hand = 3 * 8 * 64 * 49 + 16 * 16 + 3 * (32 * 64 + 64 * 512)
    assert abs(full.kernel_macs - by_hand) < 0.01 * by_hand
    # the stem; four convolutions in the first stage, five in the others with the one of the shortcut; the logits
    stages = 4 * 64 * 16 * 16 + 5 * 128 * 8 * 8 + 5 * 256 * 4 * 4 + 5 * 512 * 2 * 2
    assert full.activations == one.activations == 64 * 32 * 32 + stages + 5


@pytest.mark.parametrize(
    ("body", "stem", "count"),
    # A two-layer body is merged when it is deployed; an expert takes no set but its own.
    [("resnet10", "any-channel", 7), ("strict", "any-channel", 7), ("resnet10", "plain", 1)],
)
def test_costs_are_those_of_the_whole_network(body, stem, count):
    model = build_model(body, stem, RGB, 5, **({"channels": "GB"} if stem == "plain" else {}))
    costs = channel_costs(model, model.stem.sets(), 32)
    assert list(costs) == model.stem.sets()
    assert len(costs) == count
    for chosen, cost in costs.items():
        plain, image = model.materialize(chosen), torch.zeros(1, len(chosen), 32, 32)
        assert cost.parameters == count_parameters(plain)
        assert cost.macs == count_macs(plain, image)
        assert cost.activations == count_activations(plain, image)


def test_macs_of_resnet34_are_the_published_ones():
    model = build_model("resnet34", "zero-fill", RGB, 1000)
    plain = model.materialize()
    assert abs(count_macs(plain, torch.zeros(1, 3, 224, 224)) / 3.67e9 - 1) < 0.01


def test_activations_grow_with_the_batch():
    plain = build_model("resnet10", "slices", RGB, 5).materialize()
    one, three = (count_activations(plain, torch.zeros(count, 3, 32, 32)) for count in (1, 3))
    assert three == 3 * one
