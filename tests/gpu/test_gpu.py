"""What only a CUDA device can show. Skipped, with the reason in the summary, where there is none."""

import gzip
import json
import subprocess
import sys

import pytest
import torch
from images import write_images

from pipelines.batch import IMAGENET_STD, View
from pipelines.build import build_loader
from pipelines.integrity import scan
from pipelines.manifest import read_manifest
from training.monitor import read_metrics
from training.runtime import Runtime, resolve_precision

pytestmark = pytest.mark.gpu


@pytest.fixture
def samples(tmp_path):
    return scan(read_manifest(write_images(tmp_path / "data", 29) / "train.txt"))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gpu_decoding_equals_cpu_decoding(samples, half, training):
    pytest.importorskip("nvidia.dali")
    view = View(size=32, training=training, half=half)
    on_gpu, _ = build_loader("dali", samples, view, 8, torch.device("cuda", 0))
    on_cpu, _ = build_loader("portable", samples, view, 8, torch.device("cpu"))
    for batch, oracle in zip(on_gpu, on_cpu, strict=True):
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.ids.cpu(), oracle.ids)
        difference = (batch.images.cpu().float() - oracle.images.float()).abs() * 255 * min(IMAGENET_STD)
        assert difference.mean() < 1.5  # nvJPEG's inverse DCT and chroma upsampling are not libjpeg's


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_resident_on_the_gpu_equals_the_cpu(samples, half, training):
    view = View(size=32, training=training, half=half)
    on_gpu, _ = build_loader("resident", samples, view, 8, torch.device("cuda", 0))
    on_cpu, _ = build_loader("resident", samples, view, 8, torch.device("cpu"))
    for batch, oracle in zip(on_gpu, on_cpu, strict=True):
        assert batch.images.device.type == "cuda"
        assert batch.images.dtype == (torch.float16 if half else torch.float32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        difference = (batch.images.cpu().float() - oracle.images.float()).abs() * 255 * min(IMAGENET_STD)
        assert difference.max() < 1.3  # the CPU's kernel rounds twice, and float16 once


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_the_gpu(data_dir, tmp_path, fresh_accelerate, precision):
    """The whole program on one GPU, as `python -m training.train` starts it."""
    from tiny import train_args

    from training import train

    args = train_args(data_dir, tmp_path / "run", "--schedule.precision", precision, "--schedule.profile", "3:4")
    train.main(train.parse(args))
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["step"] == 10
    assert (tmp_path / "run/model.safetensors").exists()
    (held,) = {
        row["memory/gpu_peak_gib"] >= row["memory/gpu_allocated_gib"] > 0 for row in rows if "train/lr" in row
    }
    assert held
    (trace,) = (tmp_path / "run/profile").glob("*.gz")
    assert any(
        event.get("cat") == "kernel" for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    )


def test_the_device_has_an_index(fresh_accelerate):
    assert Runtime().device.index is not None  # DALI would decode on the CPU otherwise


def test_gpu_batches_may_be_kept(samples):
    pytest.importorskip("nvidia.dali")
    loader, _ = build_loader("dali", samples, View(size=32, training=True), 4, torch.device("cuda", 0))
    kept = [(batch, batch.images.clone()) for batch in loader]
    torch.cuda.synchronize()
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)


def test_precision_follows_the_device():
    assert resolve_precision("fp16", cpu=False) == "fp16"
    assert resolve_precision("auto", cpu=False) in ("bf16", "fp32")


def test_preflight_finds_the_gpus_fit():
    """In its own process: its ranks are forks, which need a process that has not touched CUDA."""
    ranks = str(torch.cuda.device_count())
    command = [sys.executable, "-m", "training.preflight", "--device", "cuda", "--ranks", ranks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "ok"), done.stdout + done.stderr
