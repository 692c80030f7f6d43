"""The benchmark program: what it measures, and what it makes of it. That it is fast, no test says."""

import pytest

from training.benchmarks.harness import measure, summary
from training.benchmarks.loader import PLAIN
from training.records import read_record
from training.tables import loader_rows, results, stem_rows

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
    assert record["provenance"]["commit"][:12] in results([record])


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


def test_stems_are_compared_with_an_ordinary_network(tmp_path, program):
    file = tmp_path / "stem.json"
    options = ("--body", "resnet18", "--size", "32", "--batch-size", "2", "--rounds", "1", "--seconds", "0.01")
    assert program("benchmark", "stem", *options, "--stems", "any-channel", "attention", "--record", file) == 0
    record = read_record(file)
    assert len(record["parts"]) == 3
    for part in record["parts"].values():
        assert list(part["rates"]) == ["plain", "any-channel", "attention"]
        assert min(rates[0] for rates in part["rates"].values()) > 0
    ours = record["parts"]["training step"]["rates"]
    _, row, _ = stem_rows([record])
    assert row[0] == "any-channel resnet18"
    assert row[1].startswith(f"{ours['plain'][0] / ours['any-channel'][0]:.2f} (")  # time, not speed
    assert record["provenance"]["commit"][:12] in results([record])


def test_ratios_are_taken_within_a_round():
    """A machine that slows down for a round moves the rates, not the ratios."""
    rates = {"a": [100.0, 10.0, 100.0], "b": [200.0, 20.0, 300.0]}
    rows = summary(rates, "a")
    assert rows["b"]["ratio"] == {"median": 2, "min": 2, "max": 3}
    assert rows["b"]["images_per_s"]["median"] == 200


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
