import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from modeling.channels import ChannelSet
from modeling.moments import InputMoments
from modeling.network import ChannelNet
from modeling.rivals import AttentionStem, SliceStem, TableStem
from modeling.stems import AnyChannelStem, Stem, StemShape

RGB = ("R", "G", "B")
WAVELENGTHS = {"R": 0.61, "G": 0.54, "B": 0.465}  # µm


def images(count: int, channels: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    """Smooth, correlated between channels, with means: as unlike noise as real ones."""
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, 3, 1, 1) * 3
    return 0.4 + smooth + smooth.mean(1, keepdim=True)


def measured(x: Tensor, kernel: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of what a convolution answers to images."""
    answers = F.conv2d(x, kernel, stride=stride, padding=padding).transpose(0, 1).flatten(1)
    return answers.mean(1), answers.var(1, correction=0)


def assert_alike(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for value, other in zip(found, wanted, strict=True):
        assert torch.allclose(value, other, rtol=1e-3, atol=1e-4)


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(9, 16),
    st.lists(st.sampled_from("abcde"), min_size=1, unique=True),
    st.integers(0, 99),
)
def test_statistics_of_every_set_follow_from_images_of_all_channels(kernel, stride, padding, size, names, seed):
    moments, x = InputMoments("abcde", kernel, stride, padding), images(4, 5, size, seed)
    moments.update(x, ChannelSet(tuple("abcde")))
    chosen = ChannelSet(tuple(names))
    filters = torch.randn(7, len(names), kernel, kernel)
    assert_alike(
        moments.statistics(filters, chosen),
        measured(chosen.select(x, tuple("abcde")), filters, stride, padding),
    )


def test_pairs_are_enough():
    moments, x = InputMoments("RGB", 3, 2, 1), images(4)
    for names in ("RG", "BR", "GB"):
        moments.update(ChannelSet.parse(names, RGB).select(x, RGB), ChannelSet(tuple(names)))
    filters = torch.randn(6, 3, 3, 3)
    assert_alike(moments.statistics(filters, ChannelSet(RGB)), measured(x, filters, 2, 1))


def test_all_images_weigh_the_same_until_old_ones_fade():
    moments, x = InputMoments("RGB", 3, 1, 0), images(40)
    for part in x.split(4):
        moments.update(part, ChannelSet(RGB))
    filters = torch.randn(6, 3, 3, 3)
    assert_alike(moments.statistics(filters, ChannelSet(RGB)), measured(x, filters, 1, 0))
    moments.WINDOW = 5
    other = images(4, seed=1) - 3
    for _ in range(60):
        moments.update(other, ChannelSet(RGB))
    assert_alike(moments.statistics(filters, ChannelSet(RGB)), measured(other, filters, 1, 0))


def test_a_batch_is_seen_by_a_few_of_its_images():
    moments, few = InputMoments("RGB", 3, 1, 1), InputMoments("RGB", 3, 1, 1)
    x = images(9)
    moments.update(x.half().contiguous(memory_format=torch.channels_last), ChannelSet(RGB))
    few.update(x[: InputMoments.IMAGES].half(), ChannelSet(RGB))
    assert torch.allclose(moments.covariance, few.covariance, atol=1e-5)


def test_cameras_of_different_contrast_and_brightness():
    """Opposed channels, whose answer is a small difference: moments of different images must not be mixed."""
    moments = InputMoments("RGB", 3, 1, 0)
    cameras = {"RG": (1, 0.5), "GB": (0.6, -1), "BR": (0.6, 1.5)}
    x = {name: brightness + contrast * images(40) for name, (contrast, brightness) in cameras.items()}
    parts = {name: ChannelSet.parse(name, RGB).select(x[name], RGB) for name in cameras}
    for i in range(10):
        for name, part in parts.items():
            moments.update(part[4 * i : 4 * i + 4], ChannelSet(tuple(name)))
    opposed = torch.randn(64, 1, 3, 3)
    opposed = torch.cat([opposed, -opposed], 1)
    for name, part in parts.items():
        _, var = moments.statistics(opposed, ChannelSet(tuple(name)))
        ratio = measured(part, opposed, 1, 0)[1] / var
        assert 0.99 < ratio.min() < ratio.max() < 1.01, name


def test_pairs_that_were_never_seen():
    moments, x = InputMoments("RGB", 3, 1, 0), 2 + images(40)
    for i in range(10):
        for name in ("RG", "GB"):
            moments.update(ChannelSet(tuple(name)).select(x[4 * i : 4 * i + 4], RGB), ChannelSet(tuple(name)))
    assert moments.unseen(ChannelSet(RGB)) == [("R", "B")]
    assert moments.unseen(ChannelSet(("B", "G"))) == []
    kernel = torch.randn(256, 3, 3, 3)
    _, var = moments.statistics(kernel, ChannelSet(RGB))
    wanted = measured(x, kernel, 1, 0)[1]
    assert (wanted / var).max() < 100  # of which the root is what an activation can be too large by
    _, apart = moments.statistics(kernel[:, :2], ChannelSet(("R", "B")))
    alone = sum(moments.statistics(kernel[:, i : i + 1], ChannelSet((name,)))[1] for i, name in enumerate("RB"))
    assert torch.allclose(apart, alone, rtol=1e-3)


def test_no_image_changes_nothing():
    moments = InputMoments("RGB", 3, 1, 0)
    moments.update(images(4), ChannelSet(RGB))
    before = copy.deepcopy(moments.state_dict())
    moments.update(images(4)[:0], ChannelSet(RGB))
    assert all(torch.equal(value, before[name]) for name, value in moments.state_dict().items())
    assert list(before) == ["mean", "own", "covariance", "count"]  # all of it is saved, so that a run can go on


def test_inference_answers_as_training_did_on_the_same_images():
    torch.manual_seed(0)
    stem, x = AnyChannelStem(RGB, StemShape(8, 5, 2), norm="moments"), images(4, size=24)
    for chosen in (ChannelSet(RGB), ChannelSet(("B", "R"))):
        stem.train()
        trained = stem(chosen.select(x, RGB), chosen)
        assert torch.allclose(stem.eval()(chosen.select(x, RGB), chosen), trained, atol=1e-4)


def test_before_any_image_they_are_those_of_white_noise():
    kernel = torch.randn(5, 2, 3, 3)
    mean, var = InputMoments("RGB", 3, 1, 1).statistics(kernel, ChannelSet(("B", "R")))
    assert torch.equal(mean, torch.zeros(5))
    assert torch.allclose(var, kernel.square().sum((1, 2, 3)))


def test_moments_keep_their_precision():
    """Edges in smooth images: bf16 has no digits left of their variance."""
    moments, x = InputMoments("R", 3, 1, 0), 5 + 0.01 * images(4, 1)
    moments.update(x, ChannelSet(("R",)))
    edge = torch.tensor([[[[-1.0, 0, 1]] * 3]])
    low = copy.deepcopy(moments).bfloat16()
    assert low.covariance.dtype == torch.float32
    _, var = low.statistics(edge.bfloat16(), ChannelSet(("R",)))
    assert torch.allclose(var, measured(x, edge, 1, 0)[1], rtol=0.02)
    assert moments.double().covariance.dtype == torch.float64
    with torch.device("meta"):
        empty = InputMoments("R", 3, 1, 0).half()
    empty.to_empty(device="cpu").load_state_dict(low.state_dict())
    assert torch.equal(empty.covariance, low.covariance)


def test_moments_are_exact_under_autocast():
    low, exact, x = InputMoments("RGB", 3, 1, 0), InputMoments("RGB", 3, 1, 0), 5 + 0.01 * images(4)
    kernel = torch.randn(5, 3, 3, 3)
    exact.update(x, ChannelSet(RGB))
    with torch.autocast("cpu", torch.bfloat16):
        low.update(x, ChannelSet(RGB))
        assert torch.equal(low.covariance, exact.covariance)
        found = low.statistics(kernel, ChannelSet(RGB))
    assert_alike(found, exact.statistics(kernel, ChannelSet(RGB)))


def test_images_without_contrast_have_no_negative_variance():
    moments = InputMoments("RGB", 3, 1, 0)
    moments.update(torch.full((4, 3, 9, 9), 333.3), ChannelSet(RGB))
    assert moments.statistics(torch.randn(99, 3, 3, 3), ChannelSet(RGB))[1].min() >= 0


def test_channels_outside_the_vocabulary():
    moments = InputMoments("RGB", 3, 1, 1)
    with pytest.raises(ValueError, match="unknown channel 'nir'"):
        moments.update(images(2, 1), ChannelSet(("nir",)))
    moments.update(images(4), ChannelSet(RGB))
    with pytest.raises(ValueError, match="no moments of channel 'nir'"):
        moments.statistics(torch.randn(5, 1, 3, 3), ChannelSet(("nir",)))
    moments.describe("nir", "R")
    moments.describe("red", "R")
    both = moments.statistics(torch.ones(1, 2, 3, 3), ChannelSet(("nir", "red")))
    assert_alike(both, moments.statistics(2 * torch.ones(1, 1, 3, 3), ChannelSet(("R",))))
    kernel = torch.randn(5, 2, 3, 3)
    found = moments.statistics(kernel, ChannelSet(("nir", "G")))
    assert_alike(found, moments.statistics(kernel, ChannelSet(("R", "G"))))


def stem_of(kind: type[Stem], **options) -> Stem:
    """Trained, so to speak, on images of all channels alone."""
    torch.manual_seed(0)
    stem = kind(RGB, StemShape(8, 5, 2), norm="moments", **options)
    for seed in range(30):
        stem(images(4, size=24, seed=seed), ChannelSet(RGB))
    return stem.eval()


@pytest.mark.parametrize("kind", [AnyChannelStem, SliceStem, TableStem])
@pytest.mark.parametrize("name", ["RG", "BR", "G"])
def test_a_set_never_seen_is_normalised(kind, name):
    stem, chosen = stem_of(kind), ChannelSet(tuple(name))
    x = chosen.select(images(200, size=24, seed=99), RGB)
    y = stem(x, chosen)
    assert y.mean((0, 2, 3)).abs().max() < 0.15
    assert (y.std((0, 2, 3)) - 1).abs().max() < 0.15
    network = ChannelNet(stem, torch.nn.Identity())
    for fold in (True, False):
        assert torch.allclose(network.materialize(chosen, fold=fold)(x), y, atol=1e-4)


def test_a_forward_pass_makes_one_kernel(monkeypatch):
    stem, made = stem_of(AnyChannelStem), []
    make = stem.kernel
    monkeypatch.setattr(stem, "kernel", lambda channels: made.append(channels) or make(channels))
    stem(images(2, size=24), ChannelSet(RGB))
    assert len(made) == 1


def test_statistics_are_those_of_the_kernel_as_it_is_now():
    stem = stem_of(SliceStem)
    with torch.no_grad():
        stem.conv.weight.copy_(torch.randn_like(stem.conv.weight))
    y = stem(images(200, size=24, seed=99), ChannelSet(RGB))
    assert (y.std((0, 2, 3)) - 1).abs().max() < 0.15


def test_compiled_training_counts_the_same():
    torch.manual_seed(0)
    stem = AnyChannelStem(RGB, StemShape(8, 5, 2), norm="moments")
    eager, compiled = copy.deepcopy(stem), torch.compile(stem, fullgraph=True, backend="aot_eager")
    for chosen in (ChannelSet(RGB), ChannelSet(("B", "R"))):
        x = chosen.select(images(4, size=24), RGB)
        assert torch.allclose(compiled(x, chosen), eager(x, chosen), atol=1e-5)
    for name, buffer in eager.moments.named_buffers():
        assert torch.allclose(stem.moments.get_buffer(name), buffer)


def test_groups_of_a_batch_are_seen_each_by_its_set():
    stem = stem_of(AnyChannelStem).train()
    sets, x = [ChannelSet(("R",)), ChannelSet(("R", "B"))], images(8, size=24)
    before = stem.moments.count.clone()
    stem.groups([chosen.select(part, RGB) for chosen, part in zip(sets, x.split(4), strict=True)], sets)
    assert (stem.moments.count - before).tolist() == [[2, 0, 1], [0, 0, 0], [1, 0, 1]]


def test_a_described_channel_has_the_moments_of_its_neighbour():
    stem = stem_of(AnyChannelStem, descriptors=WAVELENGTHS)
    stem.describe("500", 0.5)
    x = images(200, size=24, seed=99)[:, 2:]
    assert stem.moments.stand_ins == {"500": "B"}
    assert (stem(x, stem.parse(["500"])).std((0, 2, 3)) - 1).abs().max() < 0.15


def test_kernels_mixed_for_each_image_have_none():
    with pytest.raises(ValueError, match="mixed for each image"):
        AttentionStem(RGB, StemShape(8, 5, 2), norm="moments")


@pytest.mark.parametrize(("wavelength", "like"), [(0.5, "B"), (0.55, "G"), (0.7, "R")])
def test_neighbours_are_nearest_in_wavelength(wavelength, like):
    stem = AnyChannelStem(RGB, StemShape(8, 5, 2), norm="moments", descriptors=WAVELENGTHS)
    stem.describe("new", wavelength)
    assert stem.moments.stand_ins == {"new": like}
