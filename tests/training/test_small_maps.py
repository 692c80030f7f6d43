"""Convolutions by matrix products say what torch's say, as precisely."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from training import runtime, small_maps
from training.small_maps import SmallMaps, _Convolution

# How far ours may be from float64 where the library is at it: the same sums in another order.
TOLERANCE = {"bf16": 2e-3, "fp32": 2e-6}
precisions = pytest.mark.parametrize("precision", ["bf16", "fp32"])


def passed(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The answer, and the gradients of its sum of squares."""
    y = conv(x)
    wanted = [x, *conv.parameters()]
    return [y, *torch.autograd.grad(y.float().square().sum(), wanted)]


def autocast(precision: str) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def check_errors(conv: nn.Conv2d, x: Tensor, precision: str) -> None:
    """We are as near to float64 as torch is in this precision, relative to each tensor's norm."""
    exact = passed(conv.double(), x.double())
    conv.float()
    with autocast(precision):
        theirs = passed(conv, x)
        with SmallMaps(precision):
            ours = passed(conv, x)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    assert ours[1].permute(0, 2, 3, 1).is_contiguous() or theirs[1].is_contiguous()  # no view of something wider
    for a, b, reference in zip(ours, theirs, exact, strict=True):
        norm = reference.norm() + 1e-9
        assert (a - reference).norm() / norm <= 1.5 * (b - reference).norm() / norm + TOLERANCE[precision]


@precisions
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_as_precise_as_the_library(precision: str, data: st.DataObject) -> None:
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
    check_errors(conv, x, precision)


@precisions
@pytest.mark.parametrize("stride", [1, 2, (1, 3)], ids=str)
def test_what_overlapping_windows_ask_of_an_input_adds_up(stride: int | tuple[int, int], precision: str) -> None:
    conv, x = nn.Conv2d(32, 512, 3, stride, padding=1), torch.randn(2, 32, 4, 4, requires_grad=True)
    check_errors(conv, x, precision)


@pytest.mark.parametrize(
    ("precision", "size", "features"), [("bf16", 2, 512), ("bf16", 4, 512), ("bf16", 8, 128), ("fp32", 8, 512)]
)
def test_takes_over_where_it_is_quick(
    precision: str, size: int, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = nn.Conv2d(features, features, 3, padding=1), torch.randn(1, features, size, size)
    assert taken(conv, x, precision, monkeypatch)


@pytest.mark.parametrize(
    ("precision", "conv", "size"),
    [
        ("bf16", nn.Conv2d(64, 128, 3, padding=1), 9),
        ("bf16", nn.Conv2d(64, 64, 3, padding=1), 4),
        ("bf16", nn.Conv2d(256, 128, 3, padding=1), 4),
        ("bf16", nn.Conv2d(128, 128, 3, padding=2, dilation=2), 4),
        ("bf16", nn.Conv2d(128, 128, 3, padding="same"), 4),
        ("bf16", nn.Conv2d(128, 128, 3, padding=1, groups=2), 4),
        ("fp32", nn.Conv2d(256, 256, 3, padding=1), 4),
        ("fp32", nn.Conv2d(512, 512, 3, padding=1), 9),
        ("fp32", nn.Conv2d(512, 512, 3, padding=1, groups=512), 4),
    ],
    ids=str,
)
def test_leaves_the_rest_alone(
    precision: str, conv: nn.Conv2d, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, conv.in_channels, size, size)
    assert not taken(conv, x, precision, monkeypatch)
    with autocast(precision), SmallMaps(precision):
        y = conv(x)
    with autocast(precision):
        assert torch.equal(y, conv(x))


@precisions
def test_inference_stays_with_the_library(precision: str) -> None:
    conv, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(2, 512, 4, 4)
    with torch.no_grad(), autocast(precision):
        theirs = conv(x)
        with SmallMaps(precision):
            assert torch.equal(conv(x), theirs)


@pytest.mark.parametrize(("asked", "cast"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_another_precision_stays_with_the_library(asked: str, cast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Conv2d(512, 512, 3), torch.randn(1, 512, 4, 4)
    with monkeypatch.context() as patch, autocast(cast), SmallMaps(asked):
        patch.setattr(_Convolution, "apply", None)
        y = conv(x)
    with autocast(cast):
        assert torch.equal(y, F.conv2d(x, conv.weight, conv.bias))


@precisions
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((512, 4, 4), torch.float32), ((0, 512, 4, 4), torch.float32), ((1, 512, 4, 4), torch.float64)],
    ids=str,
)
def test_single_images_none_and_precise_ones_are_answered_as_ever(
    shape: tuple, dtype: torch.dtype, precision: str
) -> None:
    conv, x = nn.Conv2d(512, 512, 3, dtype=dtype), torch.randn(shape, dtype=dtype)
    with autocast(precision):
        theirs = conv(x)
        with SmallMaps(precision):
            assert torch.equal(conv(x), theirs)
    cast = torch.bfloat16 if precision == "bf16" and dtype == torch.float32 else dtype
    assert theirs.dtype == cast


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
        with SmallMaps("bf16"):
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
        with pytest.raises(RuntimeError) as ours, SmallMaps("bf16"):
            F.conv2d(**given)
    assert str(ours.value) == str(theirs.value)


@precisions
def test_the_answer_may_be_changed_in_place(precision: str) -> None:
    conv, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(1, 512, 2, 2)
    with autocast(precision), SmallMaps(precision):
        F.relu(conv(x), inplace=True).sum().backward()
    assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize(("amx", "slow"), [(True, "bf16"), (False, None)])
def test_slow_processors_are_known_by_their_units(
    amx: bool, slow: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert small_maps.slow_precision() == slow
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert small_maps.slow_precision() is None


@pytest.mark.parametrize(
    ("precision", "slow", "quick"),
    [("bf16", "bf16", True), ("bf16", None, False), ("fp32", "bf16", False), ("fp32", "fp32", True)],
)
@pytest.mark.usefixtures("fresh_accelerate")
def test_trains_this_way_where_the_processor_is_slow(
    precision: str, slow: str | None, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(runtime, "slow_precision", lambda: slow)
    monkeypatch.setattr(_Convolution, "apply", lambda *args: calls.append(args))
    ours = runtime.Runtime(precision)
    with ours.autocast():
        nn.Conv2d(512, 512, 3)(torch.randn(1, 512, 4, 4))
    assert bool(calls) == ours.small_maps == quick  # a run says so as it starts


def taken(conv: nn.Conv2d, x: Tensor, precision: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a convolution goes our way."""
    calls = []
    with monkeypatch.context() as patch, autocast(precision), SmallMaps(precision):
        patch.setattr(_Convolution, "apply", lambda *args: calls.append(args))
        conv(x)
    return bool(calls)
