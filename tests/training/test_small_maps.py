"""Convolutions by matrix products say what torch's say, as precisely."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from training import runtime
from training.small_maps import SmallMaps, _Convolution


def passed(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The answer, and the gradients of its sum of squares."""
    y = conv(x)
    wanted = [x, *conv.parameters()]
    return [y, *torch.autograd.grad(y.float().square().sum(), wanted)]


def errors(conv: nn.Conv2d, x: Tensor) -> tuple[list[float], list[float]]:
    """How far torch in bf16, and we, are from float64; relative to each tensor's norm."""
    exact = passed(conv.double(), x.double())
    conv.float()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = passed(conv, x)
        with SmallMaps():
            ours = passed(conv, x)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    return tuple(
        [((a.double() - b).norm() / (b.norm() + 1e-9)).item() for a, b in zip(found, exact, strict=True)]
        for found in (theirs, ours)
    )


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_as_precise_as_the_library(data: st.DataObject) -> None:
    kernel = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    padding = (data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4)))
    depthwise = data.draw(st.booleans())
    planes = data.draw(st.sampled_from([3, 32, 160]))
    conv = nn.Conv2d(
        planes,
        planes if depthwise else data.draw(st.sampled_from([160, 512])),
        kernel,
        (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))),
        padding,
        groups=planes if depthwise else 1,
        bias=data.draw(st.booleans()),
    )
    x = torch.randn(2, planes, data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9)), requires_grad=True)
    if data.draw(st.booleans()):
        conv, x = conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    for theirs, ours in zip(*errors(conv, x), strict=True):
        assert ours <= 1.5 * theirs + 2e-3


@pytest.mark.parametrize("stride", [1, 2, (1, 3)], ids=str)
def test_what_overlapping_windows_ask_of_an_input_adds_up(stride: int | tuple[int, int]) -> None:
    conv, x = nn.Conv2d(32, 512, 3, stride, padding=1), torch.randn(2, 32, 4, 4, requires_grad=True)
    for theirs, ours in zip(*errors(conv, x), strict=True):
        assert ours <= 1.5 * theirs + 2e-3


@pytest.mark.parametrize(("size", "features"), [(2, 512), (4, 512), (8, 128)])
def test_takes_over_where_it_is_quick(size: int, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(nn.Conv2d(features, features, 3, padding=1), torch.randn(1, features, size, size), monkeypatch)


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(64, 128, 3, padding=1), 9),
        (nn.Conv2d(64, 64, 3, padding=1), 4),
        (nn.Conv2d(256, 128, 3, padding=1), 4),
        (nn.Conv2d(128, 128, 3, padding=2, dilation=2), 4),
        (nn.Conv2d(128, 128, 3, padding="same"), 4),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), 4),
    ],
    ids=str,
)
def test_leaves_the_rest_alone(conv: nn.Conv2d, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, conv.in_channels, size, size)
    assert not taken(conv, x, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16), SmallMaps():
        y = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(y, conv(x))


def test_float32_stays_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Conv2d(128, 128, 3), torch.randn(1, 128, 4, 4)
    with monkeypatch.context() as patch, SmallMaps():
        patch.setattr(_Convolution, "apply", None)
        y = conv(x)
    assert torch.equal(y, F.conv2d(x, conv.weight, conv.bias))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((512, 4, 4), torch.float32), ((0, 512, 4, 4), torch.float32), ((1, 512, 4, 4), torch.float64)],
    ids=str,
)
def test_single_images_none_and_precise_ones_are_answered_as_ever(shape: tuple, dtype: torch.dtype) -> None:
    conv, x = nn.Conv2d(512, 512, 3, dtype=dtype), torch.randn(shape, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = conv(x)
        with SmallMaps():
            assert torch.equal(conv(x), theirs)
    assert theirs.dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(input=x, weight=w),
        lambda x, w: F.conv2d(x, w, None, [2], (1,)),
        lambda x, w: F.conv2d(x, weight=w, stride=[2, 1], padding=[0, 1]),
    ],
)
def test_takes_arguments_as_torch_does(call: Callable) -> None:
    x, w = torch.randn(1, 512, 4, 4), torch.randn(512, 512, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = call(x, w)
        with SmallMaps():
            ours = call(x, w)
    assert torch.allclose(ours.float(), theirs.float(), atol=0.5, rtol=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        {"padding": -1},
        {"stride": 0},
        {"groups": 3},
        {"weight": torch.randn(512, 3, 3, 3)},
        {"weight": torch.randn(512, 512, 3)},
        {"bias": torch.randn(1)},
        {"bias": torch.randn(7)},
    ],
    ids=lambda wrong: " ".join(f"{k} {getattr(v, 'shape', v)}" for k, v in wrong.items()),
)
def test_torch_says_what_is_wrong(wrong: dict) -> None:
    given = {"input": torch.randn(1, 512, 4, 4), "weight": torch.randn(512, 512, 3, 3), **wrong}
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError) as theirs:
            F.conv2d(**given)
        with pytest.raises(RuntimeError) as ours, SmallMaps():
            F.conv2d(**given)
    assert str(ours.value) == str(theirs.value)


def test_the_answer_may_be_changed_in_place() -> None:
    conv, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(1, 512, 2, 2)
    with torch.autocast("cpu", torch.bfloat16), SmallMaps():
        F.relu(conv(x), inplace=True).sum().backward()
    assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("precision", "units", "quick"), [("bf16", True, True), ("bf16", False, False), ("fp32", True, False)]
)
@pytest.mark.usefixtures("fresh_accelerate")
def test_trains_this_way_where_there_are_matrix_units(
    precision: str, units: bool, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(runtime, "has_matrix_units", lambda: units)
    monkeypatch.setattr(_Convolution, "apply", lambda *args: calls.append(args))
    ours = runtime.Runtime(precision)
    with ours.autocast():
        nn.Conv2d(128, 128, 3)(torch.randn(1, 128, 4, 4))
    assert bool(calls) == ours.small_maps == quick  # a run says so as it starts


def taken(conv: nn.Conv2d, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a convolution goes our way."""
    calls = []
    with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16), SmallMaps():
        patch.setattr(_Convolution, "apply", lambda *args: calls.append(args))
        conv(x)
    return bool(calls)
