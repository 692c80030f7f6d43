"""The model of time and memory on many GPUs: its arithmetic, and that the table in the docs is made by it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from training.records import read_record
from training.reporting.benchmarks import scaling_rows
from training.scaling import (
    IMAGES,
    Cluster,
    Work,
    agreement_seconds,
    all_reduce_seconds,
    buckets,
    clusters,
    compute_seconds,
    decoding_rates,
    efficiency,
    exposed_seconds,
    message_seconds,
    predict,
    step_seconds,
    zero_bytes,
)

RECORDS = Path(__file__).parent.parent.parent / "docs/records"
NODE = Cluster("test", gpus=8, flops=1e14, inside=2e11, network=1e11, launch=5e-6, hop=1e-5, cores=100)
WORK = Work(images=100, flops=2e10, gradient=80_000_000, kernels=500, decoded=400.0)


def test_memory_under_zero_is_the_papers():
    """Figure 1 of arXiv 1910.02054: 7.5 G parameters, 64 GPUs, 2 + 2 + 12 bytes for each parameter."""
    sizes = [
        zero_bytes(7_500_000_000, 64, stage, weight=2, gradient=2, state=12, master=0).total for stage in range(4)
    ]
    assert [round(size / 1e9, 1) for size in sizes] == [120.0, 31.4, 16.6, 1.9]
    assert zero_bytes(10, 4, 1, mean=4).state == 8 * 3 + 4 * 10  # a share is rounded up, a mean is whole


def test_an_all_reduce_of_much_is_bound_by_the_slowest_link():
    """2 (p - 1) / p times the bytes pass each of them, at 92 % of its bandwidth."""
    assert all_reduce_seconds(10**10, 1, NODE) == pytest.approx(2 * 7 / 8 * 1e10 / (0.92 * 2e11), rel=0.01)
    assert all_reduce_seconds(10**10, 2, NODE) == pytest.approx(2 * 15 / 16 * 1e10 / (0.92 * 1e11), rel=0.01)
    assert all_reduce_seconds(10**10, 1, replace(NODE, gpus=1)) == 0


def test_an_all_reduce_of_little_takes_a_tree_whose_hops_grow_with_the_logarithm():
    few, many = (all_reduce_seconds(4, nodes, NODE) for nodes in (8, 64))
    assert many - few == pytest.approx(2 * 3 * 8.5e-6, rel=0.01)
    assert many < 1e-3 < 2 * 511 * 1.9e-6  # a ring would go through all 512


def test_buckets_are_those_of_ddp():
    sizes = buckets(80_000_000)
    assert (sizes[0], sum(sizes), max(sizes)) == (2**20, 80_000_000, 25 * 2**20)
    assert buckets(1000) == [1000]


def test_only_what_the_backward_pass_does_not_hide_counts():
    last = all_reduce_seconds(buckets(WORK.gradient)[-1], 2, NODE)
    assert exposed_seconds(WORK, 2, NODE) == pytest.approx(last)  # 13 ms of backward pass for 2 ms of all-reduces
    small = replace(WORK, images=1)
    reduced = sum(all_reduce_seconds(size, 2, NODE) for size in buckets(WORK.gradient))
    assert exposed_seconds(small, 2, NODE) == pytest.approx(reduced - 2 / 3 * compute_seconds(small, NODE))


def test_the_slowest_part_sets_the_pace():
    seconds = step_seconds(WORK, 1, NODE)
    assert seconds["GPU"] == pytest.approx(0.02 + exposed_seconds(WORK, 1, NODE))
    assert seconds["host"] == pytest.approx(500 * 5e-6 + 14e-5 / 20)  # the ranks meet every twenty steps
    assert seconds["data"] == pytest.approx(8 * 100 / 40_000)
    assert agreement_seconds(512, NODE) == pytest.approx(1022e-5)
    assert efficiency(replace(WORK, decoded=200.0), 1, NODE) == pytest.approx(0.5)
    assert efficiency(WORK, 640, NODE, meet_every=1) < efficiency(WORK, 640, NODE)


def test_predictions_in_the_docs_are_those_of_this_code():
    record = read_record(RECORDS / "scaling.json")
    names = ("loader-mini-imagenet-84", "loader-photos")
    decoded = decoding_rates([read_record(RECORDS / f"{name}.json") for name in names])
    hop = message_seconds(read_record(RECORDS / "all-reduce-cpu.json"))
    now = json.loads(json.dumps(predict("resnet34", decoded, hop)))
    assert [now["rows"], now["clusters"]] == [record["rows"], record["clusters"]]
    assert now["facts"] | {"kernels": 0} == record["facts"] | {"kernels": 0}  # which a version of torch may change


def test_the_modelled_gpu_works_at_what_was_published_for_it():
    """ResNet-34 at 224 px, about 4100 images/s or 29 % of what an A100 can do."""
    [cluster, _] = clusters(1e-5)
    assert cluster.flops / 312e12 == pytest.approx(0.29, abs=0.01)


@pytest.mark.parametrize(("alone", "eight"), [(2470, 16621), (938, 7248)], ids=["mixed precision", "TF32"])
def test_what_nvidia_published_for_eight_gpus_stays_below_the_prediction(alone, eight):
    """ResNet-50 at 224 px, 256 images on each A100: the model is an upper bound."""
    [node, _] = clusters(5e-5)
    work = Work(images=256, flops=6 * 4.11e9, gradient=4 * 25_557_032, kernels=800, decoded=355.0)
    predicted = efficiency(work, 1, replace(node, flops=alone * work.flops))
    assert eight / (8 * alone) < predicted == pytest.approx(1.0, abs=0.005)


def test_table_names_what_sets_the_pace():
    record = predict("resnet34", {84: 3000.0, 224: 350.0}, 5e-5)
    head, *rows = scaling_rows([record])
    assert len(rows) == 2 * 2 * len(IMAGES)
    assert len(head) == len(rows[0])
    assert float(rows[0][-1].split("(")[1].rstrip(")")) < 0.5 * float(rows[0][-1].split()[0])  # a ring of 512
