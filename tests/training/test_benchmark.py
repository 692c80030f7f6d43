"""The benchmark program: what it measures, and what it makes of it. That it is fast, no test says."""

import gc
import weakref
from dataclasses import asdict

import pytest
import torch
from tiny import train_args

from modeling.channels import ChannelSet
from modeling.cost import channel_cost
from modeling.rivals import PlainStem
from modeling.zoo import build_model
from training.benchmarks import stem as stem_benchmark
from training.benchmarks.harness import measure, shares, summary
from training.benchmarks.loader import PLAIN
from training.benchmarks.sweep import DECODING, EACH, FORWARD, SWEEP, ratios
from training.records import read_record
from training.reporting.benchmarks import loader_rows, network_rows, stem_note, stem_rows
from training.reporting.tables import cost_rows, results

QUICK = ("--size", "32", "--batch-size", "8", "--rounds", "2", "--seconds", "0.01", "--threads", "1")


def test_every_loader_is_measured_and_kept_as_a_record(data_dir, tmp_path, program):
    pytest.importorskip("nvidia.dali")
    file = tmp_path / "loader.json"
    assert program("benchmark", "loader", "--data", data_dir, *QUICK, "--record", file) == 0
    record = read_record(file)
    assert set(record["rates"]) == {
        PLAIN,
        "DALI on cpu",
        "DALI on cpu, packed",
        "portable",
        "resident",
        "resnet18, training",
    }
    assert all(len(rates) == 2 and min(rates) > 0 for rates in record["rates"].values())
    assert record["summary"][PLAIN]["ratio"] == {"median": 1, "min": 1, "max": 1}
    assert record["images"] == 40
    head, *rows = loader_rows([record])
    assert head[1].startswith("data to 32 px")
    assert [row[0] for row in rows] == list(record["rates"])
    assert record["provenance"]["commit"][:12] in results([record])[1]


def test_a_folder_of_images_needs_no_lists(data_dir, tmp_path, program):
    file = tmp_path / "loader.json"
    (data_dir / "images/notes.txt").write_text("not an image")
    arguments = ("--data", data_dir / "images", *QUICK, "--only", "portable", "--record", file)
    assert program("benchmark", "loader", *arguments) == 0
    record = read_record(file)
    assert list(record["rates"]) == [PLAIN, "portable"]
    assert record["images"] == 66


def test_a_folder_without_images_is_one_line(tmp_path, program, capsys):
    assert program("benchmark", "loader", "--data", tmp_path, *QUICK) == 2
    assert f"{tmp_path}: no images" in capsys.readouterr().err


KINDS = ("training step", "inference, specialised", "inference, kernel made for every batch")
SMALL = ("--body", "resnet10", "--size", "32", "--batch-size", "2", "--rounds", "1", "--seconds", "0.01")


@pytest.fixture
def stem_record(tmp_path, program):
    """Runs a tiny benchmark of two stems on two sets."""

    def run(*more):
        file = tmp_path / "stem.json"
        options = ("--stems", "any-channel", "zero-fill", "--sets", "RG", "B", *more, "--record", file)
        assert program("benchmark", "stem", *SMALL, *options) == 0
        return read_record(file)

    return run


def test_stems_are_compared_with_an_ordinary_network_on_each_set(stem_record, monkeypatch):
    seen = set()  # width of the ordinary network's first layer, and the set that it is run on
    original = PlainStem.kernel
    monkeypatch.setattr(
        PlainStem,
        "kernel",
        lambda self, channels: seen.add((self.conv.weight.shape[1], str(channels))) or original(self, channels),
    )
    record = stem_record()
    assert seen == {(2, "RG"), (1, "B")}
    assert list(record["parts"]) == list(record["kernels"]) == ["RG", "B"]
    for parts in record["parts"].values():
        assert tuple(parts) == KINDS
        for part in parts.values():
            assert list(part["rates"]) == ["plain", "plain, again", "any-channel", "zero-fill"]
            assert min(rates[0] for rates in part["rates"].values()) > 0
    for part in record["kernels"].values():  # zero-fill's kernel is a weight as it stands
        assert list(part["rates"]) == ["forward pass", "any-channel"]
        forward, kernel = (rates[0] for rates in part["rates"].values())
        assert part["percent"]["any-channel"]["median"] == pytest.approx(100 * forward / kernel)
    assert record["settings"]["threads"] == torch.get_num_threads()


def test_table_of_stems(stem_record):
    record = stem_record("--clock", "processor")
    head, *rows = stem_rows([record])
    assert head == ["time ÷ plain", "channels", *KINDS, "kernel alone, % of a forward pass"]
    names = ["plain, again", "any-channel", "zero-fill"]
    assert [row[:2] for row in rows] == [[f"{name} resnet10", chosen] for name in names for chosen in ("RG", "B")]
    rows = rows[2:]
    rates = record["parts"]["B"]["training step"]["rates"]
    assert rows[1][2].startswith(f"{rates['plain'][0] / rates['any-channel'][0]:.2f} (")  # time, not speed
    assert rows[1][-1].startswith(f"{record['kernels']['B']['percent']['any-channel']['median']:.2f} (")
    assert rows[2][-1] == rows[3][-1] == "–"
    assert record["provenance"]["commit"][:12] in results([record])[1]
    assert "1 rounds of 0.01 s of the processor's time on" in stem_note([record])
    record["settings"]["clock"] = "wall"
    assert "1 rounds of 0.01 s on" in stem_note([record])


def test_one_network_at_a_time_is_in_memory(stem_record, monkeypatch):
    """accelerate holds on to what it prepared: ten stems on three sets in five rounds would fill the memory."""
    networks, alive = [], []
    original = stem_benchmark.new_model

    def counted(*arguments):
        alive.append(sum(network() is not None for network in networks))
        network = original(*arguments)
        networks.append(weakref.ref(network))
        return network

    monkeypatch.setattr(stem_benchmark, "new_model", counted)
    gc.disable()  # Python may collect now and then, which is not to be relied upon
    try:
        stem_record()
    finally:
        gc.enable()
    assert len(alive) > 3 * 3 * 2
    assert max(alive) <= 1


def test_a_set_that_no_image_has_is_one_line(program, capsys):
    assert program("benchmark", "stem", *SMALL, "--sets", "RX") == 2
    assert "--sets RX: unknown channel" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round():
    """A machine that slows down for a round moves the rates, not the ratios."""
    rates = {"a": [100.0, 10.0, 100.0], "b": [200.0, 20.0, 300.0]}
    rows = summary(rates, "a")
    assert rows["b"]["ratio"] == {"median": 2, "min": 2, "max": 3}
    assert rows["b"]["images_per_s"]["median"] == 200


def test_networks_are_compared_with_the_first(finished_run, data_dir, tmp_path, program, capsys):
    other = tmp_path / "strict"
    expert = ["--model.stem", "plain", "--model.plain-channels", "RG", "--schedule.channel-sets", "RG"]
    flags = ["--name", "flat", "--model.body", "strict", "--model.width", "0.0625", "--schedule.epochs", "1"]
    assert program("train", *train_args(data_dir, other, *flags, *expert)) == 0
    file, quick = tmp_path / "networks.json", ("--batch-size", "2", "--rounds", "1", "--seconds", "0.01")
    assert program("benchmark", "networks", finished_run, other, "--record", file, *quick) == 0
    record = read_record(file)
    assert record["settings"]["size"] == 32  # what the first was trained on
    head, first, second = network_rows([record])
    assert head == ["time ÷ quickstart", "training step", "inference", "inference, one image"]
    assert first[1:] == ["1.00 (1.00–1.00)"] * 3
    rates = record["parts"]["inference"]["rates"]
    assert second[2].startswith(f"{rates['quickstart'][0] / rates['flat'][0]:.2f} (")  # time, not speed
    assert "at 32 px, 2 images" in results([record])[1]
    _check_records_will_do(finished_run, other, tmp_path, program, capsys)
    assert program("benchmark", "networks", finished_run, finished_run) == 2
    assert "called the same" in capsys.readouterr().err


def _check_records_will_do(first, second, tmp_path, program, capsys):
    """Speed does not depend on the weights, so a record's recipe is enough."""
    assert program("evaluate", second) == 0
    sweep, file = second / "sweep-test.json", tmp_path / "again.json"
    quick = ("--batch-size", "2", "--rounds", "1", "--seconds", "0.01")
    assert program("benchmark", "networks", sweep, first, "--record", file, *quick) == 0
    record = read_record(file)
    assert record["baseline"] == "flat"
    assert record["settings"]["size"] == 32
    assert list(record["parts"]["inference"]["rates"]) == ["flat", "quickstart"]
    changed = tmp_path / "changed.json"
    changed.write_text(sweep.read_text().replace('"name": "flat"', '"name": "flat, changed"', 1))
    assert program("benchmark", "networks", sweep, changed, second, "--record", file, *quick) == 0
    timed = list(read_record(file)["parts"]["inference"]["rates"])
    assert timed == ["flat (sweep-test)", "flat, changed", f"flat ({second.name})"]
    assert program("benchmark", "networks", sweep, "--record", file, *quick) == 0  # called as the sweep is
    figure = tmp_path / "networks.svg"
    assert program("report", sweep, file, "--of", "networks", "--figure", figure) == 0
    assert "latency" in figure.read_text()
    capsys.readouterr()
    assert program("benchmark", "networks", file, *quick) == 2
    assert "a record of benchmark networks, which has no recipe" in capsys.readouterr().err
    assert program("benchmark", "networks", tmp_path / "none.json", *quick) == 2
    assert "none.json: no such record" in capsys.readouterr().err
    torn = tmp_path / "torn.json"
    torn.write_text(sweep.read_text().replace('"body": "strict"', '"body": "thin"'))
    assert program("benchmark", "networks", torn, *quick) == 2
    assert "its recipe cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "no run directory given"),
        (("run", "--rounds", "0"), "--rounds 0 must be above 0"),
        (("run", "--batch-size", "0"), "--batch-size 0 must be above 0"),
        (("run", "--seconds", "-1"), "--seconds -1.0 must be above 0"),
        (("run", "--size", "0"), "--size 0 must be above 0"),
    ],
)
def test_nothing_to_measure_is_one_line(flags, reason, program, capsys):
    assert program("benchmark", "networks", *flags) == 2
    assert reason in capsys.readouterr().err


def test_a_sweep_is_timed_against_evaluations_of_each_set(data_dir, tmp_path, program):
    file = tmp_path / "sweep.json"
    size = ("--size", "32", "--batch-size", "4", "--images", "7", "--threads", "1", "--body", "resnet10")
    quick = ("--rounds", "1", "--seconds", "0.01", "--precision", "fp32")
    assert program("benchmark", "sweep", "--data", data_dir, *size, *quick, "--record", file) == 0
    record = read_record(file)
    assert list(record["rates"]) == [SWEEP, EACH, DECODING, FORWARD]
    assert record["ratios"] == ratios(record["rates"], 7)
    table, note = results([record])
    assert f"| resnet10, data to 32 px | {record['ratios']['evaluations']['median']:.2f} (" in table
    assert "7 channel sets, 7 images in batches of 4, fp32" in note


def test_ratios_of_a_sweep_are_of_times_within_a_round():
    """2 ms an image to decode, 1 ms for each of 7 forward passes: 9 against 21; a slow round changes nothing."""
    rates = {
        SWEEP: [1000 / 9, 100 / 9],
        EACH: [1000 / 21, 100 / 21],
        DECODING: [500, 50],
        FORWARD: [1000 / 7, 100 / 7],
    }
    for name, value in {"evaluations": 9 / 21, "parts": 1, "forward": 0.5}.items():
        assert list(ratios(rates, 7)[name].values()) == pytest.approx([value] * 3)


def test_shares_are_parts_of_the_time_of_the_whole():
    """At ten times the speed a part takes a tenth of the time; like ratios, within a round."""
    rates = {"whole": [100.0, 10.0, 100.0], "part": [1000.0, 100.0, 2000.0]}
    assert shares(rates, "whole") == {"part": {"median": 10, "min": 5, "max": 10}}


def test_contenders_take_turns_and_are_counted_after_their_warm_up(monkeypatch):
    clock, turns = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def contender(name, seconds):
        turns.append(name)
        while True:
            clock[0] += seconds
            yield 10

    contenders = {"slow": lambda: contender("slow", 1.0), "fast": lambda: contender("fast", 0.25)}
    rates = measure(contenders, rounds=2, seconds=2.0)
    assert rates == {"slow": [10, 10], "fast": [40, 40]}
    assert turns == ["slow", "fast", "slow", "fast"]


def test_activations_stand_in_the_table_of_costs():
    costs = {
        name: asdict(channel_cost(build_model("resnet10", "slices", "RGB", 5), ChannelSet((name,)), 32))
        for name in "RG"
    }
    del costs["G"]["activations"]  # as in records made before they were counted
    head, red, green = cost_rows([{"name": "m", "cost": {"sets": costs, "stored_parameters": 1}}])
    place = head.index("activations per image")
    assert red[place] == f"{costs['R']['activations'] / 1e6:.2f} M" != "0.00 M"
    assert green[place] == "–"
    assert len(head) == len(red) == len(green)
