"""The benchmarks of training steps, of several ranks, and of ZeRO: that they compare like with like."""

import copy
import json
import time
from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from training.benchmarks.harness import measure
from training.benchmarks.ranks import World, ask, closing
from training.benchmarks.train import (
    AGAIN,
    ALONE,
    BESIDE,
    OURS,
    PLAIN,
    TOGETHER,
    TrainBenchmark,
    make_trainer,
    peak_flops,
    plain_network,
    plain_steps,
    training_flops,
    utilisation,
)
from training.benchmarks.zero import BUCKET, ZeroBenchmark, zero_rank
from training.records import read_record
from training.reporting.benchmarks import train_rows, zero_rows
from training.reporting.tables import results
from training.runtime import Runtime
from training.scaling import ZERO_PARTS, zero_bytes

TINY = TrainBenchmark(body="resnet10", size=32, batch_size=6, precision="fp32", ranks=1)
QUICK = ("--body", "resnet10", "--size", "32", "--batch-size", "2", "--rounds", "1", "--seconds", "0.01")


def test_both_loops_do_the_same_arithmetic(fresh_accelerate, tmp_path):
    """The same losses, and after some steps the same weights: else the benchmark would compare two things."""
    torch.manual_seed(0)
    trainer = make_trainer(TINY, tmp_path)
    network, batch = plain_network(copy.deepcopy(trainer.model)), trainer.train._batch
    ours, plain = trainer.iterate(), plain_steps(network, batch, TINY.recipe().optim, "fp32")
    for _ in range(4):
        assert loss(plain_network(trainer.model), batch) == pytest.approx(loss(network, batch), rel=1e-5)
        next(ours)
        assert next(plain) == len(batch.images)
    pairs = list(zip(plain_network(trainer.model).parameters(), network.parameters(), strict=True))
    assert any(p.dim() == 1 for p, _ in pairs)  # norms too, which have no weight decay
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def loss(network, batch):
    """Of a copy, since a forward pass moves the norms' statistics."""
    with torch.no_grad():
        return F.cross_entropy(copy.deepcopy(network)(batch.images), batch.labels, label_smoothing=0.1).item()


def test_our_loop_is_measured_with_its_logging(fresh_accelerate, tmp_path):
    trainer = make_trainer(TINY, tmp_path)
    list(islice(trainer.iterate(), TINY.recipe().schedule.log_steps))
    [line] = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == TINY.recipe().schedule.log_steps
    assert line["train/images_per_s"] > 0


def test_loops_are_measured_and_kept_as_a_record(tmp_path, program):
    file = tmp_path / "train.json"
    assert program("benchmark", "train", *QUICK, "--ranks", "1", "--peak", "2", "--record", file) == 0
    record = read_record(file)
    step = record["step"]
    assert list(step["rates"]) == [PLAIN, AGAIN, OURS]
    assert record["scaling"] is None
    rate = step["summary"][OURS]["images_per_s"]["median"]
    assert step["utilisation"][OURS] == pytest.approx(rate * step["flops_per_image"] / 2e12)
    head, plain, _, ours = train_rows([record])
    assert [plain[0], ours[0]] == ["resnet10, plain loop, wall time", "resnet10, our loop, wall time"]
    assert len(head) == len(plain) == len(ours)
    assert record["provenance"]["commit"][:12] in results([record])[1]


def test_flops_of_training_are_six_for_a_multiply_add():
    """ResNet-34 at 224 px is known to have 3.67 G multiply-adds with 1000 classes, which are half a million."""
    job = TrainBenchmark(ranks=1)
    assert training_flops(job.network(), 224) == pytest.approx(6 * 3.67e9, rel=0.002)
    assert utilisation(1000, 22e9, 312e12) == pytest.approx(0.0705, abs=1e-4)
    assert utilisation(1000, 22e9, None) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_go_by_the_name_of_the_gpu(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)

    class OnGPU:
        device, precision = torch.device("cuda", 0), "bf16"

    assert peak_flops(None, OnGPU) == peak
    assert peak_flops(100.0, OnGPU) == 100e12
    OnGPU.precision = "fp32"
    assert peak_flops(None, OnGPU) is None


def test_compiled_loops_are_contenders(tmp_path, program, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    file = tmp_path / "train.json"
    assert program("benchmark", "train", *QUICK, "--ranks", "1", "--compile", "--record", file) == 0
    assert len(compiled) == 2
    assert list(read_record(file)["step"]["rates"])[3:] == [f"{PLAIN}, compiled", f"{OURS}, compiled"]


def test_the_processors_clock_stands_still_while_others_have_it():
    def contender():
        while True:
            time.sleep(0.02)
            sum(range(200_000))
            yield 1

    wall, processor = (
        measure({"a": contender}, rounds=1, seconds=0.05, clock=c)["a"][0] for c in ("wall", "processor")
    )
    assert processor > 1.5 * wall


def place(*_):
    """A process that says what it sees, adds numbers up, and fails when told to."""
    runtime = Runtime("fp32")

    def answer(what):
        if what == "fail":
            raise ValueError("told to")
        return (runtime.rank, runtime.world, int(runtime.sum(torch.tensor(runtime.rank + 1))))

    return answer


def test_a_world_is_one_of_ranks_and_two_worlds_know_nothing_of_each_other():
    with closing([World(1, place), World(2, place)]) as worlds:
        assert ask(worlds, "place") == [(0, 1, 1), (0, 2, 3), (1, 2, 3)]
        with pytest.raises(RuntimeError, match=r"(?s)a rank of the benchmark failed.*told to"):
            ask(worlds[:1], "fail")
    assert not any(process.is_alive() for world in worlds for process in world._processes)


@pytest.mark.slow
def test_ranks_are_measured_against_one(tmp_path, program):
    file = tmp_path / "train.json"
    assert program("benchmark", "train", *QUICK, "--record", file) == 0
    record = read_record(file)
    scaling = record["scaling"]
    for clock in ("wall", "processor"):
        rates = scaling["rates"][clock]
        assert list(rates) == [ALONE, BESIDE, TOGETHER]
        ratio = scaling["summary"][clock][ALONE][TOGETHER]["ratio"]["median"]
        assert ratio == pytest.approx(rates[TOGETHER][0] / rates[ALONE][0])
    assert [row["bytes"] for row in scaling["all_reduce"]] == [4, 4 * record["parameters"]]
    assert train_rows([record])[-1][0] == "resnet10, 2 ranks together, processor time"


@pytest.mark.slow
def test_ranks_hold_under_zero_what_the_formula_says():
    pytest.importorskip("deepspeed")
    job = ZeroBenchmark(body="resnet10")
    counts = [p.numel() for p in job.network().parameters()]
    parameters, on_their_way = sum(counts), 4 * (2 * max(counts) + BUCKET)  # a weight or two, and a bucket
    with closing([World(2, zero_rank, job)]) as worlds:
        for stage in (0, 2, 3):
            for held in ask(worlds, stage):
                formula = zero_bytes(parameters, 2, stage)
                for part in ZERO_PARTS:
                    # Beside its share a rank holds for a moment gradients that are on their way.
                    room = on_their_way if part == "gradients" and stage else 0
                    assert 0 <= held[part] - getattr(formula, part) <= room


def test_table_of_memory_holds_what_was_counted_beside_the_formula():
    parameters = 1_000_000
    held = {"weights": 4_000_000, "gradients": 4_000_000, "state": 4_000_000}
    record = {
        "kind": "benchmark zero",
        "name": "net",
        "settings": {"ranks": 2},
        "parameters": parameters,
        "measured": {"0": [held | {"gradients kept": 2_000_000, "anything else": 7}] * 2},
        "provenance": {"commit": "0" * 40, "hardware": "here"},
    }
    head, row = zero_rows([record])
    assert row == ["net, stage 0, 2 ranks", *["4.0 / 4.0"] * 3, "12.0 / 12.0", "12.0", "12.0", "12.0"]
    assert len(head) == len(row)
