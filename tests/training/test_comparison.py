"""Tables that compare models on the same images."""

import numpy as np
import pytest
import torch

from pipelines.errors import DataError
from training.evaluation.metrics import to_hex
from training.reporting.comparison import (
    EXPERTS,
    answers,
    band_rows,
    half_interval,
    network_rows,
    paired_rows,
    ratio_interval,
    ratio_rows,
    seed_rows,
)
from training.reporting.tables import accuracy_rows, results

N = 200


def record(name, right, stem="any-channel", trained_on=None, **more):
    """A record whose model got the first `right[set]` images of each set right."""
    bits = {s: to_hex(torch.arange(N) < count) for s, count in right.items()}
    scores = {s: {"accuracy": count / N, "low": 0.0, "high": 1.0} for s, count in right.items()}
    return {
        "kind": "sweep",
        "name": name,
        "images": N,
        "split": "test",
        "fingerprint": {"test": "f"},
        "right": bits,
        "scores": scores,
        "trained_on": trained_on or list(right),
        "recipe": {"model": {"stem": stem, "vocabulary": "RGB"}},
        "seconds": {"train": 60.0},
        "trained": {"hardware": "abacus", "commit": "c"},
        "stand_ins": {},
        **more,
    }


OURS = record("ours", {"RG": 160, "R": 100, "G": 90})
RIVAL = record("rival", {"RG": 150, "R": 104, "G": 90})
COST = {
    "sets": {"RG": {"parameters": 2_345_678, "macs": 300e6}},
    "depth": {"d0": 4, "d1": 6, "d2": 4, "d3": 6},
}
EXPERT_R = record("expert-R", {"R": 110}, "plain")
EXPERT_G = record("expert-G", {"G": 120}, "plain")
NAIVE = record("naive", {"RG": 180, "R": 20, "G": 10}, "zero-fill", ["RG"])


def test_differences_are_paired_and_signed():
    rows = paired_rows([OURS, RIVAL, EXPERT_R, EXPERT_G])
    assert rows[0] == ["points above ours", "RG", "R", "G", "mean"]
    # all ten differing images speak for ours: p = 2 / 2^10; four of four for the rival: 2 / 2^4
    assert rows[1][:4] == ["rival", "−5.0 (p = .002)", "+2.0 (p = .125)", "+0.0 (p = 1.000)"]
    each = np.where(np.arange(N) < 100, 0, 0.0)
    each[100:104], each[150:160] = 1 / 3, -1 / 3
    assert rows[1][4] == f"−1.0 ± {100 * half_interval(each):.1f}"
    assert rows[2][:2] == [EXPERTS, "–"]
    assert rows[2][2].startswith("+5.0")
    assert rows[2][3] == "+15.0 (p < .001)"
    assert len(rows) == 3


def test_ratios_are_to_networks_trained_on_one_set():
    rows = ratio_rows([OURS, RIVAL, EXPERT_R, NAIVE, EXPERT_G])
    assert rows[0] == ["accuracy ÷ expert's", "RG", "R", "G"]
    assert [row[0] for row in rows[1:]] == ["ours", "rival"]
    assert [cell.split()[0] for cell in rows[1][1:]] == ["0.889", "0.909", "0.750"]


def test_ratios_of_sets_that_nobody_scored_are_left_out():
    partly = record("partly", {"RG": 160}, trained_on=["RG", "R"])
    elsewhere = record("expert-G", {"R": 3}, "plain", ["G"])
    assert ratio_rows([partly, OURS, EXPERT_R, elsewhere])[1][1:] == ["–"]


def test_interval_of_a_ratio_covers_it_and_shrinks():
    rng = np.random.default_rng(1)
    a, b = rng.random(400) < 0.5, rng.random(400) < 0.6
    low, high = ratio_interval(a, b)
    assert low < a.mean() / b.mean() < high
    narrow = ratio_interval(np.tile(a, 16), np.tile(b, 16))
    assert (high - low) / (narrow[1] - narrow[0]) == pytest.approx(4, rel=0.15)
    assert ratio_interval(a, a) == (1, 1)


def test_experts_are_one_model_beside_others_and_many_alone():
    rows = accuracy_rows([OURS, EXPERT_R, RIVAL, EXPERT_G])
    assert [row[0] for row in rows[1:]] == ["ours", "rival", EXPERTS]
    assert rows[3][1:] == ["–", "55.0 (0.0–100.0)", "60.0 (0.0–100.0)", "–", "2.0 min"]
    assert [row[0] for row in accuracy_rows([EXPERT_R, EXPERT_G])[1:]] == ["expert-R", "expert-G"]
    assert len(accuracy_rows([OURS, OURS])) == 3  # two runs may share a name


def network(name: str, right: int, distill: float = 0.0) -> dict:
    history = [{"epoch": epoch, "train/loss": loss} for epoch, loss in ((0, 3.0), (1, 1.25), (1, 0.75))]
    history.insert(1, {"epoch": 1, "val/top1/RG": 0.7})
    history.append({"epoch": 2, "val/top1/RG": 0.81})
    recipe = {"schedule": {"distill": distill}}
    return record(name, {"RG": right}, cost=COST, history=history, recipe=recipe)


def test_networks_against_the_first():
    short = network("short", 150) | {"history": []}
    head, first, second, taught, none = network_rows(
        [network("big", 160), network("small", 150), network("taught", 150, distill=0.9), short]
    )
    assert head[2:5] == ["÷ big", "val %", "loss"]
    assert first[:4] == ["big", "80.0 (0.0–100.0)", "1", "81.0"]
    assert second[2].startswith("0.938 (")
    assert second[3:] == ["81.0", "1.00", "4", "6", "4", "6", "2.3 M", "300 M"]
    assert (taught[3:5], none[3:5]) == (["81.0", "–"], ["–", "–"])


def seeded(name: str, seed: int, count: int, body: str) -> dict:
    model = {"stem": "any-channel", "vocabulary": "RG", "body": body}
    recipe = {"name": name, "seed": seed, "data": {"path": f"/of/{name}", "size": 64}, "model": model}
    return record(name, {"RG": count, "R": 0}, recipe=recipe, seed=seed)


def test_runs_that_differ_in_their_seed_are_one_network():
    runs = [
        seeded("big", 0, 160, "resnet34"),
        seeded("small", 0, 120, "strict"),
        seeded("big-1", 1, 140, "resnet34"),
        seeded("small-1", 7, 124, "strict"),
        seeded("other", 0, 100, "rrdb"),
    ]
    head, big, small, other = seed_rows(runs)
    assert head[-1] == "÷ big"
    assert big == ["big", "2", "80.0 70.0", "75.0 ± 7.1", "1"]
    assert small[:4] == ["small", "2", "60.0 62.0", "61.0 ± 1.4"]
    assert small[4].startswith("0.813 (")
    assert other[1:4] == ["1", "50.0", "50.0"]
    with pytest.raises(DataError, match="big, again: of one recipe, and two have the same seed"):
        seed_rows([runs[0], seeded("again", 0, 150, "resnet34")])
    newer = runs[2] | {"recipe": runs[2]["recipe"] | {"augment": {"rand_augment": 0}}}
    assert [row[0] for row in seed_rows([runs[0], newer])[1:]] == ["big"]
    elsewhere = runs[2] | {"fingerprint": {"train": "another list", "test": "f"}}
    for other in (elsewhere, runs[2] | {"recalibrated_on": 9}, runs[2] | {"stand_ins": {"B": "G"}}):
        assert [row[0] for row in seed_rows([runs[0], other])[1:]] == ["big", "big-1"]


@pytest.mark.parametrize("rows", [network_rows, seed_rows])
def test_networks_are_compared_on_one_channel_set(rows):
    with pytest.raises(DataError, match="expert-R has no accuracy on RG; evaluate it on that set"):
        rows([record(r["name"], dict.fromkeys(r["right"], 90), cost=COST, seed=0) for r in (OURS, EXPERT_R)])


def test_interval_of_a_ratio_tells_what_seeds_add():
    rng = np.random.default_rng(2)
    images = rng.random(400)
    agreeing = np.array([images < 0.5] * 3)
    differing = np.array([images < rate for rate in (0.3, 0.5, 0.7)])
    base = rng.random(400) < 0.6
    (low, high), (lower, higher) = (ratio_interval(a, base) for a in (agreeing, differing))
    assert ratio_interval(agreeing[0], base) == pytest.approx((low, high), abs=0.01)
    assert lower < low - 0.05
    assert higher > high + 0.05
    # the variance of a mean of three drawn rates is 0.08 / 9, its root 0.094
    assert higher - lower == pytest.approx(2 * 1.96 * 0.094 / 0.6, rel=0.25)


def test_bands_are_told_apart_by_what_training_saw():
    model = {"stem": "any-channel", "vocabulary": "450+530"}
    seen = record("b", {"450+530": 180, "450": 100, "530": 80}, trained_on=["530+450"], recipe={"model": model})
    other = record("b", {"475": 60}, trained_on=["450+530"], recipe={"model": model})
    near = record(
        "b, nearest", {"475": 50}, trained_on=["450+530"], recipe={"model": model}, stand_ins={"475": "450"}
    )
    rival = record("r", {"450": 90, "530": 70}, trained_on=["450+530"], recipe={"model": model})
    rows = band_rows([seen, other, near, rival])
    assert rows[0][1:] == [
        "1 sets trained on",
        "2 other sets of these bands",
        "1 sets with other bands",
        "1 those, by the nearest band",
    ]
    assert [cell.split()[0] for cell in rows[1]] == ["b", "90.0", "45.0", "30.0", "25.0"]
    assert len(rows) == 3
    spread = 100 * half_interval(np.array([0.0] * (N - 20) + [-0.5] * 20))
    assert rows[2] == ["r", "–", f"40.0 (−5.0 ± {spread:.1f})", "–", "–"]


def test_comparisons_refuse_other_images_and_records_without_answers():
    other = record("other", {"RG": 1, "R": 1, "G": 1}, fingerprint={"test": "g"})
    for kind in ("paired", "ratios", "seeds", "bands", "results"):
        with pytest.raises(DataError, match="not scored on the same images"):
            results([OURS, other], kind)
    old = {key: value for key, value in OURS.items() if key != "right"}
    with pytest.raises(DataError, match="make it again"):
        answers(old)


def test_tables_come_with_a_note():
    for kind in ("paired", "ratios"):
        table, note = results([OURS, RIVAL, EXPERT_R], kind)
        assert table.startswith("| ")
        assert "200 test images" in note
