"""Receptive fields from finished runs to the table and the picture."""

import json
from pathlib import Path

import pytest
from tiny import train_args

from training.records import commit, read_record
from training.report import updated


@pytest.fixture
def strict_run(data_dir, tmp_path, program) -> Path:
    """A small two-layer network that takes GB alone."""
    run_dir = tmp_path / "strict"
    more = "--name strict --model.body strict --model.width 0.0625 --model.stem plain --model.plain-channels GB"
    assert program("train", *train_args(data_dir, run_dir, *more.split(), "--schedule.channel-sets", "GB")) == 0
    return run_dir


def test_two_networks_end_to_end(finished_run, strict_run, data_dir, tmp_path, program, capsys):
    record, figure = tmp_path / "records/fields.json", tmp_path / "figures/fields.svg"
    runs = (finished_run, strict_run)
    assert program("receptive_field", *runs, "--images", "5", "--record", record, "--figure", figure) == 0
    printed = capsys.readouterr().out
    assert "quickstart" in printed
    assert "strict" in printed
    result = read_record(record)
    assert (result["kind"], result["split"]) == ("receptive field", "val")
    assert result["provenance"]["commit"] == commit()
    deep, shallow = result["networks"]
    assert (deep["channels"], deep["depth"]) == ("RGB", 10)
    assert (shallow["channels"], shallow["depth"]) == ("GB", 4)
    for network in (deep, shallow):
        assert (network["images"], network["size"]) == (5, [32, 32])
        assert 1 <= network["squares"]["50"]["side"] <= network["squares"]["90"]["side"] <= 32
        assert [len(bytes.fromhex(row)) for row in network["field"]["rows"]] == [32] * 32
        levels = [[level / 255 for level in bytes.fromhex(row)] for row in network["field"]["rows"]]
        assert network["field"]["peak"] * sum(x**4 for row in levels for x in row) == pytest.approx(1, rel=0.05)
        assert set(network["fingerprint"]) == {"train", "val"}
    assert str(tmp_path) not in record.read_text()  # no paths of this machine
    assert len(record.read_text()) < 16_000
    _check_redrawing(record, figure, program)
    _check_table(record)
    _check_several(record, finished_run, tmp_path, program, capsys)
    assert program("receptive_field", finished_run, "--images", "99", "--channels", "GB", "--data", data_dir) == 0
    assert "GB" in capsys.readouterr().out
    assert program("receptive_field", *runs, "--channels", "RGB") == 2
    assert "error: --channels RGB: " in capsys.readouterr().err


def _check_redrawing(record, figure, program):
    """The picture needs the record alone, and comes out the same."""
    assert "$" not in figure.read_text()  # numbers, not formulas
    again = figure.with_name("again.svg")
    assert program("receptive_field", record, "--figure", again) == 0
    assert again.read_bytes() == figure.read_bytes()
    drawn = figure.read_text()
    assert all(text in drawn for text in ("quickstart, RGB", "strict, GB", "log scale", "dashed: 90 %"))


def _check_several(record, run_dir, tmp_path, program, capsys):
    """Records made at different times share a table and a picture."""
    second, figure = tmp_path / "second.json", tmp_path / "both.svg"
    assert program("receptive_field", run_dir, "--images", "5", "--channels", "R", "--record", second) == 0
    capsys.readouterr()
    assert program("receptive_field", record, second, "--figure", figure) == 0
    drawn = figure.read_text()
    assert all(text in drawn for text in ("quickstart, RGB", "strict, GB", "quickstart, R<"))
    assert capsys.readouterr().out.count("quickstart") == 2
    assert program("receptive_field", record, second, "--record", tmp_path / "third.json") == 2
    assert "is a record already" in capsys.readouterr().err


def _check_table(record):
    document = record.with_name("page.md")
    document.write_text(f"<!-- results: {record.name} -->\n<!-- /results -->\n")
    text = updated(document)
    sides = [network["squares"]["50"]["side"] for network in read_record(record)["networks"]]
    assert "| network | channels | layers (D1) | input | 50 % within | 90 % within |" in text
    assert f"| quickstart | RGB | 10 | 32 px | {sides[0]} px ({100 * sides[0] / 32:.0f} %) |" in text
    assert f"| strict | GB | 4 | 32 px | {sides[1]} px ({100 * sides[1] / 32:.0f} %) |" in text
    assert "over 5 val images" in text


def test_bad_input_is_one_line(finished_run, tmp_path, program, capsys):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"format": 1, "kind": "sweep"}))
    record = tmp_path / "field.json"
    assert program("receptive_field", finished_run, "--images", "1", "--record", record) == 0
    bad = {
        "no run directory given": [],
        "must be at least 1": [finished_run, "--images", "0"],
        "--channels RX: unknown channel 'X'": [finished_run, "--channels", "RX"],
        "not a run directory": [tmp_path / "nothing"],
        "a record of sweep, not of receptive field": [other],
        "a run directory among records": [record, finished_run],
        "no such record": [tmp_path / "none.json"],
        "no such folder": [finished_run, "--data", tmp_path / "none"],
    }
    for reason, words in bad.items():
        capsys.readouterr()
        assert program("receptive_field", *words) == 2
        message = capsys.readouterr().err
        assert reason in message
        assert message.startswith("error: ")
        assert message.count("\n") == 1
