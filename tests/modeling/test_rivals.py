import copy
import math
from itertools import permutations

import pytest
import torch
from torch.nn import functional as F

from modeling.channels import ChannelSet
from modeling.cost import channel_cost, count_parameters
from modeling.network import ChannelNet
from modeling.norms import SharedBatchNorm2d
from modeling.rivals import (
    AttentionStem,
    DepthwiseStem,
    DynamicConv2d,
    HyperStem,
    PlainStem,
    RepeatStem,
    RescaledZeroFillStem,
    SliceStem,
    TableStem,
)
from modeling.stems import AnyChannelStem, Stem, StemShape, ZeroFillStem
from modeling.zoo import build_stem

RGB = ("R", "G", "B")
SETS = ChannelSet.all_of(RGB)
WAVELENGTHS = {"R": 0.61, "G": 0.54, "B": 0.465}  # µm
STEMS = {
    "any-channel": AnyChannelStem,
    "zero-fill": ZeroFillStem,
    "zero-fill-rescaled": RescaledZeroFillStem,
    "repeat": RepeatStem,
    "plain": PlainStem,
    "table": TableStem,
    "slices": SliceStem,
    "depthwise": DepthwiseStem,
    "hypernet": HyperStem,
    "attention": AttentionStem,
}
SWITCHES = {  # other ways to build one of them
    "any-channel, shared norm": lambda *shape: AnyChannelStem(*shape, norm="shared"),
    "any-channel, norm per size": lambda *shape: AnyChannelStem(*shape, norm="per-size"),
    "any-channel, norm by moments": lambda *shape: AnyChannelStem(*shape, norm="moments"),
    "any-channel, wavelengths": lambda names, *shape: AnyChannelStem(
        names, *shape, descriptors={name: 0.45 + 0.05 * i for i, name in enumerate(names)}
    ),
    "any-channel, unconditioned": lambda *shape: AnyChannelStem(*shape, conditioning=False),
    "any-channel, linear gain": lambda *shape: AnyChannelStem(*shape, gain="linear", norm="shared"),
    "zero-fill, black": lambda *shape: ZeroFillStem(*shape, fill=(-2.1, -2.0, -1.8)),
    "plain on RG": lambda *shape: PlainStem(*shape, channels="RG"),
    "attention, shared norm": lambda *shape: AttentionStem(*shape, norm="shared"),
}
EVERY = {**STEMS, **SWITCHES}


def fresh(name: str, out: int = 12, kernel: int = 5, vocabulary: tuple[str, ...] = RGB) -> Stem:
    torch.manual_seed(0)
    return EVERY[name](vocabulary, StemShape(out, kernel, 2))


def trained(name: str, **shape) -> Stem:
    """Away from the initialisation, with statistics of every set it takes, in inference mode."""
    stem = fresh(name, **shape)
    with torch.no_grad():
        for parameter in stem.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        for chosen in stem.sets():
            stem(1 + torch.randn(8, len(chosen), 16, 16), chosen)
    stem.anneal(0.9)
    return stem.eval()


@pytest.mark.parametrize("name", EVERY)
def test_both_run_in_mixed_precision(name):
    stem = trained(name)
    for chosen in stem.sets():
        x = torch.randn(2, len(chosen), 16, 16)
        exact = stem(x, chosen)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = [stem(x, chosen), stem.materialize(chosen)(x)]
        for y in rough:
            assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 16, 11), (2, 13, 40)])
def test_materialized_stem_computes_the_same_on_every_set(name, shape):
    stem = trained(name)
    batch, height, width = shape
    for chosen in stem.sets():
        x = torch.randn(batch, len(chosen), height, width)
        with torch.no_grad():
            y = stem(x, chosen)
            assert y.shape == (batch, 12, -(-height // 2), -(-width // 2))
            assert (stem.materialize(chosen)(x) - y).abs().max() <= 1e-5, str(chosen)
            assert (stem.unfolded(chosen)(x) - y).abs().max() <= 1e-5, str(chosen)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-9), (torch.bfloat16, 0.1)])
def test_stems_keep_their_precision(name, dtype, off):
    stem = trained(name).to(dtype)
    for chosen in stem.sets():
        x = torch.randn(2, len(chosen), 9, 9, dtype=dtype)
        y = stem(x, chosen)
        assert y.dtype == dtype
        for plain in (stem.materialize(chosen), stem.unfolded(chosen)):
            assert plain(x).dtype == dtype
            assert (plain(x) - y).abs().max() <= off * y.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_permuting_channels_with_their_names_changes_nothing(name):
    """`repeat` too, since it goes by the vocabulary's order and not by that of the stack."""
    stem = trained(name)
    for chosen in stem.sets():
        x = torch.randn(2, len(chosen), 9, 7)
        with torch.no_grad():
            y = stem(x, chosen)
            for order in list(permutations(range(len(chosen))))[1:]:
                shuffled, renamed = x[:, order], ChannelSet(tuple(chosen.names[i] for i in order))
                assert (stem(shuffled, renamed) - y).abs().max() <= 1e-5
                assert (stem.materialize(renamed)(shuffled) - y).abs().max() <= 1e-5
                assert (stem(x, renamed) - y).abs().max() > 1e-3  # and the names do matter


# What the pre-activation's variance is at the start, He's being 2, for inputs of independent channels.
VARIANCE = {
    "zero-fill": lambda share: 2 / share,
    "zero-fill-rescaled": lambda share: 2 * share,
    "any-channel, linear gain": lambda share: 2 * share,
}


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("plain on RG", "zero-fill, black")])
@pytest.mark.parametrize("vocabulary", ["RGB", "abcde"])
def test_variance_at_initialisation_for_every_set(name, vocabulary):
    """Within 25 %: each filter draws its own variance, and 256 of them are averaged."""
    stem = fresh(name, out=256, vocabulary=tuple(vocabulary))
    with torch.no_grad():
        for chosen in stem.sets():
            wanted = VARIANCE.get(name, lambda _: 2.0)(len(vocabulary) / len(chosen))
            found = stem.convolve(torch.randn(4, len(chosen), 24, 24), chosen)[..., 2:-2, 2:-2].var().item()
            assert 0.75 < found / wanted < 1.25, (str(chosen), found)


@pytest.mark.parametrize("name", ["any-channel", "table", "slices", "depthwise", "hypernet"])
def test_kernels_of_different_channels_start_uncorrelated(name):
    """The published hypernetwork has .81 to .97 here."""
    kernel = fresh(name, out=256).kernel(ChannelSet(RGB)).detach()
    assert (torch.corrcoef(kernel.transpose(0, 1).flatten(1)) - torch.eye(3)).abs().max() < 0.2
    assert abs(kernel.std() / math.sqrt(2 / (3 * 25)) - 1) < 0.15


@pytest.mark.parametrize("name", EVERY)
def test_every_trainable_parameter_gets_a_gradient_from_any_set(name):
    """A parameter without one would make DDP wait for it for ever."""
    stem = fresh(name)
    for chosen in stem.sets():
        stem.zero_grad()
        y = stem(torch.randn(3, len(chosen), 9, 9), chosen)
        (y * torch.randn_like(y)).sum().backward()
        missing = [key for key, p in stem.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        learning = {
            key.rpartition(".")[0] for key, p in stem.named_parameters() if p.requires_grad and p.grad.any()
        }
        assert "norm" in learning
        assert (
            len(learning) > 1 or name == "depthwise"
        )  # the convolution too; depthwise's own parameters have no prefix


def test_depthwise_learns_its_weights_and_filters():
    stem = fresh("depthwise")
    y = stem(torch.randn(3, 2, 9, 9), ChannelSet(("R", "B")))
    (y * torch.randn_like(y)).sum().backward()
    assert stem.templates.grad.all()
    assert stem.mixing.grad.any(1).tolist() == [True, False, True]


def test_table_rows_learn_from_their_own_set_only():
    stem = fresh("table")
    y = stem(torch.randn(3, 2, 9, 9), ChannelSet(("R", "B")))
    (y * torch.randn_like(y)).sum().backward()
    touched = stem.conv.weight.grad.flatten(2).any(2).any(0).nonzero().flatten().tolist()
    assert touched == [5, 6]  # behind RGB and RG


@pytest.mark.parametrize("name", EVERY)
def test_state_dict_and_copies(name):
    stem = trained(name)
    torch.manual_seed(1)
    other, twin = EVERY[name](RGB, StemShape(12, 5, 2)).eval(), copy.deepcopy(stem)
    other.load_state_dict(stem.state_dict())
    for chosen in stem.sets():
        x = torch.randn(2, len(chosen), 9, 9)
        assert torch.equal(twin(x, chosen), stem(x, chosen))
        assert torch.equal(other(x, chosen), stem(x, chosen))


@pytest.mark.parametrize("name", EVERY)
def test_wrong_sets_are_one_clear_error(name):
    stem = trained(name)
    own = stem.sets()[0]
    for chosen, planes, reason in [
        (own, len(own) + 1, f"input has {len(own) + 1} channels, but the channel set {own} has {len(own)}"),
        (ChannelSet(("R", "X")), 2, "unknown channel 'X'|takes the channels"),
    ]:
        with pytest.raises(ValueError, match=reason) as caught:
            stem(torch.randn(1, planes, 8, 8), chosen)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"unknown channel 'X'|takes the channels"):
        stem.materialize(ChannelSet(("R", "X")))


def test_groups_and_sets_go_together():
    stem, parts = trained("any-channel"), [torch.randn(1, 3, 8, 8)] * 2
    with pytest.raises(ValueError, match="2 groups of images come with 1 channel sets"):
        stem.groups(parts, [ChannelSet(RGB)])


def test_sets_may_be_named():
    stem, x = trained("any-channel"), torch.randn(1, 2, 8, 8)
    assert torch.equal(stem(x, "RG"), stem(x, ChannelSet(("R", "G"))))
    assert torch.equal(stem(torch.ones(1, 3, 8, 8)), stem(torch.ones(1, 3, 8, 8), "RGB"))
    assert AnyChannelStem("red+green+nir", StemShape(4, 3, 1)).vocabulary == ("red", "green", "nir")


@pytest.mark.parametrize("name", STEMS)
def test_autocast_makes_kernels_in_float32_and_convolves_in_bfloat16(name):
    stem = fresh(name)
    x = torch.randn(2, 3, 9, 9).half()  # as loaders on a GPU give it
    with torch.autocast("cpu", torch.bfloat16):
        assert stem.kernel(ChannelSet(RGB)).dtype == torch.float32
        assert stem.convolve(x, ChannelSet(RGB)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", EVERY)
def test_groups_equal_separate_passes_at_inference(name):
    stem = trained(name)
    sets = [*stem.sets()[:2], stem.sets()[-1]]
    parts = [torch.randn(2, len(chosen), 9, 9) for chosen in sets]
    with torch.no_grad():
        apart = torch.cat([stem(part, chosen) for part, chosen in zip(parts, sets, strict=True)])
        assert torch.allclose(stem.groups(parts, sets), apart, atol=1e-5)


def test_zero_fill_on_mixed_sets_is_channel_dropout():
    """An ordinary convolution and BatchNorm on a batch in which channels of some images are black."""
    stem, black = fresh("zero-fill, black"), torch.tensor((-2.1, -2.0, -1.8)).view(3, 1, 1)
    sets = [ChannelSet(("R", "G", "B")), ChannelSet(("G",)), ChannelSet(("B", "R"))]
    full = torch.randn(6, 3, 9, 9)
    parts = [full[0:2], full[2:4, [1]], full[4:6, [2, 0]]]
    dropped = full.clone()
    dropped[2:4, [0, 2]] = black[[0, 2]]
    dropped[4:6, [1]] = black[[1]]
    reference = torch.nn.BatchNorm2d(12)
    wanted = reference(F.conv2d(dropped, stem.conv.weight, stride=2, padding=2))
    assert torch.allclose(stem.groups(parts, sets), wanted, atol=1e-5)
    assert torch.allclose(stem.norm.running_mean, reference.running_mean, atol=1e-6)
    assert torch.allclose(stem.norm.running_var, reference.running_var, atol=1e-6)


def test_norm_of_every_set_stays_apart_in_groups():
    stem = fresh("slices")
    sets = [ChannelSet(("G",)), ChannelSet(("B", "R"))]
    stem.groups([torch.randn(4, 1, 9, 9), torch.randn(4, 2, 9, 9)], sets)
    touched = (stem.norm.running_mean != 0).any(1).nonzero().flatten().tolist()
    assert touched == sorted(stem.norm.row(chosen) for chosen in sets)


# Independent references: what the rival is, written down naively on the images rather than on kernels.


@pytest.mark.parametrize("chosen", SETS, ids=str)
def test_rescaled_zero_fill_against_its_definition(chosen):
    stem, full = fresh("zero-fill-rescaled"), torch.zeros(2, 3, 9, 8)
    x = torch.randn(2, len(chosen), 9, 8)
    for plane, name in enumerate(chosen):
        full[:, RGB.index(name)] = x[:, plane]
    wanted = F.conv2d(full, stem.conv.weight, stride=2, padding=2) * 3 / len(chosen)
    assert torch.allclose(stem.convolve(x, chosen), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [("RGB", "RGB"), ("RG", "RGR"), ("RB", "RRB"), ("GB", "GGB"), ("R", "RRR"), ("B", "BBB"), ("BG", "GGB")],
)
def test_repeat_against_repeated_images(chosen, seen):
    stem, x = fresh("repeat"), torch.randn(2, len(chosen), 9, 8)
    repeated = x[:, [chosen.index(name) for name in seen]]
    wanted = F.conv2d(repeated, stem.conv.weight, stride=2, padding=2)
    assert torch.allclose(stem.convolve(x, ChannelSet(tuple(chosen))), wanted, atol=1e-5)


def test_repeat_goes_round_in_larger_vocabularies():
    stem = RepeatStem(tuple("abcdef"), StemShape(4, 3, 1))
    assert stem.sources(ChannelSet(("e", "b"))) == [1, 1, 4, 1, 4, 4]


@pytest.mark.parametrize("chosen", SETS, ids=str)
def test_slices_are_summed_with_their_gain(chosen):
    stem, x = fresh("slices"), torch.randn(2, len(chosen), 9, 8)
    wanted = sum(
        F.conv2d(x[:, [plane]], stem.conv.weight[:, [RGB.index(name)]], stride=2, padding=2)
        for plane, name in enumerate(chosen)
    )
    assert torch.allclose(stem.convolve(x, chosen), wanted * math.sqrt(3 / len(chosen)), atol=1e-5)


@pytest.mark.parametrize("chosen", SETS, ids=str)
def test_depthwise_filters_each_channel_alone(chosen):
    stem, x = fresh("depthwise"), torch.randn(2, len(chosen), 9, 8)
    wanted = 0
    for plane, name in enumerate(chosen):
        response = F.conv2d(x[:, [plane]], stem.templates[:, None], stride=2, padding=2)
        wanted = wanted + response * stem.mixing[RGB.index(name)].view(-1, 1, 1)
    assert torch.allclose(stem.convolve(x, chosen), wanted * math.sqrt(3 / len(chosen)), atol=1e-5)


def test_table_is_one_convolution_for_each_set():
    stem, left = trained("table"), {}
    assert stem.conv.weight.shape == (12, 12, 5, 5)  # O, and 3 + 3·2 + 3 slices
    columns = iter(stem.conv.weight.detach().unbind(1))
    for chosen in SETS:
        left[chosen] = torch.nn.Conv2d(len(chosen), 12, 5, 2, 2, bias=False)
        left[chosen].weight.data = torch.stack([next(columns) for _ in chosen], dim=1)
    assert next(columns, None) is None
    for chosen, reference in left.items():
        x = torch.randn(2, len(chosen), 9, 8)
        assert torch.allclose(stem.convolve(x, chosen), reference(x), atol=1e-5)


def test_table_ends_at_six_channels():
    assert TableStem(tuple("abcdef"), StemShape(2, 3, 1)).conv.in_channels == 192
    with pytest.raises(ValueError, match=r"--model\.stem table .* at most 6 channels, not of 7; use any-channel"):
        TableStem(tuple("abcdefg"), StemShape(2, 3, 1))


def test_plain_is_an_ordinary_network_and_takes_one_set():
    stem = fresh("plain on RG")
    x = torch.randn(4, 2, 9, 8)
    reference = torch.nn.Sequential(torch.nn.Conv2d(2, 12, 5, 2, 2, bias=False), torch.nn.BatchNorm2d(12))
    reference[0].weight.data.copy_(stem.conv.weight)
    assert torch.allclose(stem(x, ChannelSet(("R", "G"))), reference(x), atol=1e-6)
    assert [str(chosen) for chosen in stem.sets()] == ["RG"]
    for other in ("R", "RGB", "RB"):
        with pytest.raises(ValueError, match=r"takes the channels RG only, not .*--model\.plain-channels"):
            stem(torch.randn(2, len(other), 9, 8), ChannelSet(tuple(other)))


def test_hypernetwork_has_no_way_round_the_embedding():
    """Channels of the same embedding have the same kernel."""
    stem = trained("hypernet")
    with torch.no_grad():
        stem.embedding[1] = stem.embedding[0]
        kernel = stem.kernel(ChannelSet(RGB))
    assert torch.equal(kernel[:, 0], kernel[:, 1])
    assert (kernel[:, 0] - kernel[:, 2]).abs().max() > 1e-2


@pytest.mark.parametrize("chosen", SETS, ids=str)
def test_attention_at_high_temperature_is_the_mean_kernel(chosen):
    stem, x = trained("attention"), torch.randn(3, len(chosen), 9, 8)
    stem.temperature.fill_(1e6)
    wanted = F.conv2d(x, stem.kernel(chosen).mean(0), stride=2, padding=2)
    assert torch.allclose(stem.convolve(x, chosen), wanted, atol=1e-5)


def test_attention_at_low_temperature_picks_one_kernel_for_each_image():
    stem, chosen = trained("attention"), ChannelSet(("R", "B"))
    x = torch.randn(16, 2, 9, 8) + 3 * torch.randn(16, 2, 1, 1)  # some brighter, some darker
    stem.temperature.fill_(1e-6)
    with torch.no_grad():
        picked = stem.attention(x, chosen).argmax(1)
        y, kernels = stem.convolve(x, chosen), stem.kernel(chosen)
        for image, choice, features in zip(x, picked, y, strict=True):
            wanted = F.conv2d(image[None], kernels[choice], stride=2, padding=2)[0]
            assert torch.allclose(features, wanted, atol=1e-5)
    assert len(picked.unique()) > 1


def test_attention_knows_which_channels_are_there():
    """On images of mean zero nothing else tells channel sets apart."""
    stem = trained("attention")
    red, blue = (stem.attention(torch.zeros(1, 1, 4, 4), ChannelSet((name,))) for name in "RB")
    assert torch.allclose(red.sum(), torch.tensor(1.0))
    assert (red - blue).abs().max() > 1e-4


def test_even_attention_is_the_any_channel_stem():
    ours, theirs = trained("any-channel"), fresh("attention")
    theirs.temperature.fill_(1e6)
    with torch.no_grad():  # filter m·O + o of one template is template m of filter o
        theirs.conv.templates.copy_(8 * ours.conv.templates.flatten(0, 1)[None])
        theirs.conv.mixing.copy_(ours.conv.mixing.flatten(1)[:, None])
        for part in ("embedding", "context.weight", "context.bias", "refine.0.weight", "refine.0.bias"):
            theirs.conv.get_parameter(part).copy_(ours.conv.get_parameter(part))
        theirs.conv.refine[2].weight.copy_(ours.conv.refine[2].weight)
        theirs.conv.refine[2].bias.copy_(ours.conv.refine[2].bias)
        for chosen in SETS:
            x = torch.randn(2, len(chosen), 9, 8)
            assert torch.allclose(theirs.convolve(x, chosen), ours.convolve(x, chosen), atol=1e-4)


def test_temperature_falls_from_30_to_1_and_is_saved():
    stem, seen = fresh("attention"), []
    for progress in (0, 0.5, 1, 7):
        stem.anneal(progress)
        seen.append(stem.temperature.item())
    assert seen == [30, 15.5, 1, 1]
    assert "temperature" in stem.state_dict()
    fresh("slices").anneal(0.5)  # has none, and does not mind


def test_attention_materializes_into_a_dynamic_convolution():
    plain = trained("attention").materialize(ChannelSet(("G",)))
    assert type(plain) is DynamicConv2d
    assert plain.kernels.shape == (8 * 12, 1, 5, 5)
    plain.to(memory_format=torch.channels_last)  # refuses more than four dimensions


# The switches of the any-channel stem.


def test_without_conditioning_a_kernel_does_not_depend_on_the_others():
    for name, alike in (("any-channel, unconditioned", True), ("any-channel", False)):
        stem = trained(name)
        alone = stem.kernel(ChannelSet(("G",)))[:, 0] / math.sqrt(3)
        assert torch.allclose(stem.kernel(ChannelSet(RGB))[:, 1], alone, atol=1e-6) == alike


def test_gains():
    kernels = {}
    for gain in ("sqrt", "linear", "none"):
        torch.manual_seed(0)
        kernels[gain] = AnyChannelStem(RGB, StemShape(12, 5, 2), gain=gain).kernel(ChannelSet(("G",)))
    assert torch.allclose(kernels["sqrt"], kernels["none"] * math.sqrt(3))
    assert torch.allclose(kernels["linear"], kernels["none"] * 3)


def test_norms():
    assert isinstance(build_stem("slices", RGB, norm="shared").norm, SharedBatchNorm2d)
    assert build_stem("slices", RGB).norm.weight.shape == (7, 64)


# What they cost.

PARAMETERS = {  # of ResNet's stem, O = 64 and k = 7 on RGB, by hand; norms have 2·64 for each set or in all
    "any-channel": 8 * 3136 + 3 * 8 * 64 + 3 * 16 + (16 * 16 + 16) + (32 * 64 + 64) + (64 * 512 + 512) + 7 * 128,
    "zero-fill": 3 * 3136 + 128,
    "zero-fill-rescaled": 3 * 3136 + 128,
    "repeat": 3 * 3136 + 128,
    "plain": 3 * 3136 + 128,
    "table": 12 * 3136 + 7 * 128,
    "slices": 3 * 3136 + 7 * 128,
    "depthwise": 3136 + 3 * 64 + 7 * 128,
    "hypernet": 3 * 16 + (16 * 64 + 64) + (64 * 3136 + 3136) + 7 * 128,
}
PARAMETERS["attention"] = PARAMETERS["any-channel"] + (6 * 16 + 16) + (16 * 8 + 8)


@pytest.mark.parametrize("name", STEMS)
def test_parameters_and_costs_of_every_stem(name):
    stem = build_stem(name, RGB)
    assert count_parameters(stem) == PARAMETERS[name]
    model = ChannelNet(stem, torch.nn.Flatten())
    costs = {str(chosen): channel_cost(model, chosen, 32) for chosen in stem.sets()}
    for chosen, cost in costs.items():
        planes = 3 if name == "zero-fill" else len(chosen)
        convolution, features = 64 * planes * 49 * 16 * 16, 64 * 16 * 16
        if name == "attention":  # and the mixing of eight kernels, for every image
            mixing = 8 * 64 * planes * 49
            assert 0 < cost.macs - convolution - mixing < 1000
            assert cost.parameters == mixing + 64 + (planes * 16 + 16) + (16 * 8 + 8)
            assert cost.activations == features + 64 * planes * 49 + 16 + 8
        else:
            assert cost.macs == convolution
            assert cost.parameters == 64 * planes * 49 + 64
            assert cost.activations == features
        generated = name in ("any-channel", "hypernet", "attention")
        assert (cost.kernel_macs > 64 * planes * 49) == generated


def test_a_stem_of_wavelengths_takes_bands_and_sets_it_never_saw():
    torch.manual_seed(0)
    stem = AnyChannelStem(RGB, StemShape(12, 5, 2), norm="per-size", descriptors=WAVELENGTHS).eval()
    network = ChannelNet(stem, torch.nn.Identity())
    x = torch.randn(2, 2, 16, 16)
    with pytest.raises(ValueError, match="unknown channel '500'"):
        network(x, ["R", "500"])
    stem.describe("500", 0.5)
    got = network(x, ["R", "500"])
    assert torch.allclose(got, network(x.flip(1), ["500", "R"]), atol=1e-5)
    assert torch.allclose(got, network.materialize(["R", "500"])(x), atol=1e-5)
    assert not torch.allclose(got, network(x, "RG"), atol=1e-2)


def test_a_norm_for_each_set_has_none_for_described_channels():
    stem = AnyChannelStem(RGB, StemShape(12, 5, 2), descriptors=WAVELENGTHS)
    stem.describe("500", 0.5)
    with pytest.raises(ValueError, match="no norm but those by size"):
        stem(torch.randn(2, 1, 16, 16), stem.parse(["500"]))


@pytest.mark.parametrize("name", [name for name in STEMS if name != "any-channel"])
def test_stems_without_descriptors_say_so(name):
    with pytest.raises(ValueError, match="knows RGB only, not '500'"):
        fresh(name).describe("500", 0.5)
