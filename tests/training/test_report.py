"""Evaluation and report, from a finished run to the page."""

import html.parser
import json
import re
from pathlib import Path

import pytest
import torch

from training.drawings import channel_grid
from training.records import commit, hardware, read_record
from training.report import updated
from training.reporting.tables import accuracy_rows

ROOT = Path(__file__).parent.parent.parent
SETS = ["RGB", "RG", "RB", "GB", "R", "G", "B"]
VOID = {"meta", "img", "br", "hr", "link"}


class Checker(html.parser.HTMLParser):
    """Collects what would reach over the network, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.outside, self.text, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        inside = ("#", "data:image/")
        self.outside += [
            v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith(inside)
        ]

    def handle_data(self, data):
        self.text.append(data)


def test_records_hold_scores_costs_history_and_provenance(evaluated):
    ours, naive = (read_record(run / "sweep-test.json") for run in evaluated)
    assert list(ours["scores"]) == list(ours["cost"]["sets"]) == SETS
    for row in ours["scores"].values():
        assert row["n"] == ours["images"] == 13
        assert 0 <= row["low"] <= row["accuracy"] == row["top1"] / 13 <= row["high"] <= 1
    assert ours["cost"]["sets"]["R"]["macs"] < ours["cost"]["sets"]["RGB"]["macs"]
    assert naive["cost"]["sets"]["R"]["macs"] == naive["cost"]["sets"]["RGB"]["macs"]
    assert ours["fingerprint"] == naive["fingerprint"]
    assert ours["provenance"]["commit"] == commit()
    assert ours["trained"]["hardware"] == hardware(1)
    assert ours["provenance"]["command"].startswith("python -m training.evaluate")
    assert {"torch", "nvidia-dali-cuda130"} <= set(ours["provenance"]["versions"])
    assert str(evaluated[0].parent) not in json.dumps(ours["recipe"])  # no paths of this machine


def test_evaluation_agrees_with_the_last_validation(evaluated, program):
    """The evaluator, reading the weights from disk, must see what training saw at its end."""
    assert program("evaluate", evaluated[0], "--split", "val") == 0
    record = read_record(evaluated[0] / "sweep-val.json")
    last = [row for row in record["history"] if "val/top1/B" in row][-1]
    assert {name: row["accuracy"] for name, row in record["scores"].items()} == {
        name: last[f"val/top1/{name}"] for name in SETS
    }


def test_page_is_complete_and_self_contained(evaluated, program):
    assert program("report", *evaluated) == 0
    page = evaluated[0].parent / "report.html"
    checker = Checker()
    checker.feed(page.read_text())
    assert checker.outside == []
    assert "script" not in checker.tags
    text = "".join(checker.text)
    for record in (read_record(run / "sweep-test.json") for run in evaluated):
        assert record["name"] in text
        assert record["fingerprint"]["test"] in text
        for row in record["scores"].values():
            assert f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})" in text
    assert len(re.findall("<svg", page.read_text())) == 6 + 9 * ("labels" in record)
    twin = page.with_suffix(".md").read_text()
    assert twin.count("| quickstart |") >= 2


def test_reports_from_copied_records_alone(evaluated, program, tmp_path):
    files = []
    for i, run in enumerate(evaluated):
        files.append(tmp_path / f"copied/{i}.json")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text((run / "sweep-test.json").read_text())
    assert program("report", *files, "--out", tmp_path / "out/page.html") == 0
    assert (tmp_path / "out/page.html").stat().st_size > 10_000
    assert program("report", *files, "--out", tmp_path / "again.html") == 0
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "out/page.html").read_bytes()


def test_updating_a_readme_changes_only_what_stands_between_the_markers(evaluated, program, tmp_path, capsys):
    names = " ".join(f"{run.name}/sweep-test.json" for run in evaluated)
    begin, end = f"<!-- results: {names} -->", "<!-- /results -->"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\nbetween\n{begin}\n{end}\nafter\n")
    assert program("report", "--update", readme) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n| top-1 % | RGB |")
    assert f"{end}\nbetween\n{begin}\n| top-1 %" in text
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    assert program("report", "--update", readme) == 0
    assert readme.read_text() == text
    readme.write_text("nothing here")
    assert program("report", "--update", readme) == 2
    assert "no place for results" in capsys.readouterr().err


def test_namesakes_in_a_document_are_told_apart(evaluated, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text((evaluated[0] / "sweep-test.json").read_text())
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: a.json b.json -->\n<!-- /results -->\n")
    assert "| quickstart (a) |" in updated(readme)
    assert "| quickstart (b) |" in updated(readme)


def test_what_tables_of_a_document_have_in_common_is_said_once(evaluated, tmp_path):
    record = read_record(evaluated[0] / "sweep-test.json")
    (tmp_path / "here.json").write_text(json.dumps(record))
    here, record["trained"]["hardware"] = record["trained"]["hardware"], "another machine"
    (tmp_path / "there.json").write_text(json.dumps(record))
    readme = tmp_path / "README.md"
    names = {"results": ["here", "here", "there"], "networks": ["there", "here"]}
    tables = [f"<!-- {kind}: {name}.json -->\n<!-- /{kind} -->\n" for kind in names for name in names[kind]]
    readme.write_text("".join(tables))
    notes = [part.splitlines()[-1] for part in re.split(r"\n<!-- /.*", updated(readme))[:-1]]
    assert notes[0].startswith("One set of weights per row;")
    assert notes[1] == "As under the first such table."
    assert notes[2].startswith("Trained on another machine, at commit ")
    assert notes[2].endswith(". All else as under the first such table.")
    assert notes[3].startswith("On RGB, n = ")
    assert notes[3].endswith("Trained on another machine.")
    assert notes[4] == f"Trained on {here}. All else as under the first such table."


@pytest.mark.parametrize("document", ["README.md", "docs/data.md", "docs/report.md"])
def test_tables_of_the_documents_are_those_of_their_records(document):
    """Whoever changes a record or the report runs `python -m training.report --update DOCUMENT`."""
    assert updated(ROOT / document) == (ROOT / document).read_text()


def intervals(text):
    """Intervals, each with the figure before it: 0.967 (0.930–1.009), and 0.967, 0.930–1.009 within brackets."""
    found = re.findall(r"(?:([\d.]+)(?:,? | \())?(\d+\.\d+–\d+\.\d+)", re.sub(r"\s+", " ", text))
    return {(figure, interval) for figure, interval in found}


@pytest.mark.parametrize("document", ["README.md", "docs/report.md"])
def test_intervals_in_prose_stand_in_a_table_made_from_records(document):
    tables = r"<!-- (\w+): .*?<!-- /\1 -->"
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/report.md")]
    made = intervals(" ".join(found[0] for text in texts for found in re.finditer(tables, text, re.DOTALL)))
    told = intervals(re.sub(tables, "", (ROOT / document).read_text(), flags=re.DOTALL))
    assert len(told) > 5
    alone = {("", interval) for _, interval in made}  # told without its figure, as of two in a row
    assert {(figure.removesuffix("."), interval) for figure, interval in told} <= made | alone


def test_worst_over_all_channels():
    def record(name, accuracies):
        scores = {s: {"accuracy": a, "low": a, "high": a} for s, a in zip(SETS, accuracies, strict=True)}
        return {
            "name": name,
            "scores": scores,
            "seconds": {"train": 90},
            "split": "test",
            "fingerprint": {"test": "f"},
            "recipe": {"model": {"stem": "any-channel"}},
        }

    rows = accuracy_rows([record("m", [0.8, 0.7, 0.7, 0.7, 0.6, 0.4, 0.5]), record("zero", [0.0] * 7)])
    assert [row[-2:] for row in rows] == [["worst ÷ all", "training"], ["0.50", "1.5 min"], ["–", "1.5 min"]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such record"), ("{", "not a record"), ("[]", "format"), ('{"format": 0}', "format")],
)
def test_bad_records_are_refused(tmp_path, program, capsys, content, reason):
    if content is not None:
        (tmp_path / "sweep-test.json").write_text(content)
    assert program("report", tmp_path) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_what_is_not_there_is_told_by_its_remedy(evaluated, tmp_path, program, capsys):
    run = evaluated[0]
    wanted = {
        (tmp_path / "nowhere",): "nowhere: no such run directory or record; check the path",
        (run, "--split", "train"): f"training.evaluate {run} --split train",
    }
    for words, told in wanted.items():
        assert program("report", *words) == 2
        assert told in capsys.readouterr().err.strip()


def test_a_page_is_named_as_its_run_was(evaluated, program, capsys, monkeypatch):
    monkeypatch.chdir(evaluated[0].parent)
    assert program("report", evaluated[0].name, "--samples", "0") == 0
    assert capsys.readouterr().out.startswith(f"wrote {evaluated[0].name}/report.html and report.md")


def test_other_images_do_not_stand_in_one_table(evaluated, tmp_path, program, capsys):
    record = json.loads((evaluated[0] / "sweep-test.json").read_text())
    record["fingerprint"]["test"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(record))
    assert program("report", evaluated[1], tmp_path / "other.json") == 2
    assert "not scored on the same images" in capsys.readouterr().err


def test_image_grid_blacks_out_missing_channels():
    images = torch.ones(2, 3, 4, 5) * 0.5
    grid = channel_grid(images, ("R", "G", "B"))
    assert grid.shape == (3, 2 * 4, 7 * 5)
    red_only = grid[:, :, 4 * 5 : 5 * 5]
    assert (red_only[0] > 0).all()
    assert (red_only[1:] == 0).all()
    assert (grid[:, :, :5] > 0).all()
