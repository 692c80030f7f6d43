"""The page and its Markdown twin: their structure, and every number in them against the record's."""

import base64
import functools
import html.parser
import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sweeps import BAND_SETS, RGB_SETS, made_up, without

from pipelines.integrity import scan
from pipelines.manifest import read_split
from training.config import Data, Recipe
from training.recipe_file import save_recipe
from training.report import main, parse
from training.reporting import diagrams
from training.reporting.canvas import colour_pair
from training.reporting.diagrams import marks, together

ROOT = Path(__file__).parent.parent.parent
VOID = {"meta", "img", "br", "wbr"}
NEW = ("labels", "predicted", "reliability", "robustness", "class_names")


class Page(html.parser.HTMLParser):
    """A page's elements as (tag, attributes), its tables as rows of text by caption, and what encloses what."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.tables, self.text, self._open = [], {}, [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "caption":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attrs):  # within pictures
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "table":
            assert self._caption not in self.tables
            self.tables[self._caption] = [[cell.strip() for cell in row] for row in self._rows]

    def handle_data(self, data):
        self.text.append(data)
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


HOSTILE = """<script>alert("1")</script>'&amp; $x_{$ --> `ünï` |"""
OURS, RIVAL = made_up("ours"), made_up(HOSTILE, seed=1, class_names=[f"{HOSTILE}{i}" for i in range(3)])
RIVAL["trained"]["hardware"] = RIVAL["provenance"]["command"] = RIVAL["recipe"]["name"] = HOSTILE
RIVAL["robustness"] = {HOSTILE: RIVAL["scores"]}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of two models, one of which has a name that is no markup: (page, its text, the Markdown twin)."""
    return write_page(tmp_path_factory.mktemp("page"), OURS, RIVAL)


@pytest.fixture
def no_diagrams(monkeypatch):
    """Drawing takes most of a page's time; where diagrams do not matter a line stands for each."""
    monkeypatch.setattr(diagrams, "panel", lambda *_, **__: '<svg width="9pt"></svg>')


@pytest.fixture
def report(tmp_path, no_diagrams):
    """Makes the page of records and run directories."""
    return functools.partial(write_page, tmp_path)


def write_page(folder, *records, folders=(), flags=()):
    """The page of records and run directories, its text, and the Markdown twin."""
    sources = list(folders)
    for i, record in enumerate(records):
        sources.append(folder / f"{i}.json")
        sources[-1].write_text(json.dumps(record))
    out = folder / "out/page.html"
    main(parse([str(word) for word in (*sources, "--out", out, *flags)]))
    return Page(out.read_text()), out.read_text(), out.with_suffix(".md").read_text()


def plain(text):
    """Markdown without its escapes."""
    return re.sub(r"\\([<|\[])", r"\1", text)


def markdown_tables(text):
    """Tables as rows of text, by the bold line above them."""
    found = {}
    for caption, body in re.findall(r"\*\*(.+)\*\*\n\n((?:\|.*\n?)+)", text):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines()]
        del rows[1]
        found[plain(caption)] = [[plain(cell.strip()) for cell in row] for row in rows]
    return found


def test_the_page_is_whole_labelled_and_reaches_for_nothing(written):
    page, text, _ = written
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    addresses = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href", "xlink:href")]
    assert all(v.startswith(("#", "data:image/")) for v in addresses)
    assert not re.search(r"url\((?!#)|@import|http-equiv=\"refresh", text)
    assert not [k for _, a in page.elements for k in a if k.startswith("on")]
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {v[1:] for v in addresses if v.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert all(a["role"] == "img" and a["aria-label"] for a in page.all("svg"))
    assert all(a["alt"] for a in page.all("img"))
    assert len({a["aria-label"] for a in page.all("svg")}) == len(page.all("svg")) == 1 + 3 + 2 + 7 + 2
    assert [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)] == ["h1"] + ["h2"] * 13
    assert len(page.all("nav")) == 1 and len(page.all("a")) == 13
    assert page.all("html")[0]["lang"] == "en"


def test_every_table_has_a_caption_and_heads_and_can_be_scrolled_by_keys(written):
    page = written[0]
    assert len(page.tables) == len(page.all("table")) > 12
    for rows in page.tables.values():
        assert len(rows) > 1
        assert all(len(row) == len(rows[0]) and all(row) for row in rows)
    assert {a["scope"] for a in page.all("th")} == {"col", "row"}
    assert len([a for a in page.all("th") if a["scope"] == "row"]) == sum(len(t) - 1 for t in page.tables.values())
    boxes = [a for a in page.all("div") if "box" in a.get("class", "").split()]
    assert len(boxes) == len(page.tables)
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in boxes)


def test_the_twin_has_the_same_tables(written):
    page, _, twin = written
    assert markdown_tables(twin) == page.tables


def test_scores_are_the_records(written):
    page = written[0]
    accuracy, heat = page.tables["Top-1 accuracy by channel set"], page.tables["Heat map of top-1 accuracy"]
    other = {tuple(row[:2]): row[2:] for row in page.tables["Other scores by channel set"][1:]}
    changed = {tuple(row[:2]): row[2:] for row in page.tables["Top-1 accuracy on changed images"][1:]}
    for i, record in enumerate([OURS, RIVAL], 1):
        name, rows = record["name"], [record["scores"][s] for s in RGB_SETS]
        told = [f"{100 * r['accuracy']:.1f} ({100 * r['low']:.1f}–{100 * r['high']:.1f})" for r in rows]
        assert accuracy[i][:8] == [name, *told]
        assert heat[i] == [name, *(f"{100 * r['top1'] / 24:.1f}" for r in rows)]
        assert other[name, "macro %"] == [f"{100 * r['macro']:.1f}" for r in rows]
        assert other[name, "ECE %"] == [f"{100 * r['ece']:.1f}" for r in rows]
        assert other[name, "NLL"] == [f"{r['nll']:.3f}" for r in rows]
        assert changed[name, "as they are"] == told
    assert changed["ours", "noisy R"] == [changed["ours", "2x"][0], *["–"] * 6]
    assert "0123456789ab+changes" in {row[1] for row in page.tables["The same for all models"]}
    assert page.tables["Different between models"][1][:4] == ["ours", "recipe", "0", "90 s, bf16"]


def classes_of(text):
    """What a record's base64 says, read two bytes at a time."""
    data = base64.b64decode(text)
    return [data[i] + 256 * data[i + 1] for i in range(0, len(data), 2)]


def test_what_is_told_of_classes_is_what_was_guessed(report):
    record = made_up("ours", classes=4, images=30)
    page, _, _ = report(record)
    labels = classes_of(record["labels"])
    guesses = {s: classes_of(text) for s, text in record["predicted"].items()}

    agreement = page.tables["ours: agreement of channel sets"]
    for (i, a), (j, b) in itertools.product(enumerate(RGB_SETS, 1), repeat=2):
        same = sum(x == y for x, y in zip(guesses[a], guesses[b], strict=True))
        assert agreement[i][j] == f"{100 * same / 30:.1f}"

    def part(s, label):
        mine = [g == label for y, g in zip(labels, guesses[s], strict=True) if y == label]
        return 100 * sum(mine) / len(mine)

    lost = page.tables["ours: accuracy by class without a channel"]
    assert lost[0] == ["class", "images", "RGB, %", "without R", "without G", "without B"]
    assert {row[0] for row in lost[1:]} == set(record["class_names"])
    for name, images, full, *drops in lost[1:]:
        label = record["class_names"].index(name)
        assert (images, full) == (str(labels.count(label)), f"{part('RGB', label):.1f}")
        for told, rest in zip(drops, ("GB", "RB", "RG"), strict=True):
            assert abs(float(told.replace("−", "-")) - (part(rest, label) - part("RGB", label))) < 0.051
    assert [min(float(c.replace("−", "-")) for c in row[3:]) for row in lost[1:]] == sorted(
        min(float(c.replace("−", "-")) for c in row[3:]) for row in lost[1:]
    )

    pairs = page.tables["ours: pairs that are most often confused"][1:]
    assert sum(int(row[2]) for row in pairs) == sum(a != b for a, b in zip(labels, guesses["RGB"], strict=True))
    for pair, images, *counts in pairs:
        truth, guess = (record["class_names"].index(name) for name in pair.split(" → "))
        assert int(images) == labels.count(truth)
        for s, told in zip(RGB_SETS, counts, strict=True):
            assert int(told) == list(zip(labels, guesses[s], strict=True)).count((truth, guess))


def test_hostile_names_stay_text(written):
    page, text, twin = written
    assert "<script" not in text
    for caption in (
        "Top-1 accuracy by channel set",
        "Different between models",
        "Top-1 accuracy on changed images",
    ):
        assert HOSTILE in {cell for row in page.tables[caption] for cell in row}
    assert any(HOSTILE in a["aria-label"] for a in page.all("svg"))
    assert not re.search(r"(?<!\\)<script", re.sub(r"(?m)^    .*", "", twin))  # but for indented code


def test_names_that_two_runs_share_are_told_apart(report):
    page, _, _ = report(made_up("same"), made_up("same", seed=1), made_up("other", seed=2))
    assert [row[0] for row in page.tables["Heat map of top-1 accuracy"][1:]] == ["same (0)", "same (1)", "other"]


def test_what_records_lack_is_left_out_and_said(report):
    page, _, _ = report(without(made_up("old"), *NEW), without(made_up("older", seed=1), *NEW, "right"))
    missing = dict(page.tables["Sections left out"][1:])
    assert set(missing) == {
        "Reliability",
        "Changed images",
        "When a channel is lost",
        "Agreement between channel sets",
        "Confusion",
        "Images",
    }
    assert "--robustness" in missing["Changed images"]
    assert "Without older: no “right” in the record." in page.text
    page, _, _ = report(made_up("new"), without(made_up("old", seed=1), *NEW))
    assert "Without old: no “labels” and “predicted” in the record." in page.text
    assert set(dict(page.tables["Sections left out"][1:])) == {"Images"}


@pytest.mark.parametrize(
    "names",
    [
        ["quickstart", "quickstart-naive"],
        ["study-a/any-channel", "study-a/naive-mean", "study-a/expert-R", "study-a/expert-RG"],
        ["scaling", "stem-cpu", "zero-cpu"],
        ["resnet18-part", "train-cpu"],
    ],
)
def test_records_of_all_ages_and_kinds_make_a_page(names, tmp_path):
    page, _, twin = write_page(
        tmp_path, *(json.loads((ROOT / f"docs/records/{name}.json").read_text()) for name in names)
    )
    assert len(page.tables) >= 3 and markdown_tables(twin).keys() == page.tables.keys()


def test_many_sets_make_a_page(report):
    page, _, _ = report(*(made_up(f"model {i}", BAND_SETS, seed=i) for i in range(2)))
    assert len(page.tables["Heat map of top-1 accuracy"][0]) == 1 + 63
    lost = page.tables["model 0: accuracy by class without a channel"]
    assert lost[0][3:] == [f"without {band}" for band in BAND_SETS[0].split("+")]


def test_records_that_contradict_themselves_are_refused(tmp_path, program, capsys, no_diagrams):
    file = tmp_path / "bad.json"
    for text in ("!", "AAA", base64.b64encode(bytes(10)).decode()):
        file.write_text(json.dumps(made_up("odd", labels=text)))
        assert program("report", file) == 2
        assert "does not hold a class for each of 24 images" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    assert program("report", file, "--out", tmp_path / "report.md") == 2
    assert "--out" in capsys.readouterr().err


def test_settings_that_differ_are_told(report):
    base = made_up("a")
    recipe = base["recipe"]
    other = recipe | {"name": "b", "model": recipe["model"] | {"gain": "linear", "conditioning": False}}
    third = recipe | {"model": {**recipe["model"], "stem": "slices", "conditioning": True}}
    page, _, _ = report(base, made_up("b", recipe=other), made_up("c", recipe=third, recalibrated_on=1))
    rows = page.tables["Settings that differ, and accuracy"]
    assert rows[0][1:4] == ["model.stem", "evaluate.recalibrate", "model.conditioning"]
    assert [row[2:4] for row in rows[1:]] == [["0", "–"], ["0", "no"], ["1", "yes"]]
    score = [100 * row["accuracy"] for row in base["scores"].values()]
    assert rows[1][4:] == [f"{score[0]:.1f}", f"{min(score):.1f}", f"{sum(score) / 7:.1f}", "7"]


@pytest.fixture
def run_dir(data_dir, tmp_path):
    """A run directory with a recipe and a record, as if it had been trained and evaluated."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_recipe(Recipe(name="run", data=Data(path=data_dir, size=32)), folder / "config.yaml")
    samples = scan(read_split(data_dir, "test"))
    record = made_up("run", images=13, fingerprint={"train": "t", "test": samples.fingerprint})
    (folder / "sweep-test.json").write_text(json.dumps(record))
    return folder


def test_images_are_those_of_the_list_with_what_they_were_taken_for(run_dir, data_dir, report):
    page, text, _ = report(folders=[run_dir], flags=["--samples", "5"])
    record = json.loads((run_dir / "sweep-test.json").read_text())
    labels = classes_of(record["labels"])
    guesses = [classes_of(record["predicted"][s]) for s in RGB_SETS]
    rows, chosen = page.tables["run: what it took images for"], [0, 3, 6, 9, 12]
    assert rows[0] == ["image", *RGB_SETS]
    for row, i in zip(rows[1:], chosen, strict=True):
        marks_and_names = [
            f"{'✓' if g[i] == labels[i] else '✗'}\u00a0{record['class_names'][g[i]]}" for g in guesses
        ]
        assert row == [record["class_names"][labels[i]], *marks_and_names]
    assert text.count('class="right"') == sum(g[i] == labels[i] for g in guesses for i in chosen)
    for attributes, i in zip(page.all("img"), chosen, strict=True):
        data = attributes["src"].removeprefix("data:image/jpeg;base64,")
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        whole = Image.open(data_dir / f"images/test_{i:04d}.JPEG")
        side = round(0.875 * min(whole.size))  # what evaluation looks at
        left, top = ((length - side) // 2 for length in whole.size)
        expected = whole.crop((left, top, left + side, top + side)).resize(shown.size, Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(shown, float) - np.asarray(expected, float)).mean() < 5


def test_images_are_left_out_with_a_reason(run_dir, data_dir, report, tmp_path):
    def reason(*flags):
        return dict(report(folders=[run_dir], flags=flags)[0].tables["Sections left out"][1:])["Images"]

    assert "--samples 0" in reason("--samples", "0")
    (data_dir / "test.txt").write_text("images/test_0000.JPEG 1\n")
    assert "not those that were scored" in reason()
    shutil.rmtree(data_dir)
    assert "not at hand" in reason()
    record = json.loads((run_dir / "sweep-test.json").read_text())
    (run_dir / "sweep-test.json").write_text(json.dumps(without(record, *NEW)))
    assert "“predicted”" in reason()


@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "google-chrome"))), reason="no Chromium here")
def test_a_browser_prints_the_page(report, tmp_path):
    report(made_up(), flags=["--pdf"])
    data = (tmp_path / "out/page.pdf").read_bytes()
    assert data.startswith(b"%PDF") and b"%%EOF" in data[-32:]


def test_without_a_browser_or_with_a_broken_one_pdf_fails_in_one_line(
    tmp_path, program, capsys, monkeypatch, no_diagrams
):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(made_up()))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert program("report", file, "--pdf") == 2
    assert "install Chromium" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/chromium").write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    (tmp_path / "bin/chromium").chmod(0o755)
    assert program("report", file, "--pdf") == 2
    assert "no display" in capsys.readouterr().err
    assert (tmp_path / "report.html").exists() and not (tmp_path / "report.pdf").exists()


def test_text_can_be_read_on_every_colour_of_the_scale():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for i in range(101):
        light, dark = sorted(map(luminance, colour_pair(i / 100)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def test_models_are_drawn_unlike_each_other():
    drawn = marks([str(i) for i in range(30)])
    assert len({(mark.colour, mark.symbol) for mark in drawn}) == 30
    for group in together(drawn):
        assert 4 <= len(group) <= 6
        assert len({mark.colour for mark in group}) == len(group)
    assert [mark for group in together(drawn) for mark in group] == drawn


def summary_of(page):
    return next(text for text in page.text if "channel set" in text).replace("\u00a0", " ")


def test_a_summary_names_no_winner_where_there_is_none(report):
    """One model has no rival, and models that did equally well are told together."""
    alone = made_up("only", scores=scored(RGB=20, R=6))
    page = report(alone)[0]
    assert (
        summary_of(page)
        == "1 model on 2 channel sets of 24 test images. 83.3 % right on RGB, 25.0 % on the worst set, R."
    )
    same, third = made_up("same", scores=scored(RGB=20, R=3)), made_up("third", scores=scored(RGB=20, R=6))
    told = summary_of(report(alone, same)[0])
    assert "Best on RGB: only and same with 83.3 %. Best on its worst set: only with 25.0 % on R." in told
    told = summary_of(report(alone, same, third)[0])
    assert (
        "Best on RGB: 3 models alike with 83.3 %. Best on its worst set: only and third with 25.0 % on R." in told
    )


def scored(**right):
    """Scores of 24 images by channel set."""
    full = OURS["scores"]["RGB"]
    return {s: full | {"top1": top1, "accuracy": top1 / 24} for s, top1 in right.items()}


def test_one_model_is_no_point_in_a_diagram_and_no_loss_no_curve(report):
    silent = [{k: v for k, v in row.items() if k != "train/loss"} for row in OURS["history"]]
    page, _, markdown = report(made_up("only", history=silent))
    assert "Cost at inference" in page.tables
    assert "accuracy against cost" not in markdown
    assert [svg for svg in page.all("svg") if "loss" in svg.get("aria-label", "")] == []
    assert "accuracy against cost" in report(OURS, made_up("other"))[2]


def test_models_without_a_channel_set_in_common_are_not_compared(report):
    """As experts for one set each are, when nothing else stands beside them."""
    page = report(made_up("expert-R", ["R"]), made_up("expert-G", ["G"]), made_up("expert-B", ["B"]))[0]
    assert "Differences from the first" not in page.tables
    assert ["Models compared", "no model shares a channel set with the first"] in page.tables["Sections left out"]
    page = report(made_up("RG", ["R", "G"]), made_up("B", ["B"]), made_up("GB", ["G", "B"]))[0]
    assert [row[0] for row in page.tables["Differences from the first"][1:]] == ["GB"]


def test_all_tables_take_the_first_of_two_experts_for_a_set(report):
    experts = [made_up(f"expert-{seed}", ["R"], seed=seed) for seed in (3, 4)]
    for expert in experts:
        expert["recipe"]["model"] = expert["recipe"]["model"] | {"stem": "plain"}
    ours = made_up("ours")
    first, second = (100 * expert["scores"]["R"]["accuracy"] for expert in experts)
    assert first != second
    tables = report(ours, *experts)[0].tables
    (row,) = (row for row in tables["Top-1 accuracy by channel set"] if row[0] == "dedicated experts")
    column = RGB_SETS.index("R") + 1
    assert row[column].startswith(f"{first:.1f} ")
    own = 100 * ours["scores"]["R"]["accuracy"]
    assert tables["Differences from the first"][1][column].startswith(f"{first - own:+.1f} ".replace("-", "−"))
    assert tables["Ratios to dedicated experts"][1][1].startswith(f"{own / first:.3f} ")


def rows_of_names(svg):
    """Where a diagram has the names of classes, downwards, and the size of their letters."""
    found = re.findall(r'font-size: ([\d.]+)px[^>]* y="([\d.]+)"[^>]*>[^<]*name', svg)
    return np.array(found, dtype=float).T


@pytest.mark.parametrize("classes", [2, 12, 20, 24])
def test_names_beside_a_confusion_matrix_do_not_overlap(classes):
    """However long they are; a phone shows the diagram hardly smaller."""
    for letters in ("", "w" * 30):
        svg = diagrams.confusion(np.eye(classes, dtype=int), [f"name {letters}"] * classes, "model")
        sizes, places = rows_of_names(svg)
        assert len(places) == classes
        assert np.diff(places).min() > 1.1 * sizes[0]
        assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) < 1.4 * 72 * diagrams.PANEL


def test_classes_without_names_have_their_number_once():
    svg = diagrams.confusion(np.eye(3, dtype=int), ["0", "1", "dog"], "model")
    beside = re.findall(r'text-anchor: end"[^>]*>([^<]*)<', svg)
    assert beside == ["0", "1", "dog 2"]


def test_a_single_loss_is_a_point():
    one = {"history": [row for row in OURS["history"] if "train/loss" in row][:1]}
    (mark,) = marks(["one"])
    assert len(re.findall("<use ", diagrams.losses([(mark, one)]))) > len(
        re.findall("<use ", diagrams.losses([(mark, {"history": []})]))
    )
