import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import mobilenet_v3_small, vit_b_16

from modeling.pooling import CovariancePool, MeanPool
from modeling.receptive_field import Square, effective_receptive_field, smallest_square
from modeling.zoo import build_model

SMALL = {"resnet10": {}, "strict": {"width": 1 / 16}, "attention": {"width": 1 / 6}, "recurrent": {"width": 1 / 2}}


class Whole(nn.Module):
    """Adds the mean over all positions, so that each sees the whole image."""

    def forward(self, x):
        return x + x.mean((2, 3), keepdim=True)


def conv(kernel_size, stride=1, planes=1, features=1):
    """All weights alike, padded by half the kernel."""
    layer = nn.Conv2d(planes, features, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def pooled(*layers):
    return nn.Sequential(*layers, MeanPool(1))


def images(height, width=None, count=2, planes=1):
    return torch.rand(count, planes, height, width or height, generator=torch.Generator().manual_seed(0))


def box(height, width, top, left, side):
    """A field that is even within a square and nothing elsewhere."""
    field = torch.zeros(height, width, dtype=torch.float64)
    field[top : top + side, left : left + side] = 1 / side**2
    return field


@pytest.mark.parametrize("size", [20, 21])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_field_of_one_convolution_is_its_kernel(kernel_size, stride, size):
    field = effective_receptive_field(pooled(conv(kernel_size, stride)), images(size))
    middle = stride * (-(-size // stride) // 2)  # the pixel that the middle position stands on
    corner = middle - kernel_size // 2
    torch.testing.assert_close(field, box(size, size, corner, corner, kernel_size))
    assert smallest_square(field, 1) == Square(corner, corner, kernel_size)


@given(
    layers=st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 2])), min_size=2, max_size=3),
    size=st.integers(60, 64),
)
@settings(max_examples=20)
def test_kernels_one_behind_the_other_add_up(layers, size):
    """Side 1 + Σ (k - 1) · strides before, unless a stride jumps over pixels."""
    side, jump = 1, 1
    for kernel_size, stride in layers:
        side, jump = side + (kernel_size - 1) * jump, jump * stride
    field = effective_receptive_field(pooled(*(conv(k, stride) for k, stride in layers)), images(size, count=1))
    assert smallest_square(field, 1).side == side


def test_two_convolutions_see_the_product_of_their_kernels():
    field = effective_receptive_field(pooled(conv(3), conv(3)), images(9))
    row = torch.tensor([1.0, 2, 3, 2, 1], dtype=torch.float64)
    wanted = row.outer(row).square()
    torch.testing.assert_close(field[2:7, 2:7], wanted / wanted.sum())
    assert field.sum().item() == pytest.approx(1)


def test_middle_of_a_map_that_is_not_square():
    field = effective_receptive_field(pooled(conv(3)), images(8, 13))
    torch.testing.assert_close(field, box(8, 13, 4 - 1, 6 - 1, 3))


def test_global_mean_sees_everything():
    field = effective_receptive_field(pooled(conv(1), Whole()), images(8))
    assert (field > 0).all()
    assert smallest_square(field, 1) == Square(0, 0, 8)


def test_symmetric_networks_have_symmetric_fields():
    field = effective_receptive_field(pooled(conv(5), nn.Softplus(), conv(3)), torch.ones(1, 1, 15, 15))
    for same in (field.flip(0), field.flip(1), field.T):
        torch.testing.assert_close(field, same)


def test_random_signs_estimate_the_squares_of_all_features():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), MeanPool(6))
    field = effective_receptive_field(network, images(5, count=4000, planes=2), batch_size=4000)
    wanted = network[0].weight.detach().double().square().sum((0, 1))
    torch.testing.assert_close(field[1:4, 1:4], wanted / wanted.sum(), atol=0.005, rtol=0)


def test_squared_gradients_are_averaged_over_images():
    class Squared(nn.Module):
        def forward(self, x):
            return x.square()

    two = torch.ones(2, 1, 5, 5)
    two[1, :, 2, 2] = 3.0
    field = effective_receptive_field(pooled(Squared(), conv(3)), two, batch_size=1)
    wanted = torch.full((3, 3), 4.0 + 4, dtype=torch.float64)  # (2x)² of both
    wanted[1, 1] = 4 + 36
    torch.testing.assert_close(field[1:4, 1:4], wanted / wanted.sum())


@pytest.mark.parametrize("channels", ["RGB", "GB", "R"])
@pytest.mark.parametrize("body", SMALL)
def test_network_stays_as_it_is_and_its_mode_does_not_matter(body, channels):
    torch.manual_seed(0)
    network = build_model(body, "any-channel", "RGB", 5, **SMALL[body])
    network.body.eval()
    x = images(37, count=3, planes=len(channels))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    field = effective_receptive_field(network, x, channels)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert not x.requires_grad
    assert torch.equal(effective_receptive_field(network.eval(), x, channels), field)
    with torch.no_grad():
        deployed = effective_receptive_field(network.materialize(channels), x)
    torch.testing.assert_close(deployed, field, atol=1e-5, rtol=1e-3)


def test_strict_reaches_no_further_than_its_kernels():
    """7, then 5 at stride 4, then 3 at stride 8."""
    network = build_model("strict", "plain", "RGB", 5, width=1 / 16)
    field = effective_receptive_field(network, images(84, planes=3))
    assert smallest_square(field, 1).side <= 7 + 4 * 4 + 2 * 8


def test_what_the_last_pooling_takes_in_is_measured():
    """Others come before it, as the squeeze of a squeeze-and-excitation block, or belong to it."""
    assert effective_receptive_field(mobilenet_v3_small(), images(64, planes=3)).shape == (64, 64)
    network = nn.Sequential(conv(3, features=4), CovariancePool(4, reduced=2))
    field = effective_receptive_field(network, images(8))
    assert smallest_square(field, 1).side == 3


def test_networks_without_a_last_map_are_refused():
    with pytest.raises(ValueError, match=r"pools no feature map by any of .*MeanPool"):
        effective_receptive_field(vit_b_16(image_size=32), images(32, planes=3, count=1))
    dead = conv(3)
    for weight in (0.0, math.nan, math.inf):
        nn.init.constant_(dead.weight, weight)
        with pytest.raises(ValueError, match="no pixel moves"):
            effective_receptive_field(pooled(dead), images(8))


@pytest.mark.parametrize(("share", "side"), [(0.01, 1), (0.5, 8), (0.64, 8), (0.65, 9), (0.9, 10), (1, 10)])
def test_square_of_a_known_field(share, side):
    """An even field of 10 × 10 pixels: 8 × 8 hold 64 %."""
    assert smallest_square(box(30, 30, 3, 17, 10), share).side == side


def test_squares_lie_where_the_field_is():
    assert smallest_square(box(30, 30, 3, 17, 10), 1) == Square(3, 17, 10)
    assert smallest_square(box(12, 30, 3, 17, 9), 1) == Square(3, 17, 9)
    point = torch.zeros(9, 9)
    point[8, 0] = 1
    assert smallest_square(point, 0.9) == Square(8, 0, 1)
    assert smallest_square(torch.ones(4, 7), 1) == Square(0, 0, 7)
    assert smallest_square(torch.ones(1, 1), 0.5) == Square(0, 0, 1)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100), st.floats(0.05, 0.95))
@settings(max_examples=40)
def test_no_smaller_square_holds_as_much(height, width, seed, share):
    field = torch.rand(height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    place = smallest_square(field, share)
    held = field[place.top : place.top + place.side, place.left : place.left + place.side].sum() / field.sum()
    assert held >= share - 1e-6
    side = place.side - 1
    for top in range(height):
        for left in range(width):
            assert field[top : top + side, left : left + side].sum() / field.sum() < share


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_shares_are_parts(share):
    with pytest.raises(ValueError, match="must lie in"):
        smallest_square(torch.ones(2, 2), share)
