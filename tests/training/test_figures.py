"""Pictures for documents: what is drawn, and what is refused."""

import json
import re

import pytest
from sweeps import made_up

from training.reporting.figures import accuracy_by_cost, accuracy_by_set, accuracy_of_new_sets, costs_of

DEPTHS = {"deep": {"d1": 34, "d2": 34}, "flat": {"d1": 4, "d2": 4}}


def network(name: str, **more) -> dict:
    record = made_up(name, seed=len(name), **more)
    return {**record, "cost": {**record["cost"], "depth": DEPTHS.get(name, {})}}


def speeds(**images_per_s: float) -> dict:
    rows = {name: {"images_per_s": {"median": rate}} for name, rate in images_per_s.items()}
    return {"kind": "benchmark networks", "parts": {"inference, one image": {"summary": rows}}}


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def panels(svg: str) -> list[str]:
    return [text for text in texts(svg) if re.search("map|million|ms", text)]


def test_few_models_are_bars_and_many_are_points_in_a_panel_for_each_set():
    models = [made_up(name, seed=i, sets=["RG", "R", "G"]) for i, name in enumerate("abcde")]
    few, many = accuracy_by_set(models[:4]), accuracy_by_set(models)
    assert "channels given" in texts(few)
    assert "channels given" not in texts(many)
    for svg, names in ((few, "abcd"), (many, "abcde")):
        assert [text for text in texts(svg) if text in names] == list(names)
        assert [text for text in texts(svg) if text in ("RG", "R", "G")] == ["RG", "R", "G"]
    assert many.count("LineCollection") == 3 * 5


def test_more_sets_than_fit_in_a_row():
    sets = ["RGB", "RG", "RB", "GB", "R", "G", "B", "other"]
    svg = accuracy_by_set([made_up(name, seed=i, sets=sets) for i, name in enumerate("vwxyz")])
    assert [text for text in texts(svg) if text in sets] == sets


def test_a_point_for_each_set_by_what_training_knew_of_it():
    trained = {"trained_on": ["RGB", "R"]}
    known, other = made_up("ours", **trained), made_up("rival", seed=1, **trained)
    near = made_up("ours, nearest", ["475", "475+530"], seed=2, stand_ins={"475": "R"}, **trained)
    svg = accuracy_of_new_sets([known, near, other])
    assert [text for text in texts(svg) if text in ("ours", "rival")] == ["ours", "rival"]
    groups = [
        group.count("<use") for group in re.findall(r'<g clip-path="[^"]*">\s*((?:<use[^>]*/>\s*)+)</g>', svg)
    ]
    assert groups == [2, 5, 2, 2, 5]
    told = [text for text in texts(svg) if "sets" in text or "nearest" in text]
    assert told == ["sets trained on", "other sets of these bands", "those, by the nearest band"]


def test_records_of_one_model_share_a_row(tmp_path, program):
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file, sets in zip(files, (["RGB", "R"], ["475"]), strict=True):
        file.write_text(json.dumps(made_up("ours", sets)))
    assert program("report", *files, "--figure", tmp_path / "c.svg", "--of", "bands") == 0
    assert [text for text in texts((tmp_path / "c.svg").read_text()) if "ours" in text] == ["ours"]


def test_models_that_saw_other_images_share_no_picture(tmp_path, program, capsys):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, print_ in zip(files, ("one", "other"), strict=True):
        record = made_up(file.stem)
        file.write_text(json.dumps(record | {"fingerprint": dict.fromkeys(record["fingerprint"], print_)}))
    assert program("report", *files, "--figure", tmp_path / "a.svg") == 2
    assert "were not scored on the same images" in capsys.readouterr().err
    assert not (tmp_path / "a.svg").exists()


def test_costs_are_those_of_the_records():
    deep, flat = network("deep"), network("flat")
    flat["cost"]["sets"]["RGB"] |= {"parameters": 2_500_000, "macs": 7 * 10**6}
    found = costs_of([deep, flat], "RGB")
    assert list(found.values()) == [[34, 4], [34, 4], [0.003, 2.5], [3, 7]]


def test_each_network_is_drawn_in_each_panel():
    both = [network("deep"), network("flat")]
    plain, timed = accuracy_by_cost(both), accuracy_by_cost([*both, speeds(deep=50.0, flat=90.0)])
    assert len(panels(plain)) == 4
    assert panels(timed) == [*panels(plain), "latency of one image, ms"]
    for name in ("deep", "flat", "0.9 × deep", "test top-1, %"):
        assert f">{name}</text>" in plain
    bars = [svg.count("LineCollection") for svg in (accuracy_by_cost(both[:1]), plain, timed)]
    assert bars == [4 + 1, 8 + 2, 10 + 2]  # an interval in each panel and in the key
    assert {"4", "34"} <= set(texts(plain))  # depths are ticks of their own


def test_a_benchmark_of_other_networks_is_refused():
    from pipelines.errors import DataError

    with pytest.raises(DataError, match="timed deep, other, not flat; make it of the same runs"):
        accuracy_by_cost([network("deep"), network("flat"), speeds(deep=50.0, other=90.0)])


@pytest.mark.parametrize("of", ["sets", "bands", "networks"])
def test_records_that_a_picture_does_not_show_are_refused(of, tmp_path, program, capsys):
    timed, good = tmp_path / "timed.json", tmp_path / "good.json"
    timed.write_text(json.dumps(speeds(deep=50.0) | {"format": 1, "name": "timed"}))
    good.write_text(json.dumps(network("deep")))
    out = tmp_path / "new" / "a.svg"
    assert program("report", timed, "--figure", out, "--of", of) == 2
    assert f"--of {of} draws records of training.evaluate" in capsys.readouterr().err
    assert program("report", good, "--figure", tmp_path / "a.png", "--of", of) == 2
    assert "a.png must end in .svg" in capsys.readouterr().err
    assert program("report", good, "--figure", out, "--of", of) == 0
    assert out.exists()


@pytest.mark.parametrize("block", ["paired", "ratios", "networks", "seeds", "bands"])
def test_tables_that_compare_answers_refuse_benchmarks(block, tmp_path, program, capsys):
    (tmp_path / "timed.json").write_text(json.dumps(speeds(deep=50.0) | {"format": 1, "name": "timed"}))
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {block}: timed.json -->\n<!-- /{block} -->\n")
    assert program("report", "--update", page) == 2
    assert f"{block} compares records of training.evaluate, not of benchmark networks" in capsys.readouterr().err


def test_runs_of_one_recipe_are_told_apart(tmp_path, program):
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        file.write_text(json.dumps(network("deep")))
    out = tmp_path / "a.svg"
    assert program("report", *files, "--figure", out, "--of", "networks") == 0
    assert {"deep (one)", "deep (two)"} <= set(texts(out.read_text()))


def test_written_by_the_program(tmp_path, program, capsys):
    files = [tmp_path / f"{name}.json" for name in DEPTHS]
    for file in files:
        file.write_text(json.dumps(network(file.stem)))
    out = tmp_path / "networks.svg"
    assert program("report", *files, "--figure", out, "--of", "networks") == 0
    assert out.read_text().startswith("<svg")
    files[1].write_text(json.dumps(network("unknown")))
    out.unlink()
    assert program("report", *files, "--figure", out, "--of", "networks") == 2
    assert "the record of unknown has no accuracy on RGB, or no depth" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("sets", [["R", "G"], ["RG"]])
def test_network_without_that_channel_set_is_refused(sets):
    from pipelines.errors import DataError

    with pytest.raises(DataError, match="the record of flat has no accuracy on RGB"):
        accuracy_by_cost([network("deep"), network("flat", sets=sets)])
