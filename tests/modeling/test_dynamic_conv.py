import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling import ChannelConv2d, ChannelSet
from modeling.dynamic_conv import SubsetBatchNorm2d

RGB = ("R", "G", "B")
SETS = [str(chosen) for chosen in ChannelSet.all_of(RGB)]


def conv(vocabulary="RGB", out=16, kernel=3, trained=True, seed=0, **options) -> ChannelConv2d:
    """A module; `trained` moves its zero-initialised parts away from zero, as training would."""
    torch.manual_seed(seed)
    module = ChannelConv2d(vocabulary, out, kernel, **options)
    if trained:
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


@settings(deadline=None)
@given(data=st.data(), count=st.integers(1, 8), seed=st.integers(0, 99))
def test_permuting_channels_with_their_names_changes_nothing(data, count, seed):
    vocabulary = tuple("abcdefgh"[:count])
    module = conv(vocabulary, seed=seed, padding=1)
    names = data.draw(st.lists(st.sampled_from(vocabulary), min_size=1, unique=True))
    order = data.draw(st.permutations(range(len(names))))
    x = torch.randn(2, len(names), 9, 7, generator=torch.Generator().manual_seed(seed))
    y = module(x, names)
    shuffled = module(x[:, order], [names[i] for i in order])
    assert (y - shuffled).abs().max() <= 1e-5
    if len(names) > 1:  # and the names do matter
        assert (module(x, [*names[1:], names[0]]) - y).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("vocabulary", ["RGB", "abcdef"])
def test_variance_is_that_of_he_for_every_set_at_initialisation(kernel, vocabulary):
    module = conv(vocabulary, out=256, kernel=kernel, trained=False, bias=False)
    for chosen in ChannelSet.all_of(module.vocabulary):
        x = torch.randn(4, len(chosen), 24, 24)
        assert 1.6 < module(x, chosen).var().item() < 2.4, str(chosen)  # He: 2 for inputs of variance 1


def test_kernels_of_different_channels_start_uncorrelated():
    kernel = conv(out=256, kernel=7, trained=False).kernel()
    correlation = torch.corrcoef(kernel.detach().transpose(0, 1).flatten(1))
    assert (correlation - torch.eye(3)).abs().max() < 0.1


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 3, "bias": False}, {"dilation": 2, "padding": 1}]
)
@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 16, 11), (2, 13, 40)])
def test_materialized_conv_computes_the_same(name, options, shape):
    kernel = 3 if "dilation" in options else 7
    module = conv(kernel=kernel, **options)
    batch, height, width = shape
    x = torch.randn(batch, len(name), height, width)
    plain = module.materialize(name)
    assert type(plain) is torch.nn.Conv2d
    assert (plain(x) - module(x, name)).abs().max() <= 1e-5


def test_kernel_depends_on_the_other_channels_present():
    module = conv()
    alone, among = module.kernel("R")[:, 0], module.kernel("RGB")[:, 0] / module.kernel("R").shape[1]
    ratio = alone / among
    assert ratio.std() > 0.1  # more than the common gain √(C0/|S|)


def test_every_parameter_gets_a_gradient_from_any_set():
    """A parameter without one would make DDP wait for it for ever."""
    module = conv()
    for name in SETS:
        module.zero_grad()
        module(torch.randn(2, len(name), 8, 8), name).square().sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_kernel_is_made_in_float32_under_autocast():
    module, x = conv(), torch.randn(2, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.kernel("RG").dtype == torch.float32
        assert module(x, "RG").dtype == torch.bfloat16


def test_half_precision_input_under_autocast_keeps_small_gradients():
    """Loaders hand out float16 on GPUs; gradients must not pass through it, where they would vanish."""
    module, x = conv(), torch.randn(2, 2, 8, 8).half()
    with torch.autocast("cpu", torch.bfloat16):
        loss = 1e-9 * module(x, "RG").float().mean()
    loss.backward()
    assert (module.templates.grad != 0).float().mean() > 0.9


def test_gradients_are_right():
    module = conv(out=2, kernel=3, templates=2, embedding=3, hidden=4).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, t: torch.func.functional_call(module, {"templates": t}, (x, "RB")),
        (x, module.templates.detach().requires_grad_()),
    )


def test_state_dict_and_copies():
    module = conv()
    twin = copy.deepcopy(module)
    other = conv(seed=1)
    other.load_state_dict(module.state_dict())
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(twin(x, "GB"), module(x, "GB"))
    assert torch.equal(other(x, "GB"), module(x, "GB"))


@pytest.mark.parametrize(
    ("channels", "planes", "reason"),
    [
        ("RX", 2, "unknown channel 'X'.*RGB"),
        ("RR", 2, "given twice"),
        ("", 0, "empty"),
        ("RG", 3, "input has 3 channels, but the channel set RG has 2"),
        (None, 2, "input has 2 channels, but the channel set RGB has 3"),
    ],
)
def test_bad_input_is_one_clear_error(channels, planes, reason):
    with pytest.raises(ValueError, match=reason):
        conv()(torch.randn(1, planes, 8, 8), channels)


def test_norm_keeps_sets_apart_and_folds():
    torch.manual_seed(0)
    norm = SubsetBatchNorm2d(RGB, 4)
    rg, b = ChannelSet.parse("RG", RGB), ChannelSet.parse("B", RGB)
    norm.weight.data.uniform_(0.5, 2)
    before = norm.running_mean.clone()
    for _ in range(200):
        norm(5 + 3 * torch.randn(16, 4, 6, 6), rg)
    changed = (norm.running_mean != before).any(1).nonzero().flatten().tolist()
    assert changed == [norm.row(rg)]
    norm.eval()
    x = 5 + 3 * torch.randn(8, 4, 6, 6)
    scale, shift = norm.affine(rg)
    assert torch.allclose(norm(x, rg), x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), atol=1e-5)
    assert norm(x, rg).mean().abs() < 0.2 < norm(x, b).mean().abs()
    reference = torch.nn.BatchNorm2d(4)
    reference.weight.data.copy_(norm.weight[norm.row(b)])
    assert torch.allclose(norm.train()(x, b), reference(x), atol=1e-5)
    assert torch.allclose(norm.running_var[norm.row(b)], reference.running_var)


def test_large_vocabularies_share_norms_by_size():
    norm = SubsetBatchNorm2d(tuple("abcdefghij"), 4)
    assert norm.weight.shape == (10, 4)
    assert norm.row(ChannelSet.parse("abc", norm.vocabulary)) == norm.row(ChannelSet.parse("hij", norm.vocabulary))


def test_importing_modeling_needs_torch_alone():
    heavy = "{'torchvision', 'accelerate', 'nvidia', 'timm', 'fvcore', 'deepspeed'}"
    code = f"import sys, modeling; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
