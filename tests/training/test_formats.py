"""Every body as ONNX and torch.export, and that a file which computes something else is not made."""

import io
import json
import sys

import onnxruntime
import pytest
import torch
from torch import nn

from modeling.zoo import BODIES, build_model
from training import formats
from training.config import ConfigError
from training.formats import MismatchError, check_installed, export

QUICK = ("resnet10", "strict")
FIXED = set(BODIES) - {"strict"}  # their pooling ties a torch.export program to a size
METADATA = {"channels": '["R", "G"]', "class_names": '["Käfer", "猫"]'}


def network(body: str, stem: str = "any-channel") -> nn.Module:
    """Small, with statistics as training might leave them."""
    torch.manual_seed(0)
    options = {} if body.startswith("resnet") else {"width": 0.5 if body.startswith(("rrdb", "rec")) else 0.2}
    net = build_model(body, stem, "RGB", 5, **options)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.8, 1.2)
    return net.eval()


def made(kind: str, net: nn.Module, channels: str = "RG") -> formats.Exported:
    return export(kind, net.materialize(channels), lambda x: net(x, channels), len(channels), 48, METADATA)


def slowly(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("body", slowly(BODIES))
def test_onnx_takes_any_size_and_batch(body):
    net = network(body)
    result = made("onnx", net)
    session = onnxruntime.InferenceSession(result.data, providers=["CPUExecutionProvider"])
    other = 0
    for n, height, width in ((1, 48, 48), (4, 41, 67), (2, 96, 33)):
        x = torch.randn(n, 2, height, width)
        (logits,) = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            differences = (torch.from_numpy(logits) - net(x, "RG")).abs().amax(1)
        other += (~(differences <= 1e-4)).sum().item()
    assert other <= (body == "graph")  # where neighbours tie, rounding decides
    assert result.any_size
    assert session.get_modelmeta().custom_metadata_map == METADATA
    assert [axis for axis in session.get_inputs()[0].shape] == ["batch", 2, "height", "width"]  # noqa: C416


@pytest.mark.parametrize("body", slowly(BODIES))
def test_torch_export_takes_any_batch_and_any_size_where_nothing_pools(body):
    net = network(body)
    result = made("torch-export", net)
    told = {"metadata.json": ""}
    program = torch.export.load(io.BytesIO(result.data), extra_files=told).module()
    assert json.loads(told["metadata.json"]) == METADATA
    assert result.any_size == (body not in FIXED)
    for n, height, width in ((1, 48, 48), (5, 48, 48), *([(2, 41, 67)] if result.any_size else [])):
        x = torch.randn(n, 2, height, width)
        with torch.no_grad():
            assert (program(x) - net(x, "RG")).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
@pytest.mark.parametrize("stem", ["zero-fill", "zero-fill-rescaled", "repeat", "table", "hypernet"])
def test_other_stems_export_as_well(stem, kind):
    assert made(kind, network("strict", stem), "GB").difference <= 1e-4


@pytest.mark.slow
def test_kernels_made_for_each_image_are_exported_by_torch():
    assert made("torch-export", network("strict", "attention"), "GB").difference <= 1e-4


def test_kernels_made_for_each_image_are_refused_by_onnx():
    with pytest.raises(ConfigError, match=r"a kernel for each image.*choose --formats torch-export"):
        made("onnx", network("strict", "attention"))


class Plain(nn.Module):
    """One number per image; exports at once."""

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
@pytest.mark.parametrize(("off", "figure"), [(1e-3, "0.001"), (float("nan"), "nan")])
def test_a_difference_is_refused_with_its_figure(kind, off, figure):
    with pytest.raises(MismatchError, match=figure):
        export(kind, Plain().eval(), lambda x: Plain()(x) + off, 1, 32, {})


def test_a_difference_at_one_odd_size_is_found():
    """As of a program that rounds the size of a pooled map otherwise."""
    with pytest.raises(MismatchError):
        export("torch-export", Plain().eval(), lambda x: Plain()(x) + (x.shape[3] % 2) * 2e-4, 1, 32, {})


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime: pip install -e '\.\[export\]'"):
        check_installed(("onnx",))
    check_installed(("torch-export",))
