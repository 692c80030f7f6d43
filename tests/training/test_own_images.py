"""The newcomer's path: a folder of images, and then each command that the one before told to run."""

import contextlib
import csv
import importlib
import io
import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from images import picture
from PIL import Image
from safetensors import safe_open
from tiny import TINY_WORDS

from modeling.channels import ChannelSet
from modeling.weights import load_network
from pipelines import spectral
from pipelines.manifest import read_split
from training import formats
from training.build import load_model
from training.cli import run_program
from training.evaluation.metrics import from_hex
from training.export import describe
from training.records import read_record
from training.reporting.pictures import as_seen

WOLVES = ("own-images/wolf/wolf 0.jpg", "own-images/wolf/wolf 1.jpg")
SMALL = [*TINY_WORDS, "--model.body", "strict", "--model.width", "0.0625"]


def paste(command: str, *more: str) -> SimpleNamespace:
    """What a terminal would make of a command that a program printed, in this process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    python, m, name, *words = shlex.split(command)
    assert (python, m) == ("python", "-m")
    module, status, out, err = importlib.import_module(name), 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_program(lambda: module.main(module.parse([*words, *more])))
        except SystemExit as stop:
            status = int(stop.code or 0)
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def next_command(told: SimpleNamespace) -> str:
    """The command that a program's last line ends with."""
    assert told.status == 0, told.err
    last = told.out.strip().splitlines()[-1]
    return last[last.index("python -m") :]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The whole path, and what each step printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    for label, name in enumerate(("red $5 fox", "lynx", "wolf")):
        (folder / "own-images" / name).mkdir(parents=True)
        for i in range(12):
            image = picture(100 * label + i, 50 + i, 44)
            image.save(folder / "own-images" / name / f"{name} {i}.jpg", quality=92)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        told = {"lists": paste("python -m pipelines.lists own-images --val 0.2 --test 0.25")}
        told["train"] = paste(next_command(told["lists"]), *SMALL)
        told["evaluate"] = paste(next_command(told["train"]))
        told["report"] = paste(next_command(told["evaluate"]))
        assert told["report"].status == 0
        told["export"] = paste("python -m training.export runs/own-images --channels RG")
        told["predict"] = paste(next_command(told["export"]))
        next_command(told["predict"])
    return folder, told


@pytest.fixture
def run(walked, tmp_path, monkeypatch) -> Path:
    """A copy of the run that the path made, to be changed at will."""
    monkeypatch.chdir(walked[0])
    return Path(shutil.copytree(walked[0] / "runs" / "own-images", tmp_path / "run"))


def test_every_step_leaves_what_it_says(walked):
    folder, told = walked
    run = folder / "runs" / "own-images"
    assert {path.name for path in (run / "export").iterdir()} == {
        "card.md",
        "model.safetensors",
        "model-RG.onnx",
        "model-RG.pt2",
    }
    assert (run / "predictions-RG.png").is_file()
    assert "red $5 fox" in told["predict"].out
    assert shlex.split(next_command(told["predict"]))[-1] != "RG"
    assert [path for path in folder.rglob("*") if path.name.endswith(".tmp")] == []


def test_weights_know_names_and_network(run):
    _, model, metadata = load_model(run)
    assert json.loads(metadata["class_names"]) == ["lynx", "red $5 fox", "wolf"]
    x = torch.randn(2, 1, 40, 32)
    with torch.no_grad():
        for file in (run / "model.safetensors", run / "export" / "model.safetensors"):
            assert torch.equal(load_network(file)(x, "B"), model(x, "B"))


def test_card_says_what_the_record_says(run, walked):
    text = (run / "export" / "card.md").read_text()
    _, front, body = text.split("---\n", 2)
    matter, record = yaml.safe_load(front), read_record(run / "sweep-test.json")
    results = matter["model-index"][0]["results"]
    assert [row["metrics"][0]["value"] for row in results] == [
        pytest.approx(score["accuracy"], abs=1e-4) for score in record["scores"].values()
    ]
    assert (matter["pipeline_tag"], results[0]["dataset"]["split"]) == ("image-classification", "test")
    for name, score in record["scores"].items():
        assert f"| {name} | {100 * score['accuracy']:.1f} |" in body
        assert f"| {score['n']} |" in body
    assert "1. red $5 fox" in body
    assert record["fingerprint"]["test"] in body
    with safe_open(run / "export" / "model.safetensors", framework="pt") as file:
        told = json.dumps(file.metadata())
    assert str(walked[0]) not in text + told  # no folders of this machine


def test_files_say_what_they_want(run):
    import onnxruntime

    session = onnxruntime.InferenceSession(run / "export" / "model-RG.onnx", providers=["CPUExecutionProvider"])
    told = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert told["channels"] == ["R", "G"]
    assert (told["mean"], told["std"], told["size"]) == ([0.485, 0.456], [0.229, 0.224], 32)
    assert told["class_names"] == ["lynx", "red $5 fox", "wolf"]


def test_bands_are_told_by_their_mixture(run):
    recipe, _, metadata = load_model(run)
    told = describe(ChannelSet(("450", "R")), recipe, metadata)
    mix, colours = torch.tensor(json.loads(told["mix"])), torch.rand(1, 3, 4, 5)
    assert json.loads(told["mean"]) == [0.485, 0.456, 0.406]
    expected = spectral.mix(colours, spectral.weights(("450", "R")))
    assert torch.allclose(torch.einsum("sc,nchw->nshw", mix, colours), expected)
    assert "mix" not in describe(ChannelSet(("B", "R")), recipe, metadata)
    assert json.loads(describe(ChannelSet(("B", "R")), recipe, metadata)["mean"]) == [0.406, 0.485]


def test_a_file_that_differs_is_not_written(run, monkeypatch):
    shutil.rmtree(run / "export")
    read, off = formats._read_program, iter([0.0, 0.25])

    def other(data):
        program, more = read(data), next(off)
        return lambda x: program(x) + more

    monkeypatch.setattr(formats, "_read_program", other)
    told = paste(f"python -m training.export {run} --channels B GB --formats torch-export")
    assert told.status == 1
    assert "differs from the network by 0.25" in told.err
    assert {path.name for path in (run / "export").iterdir()} == {"model.safetensors", "model-B.pt2"}


def test_a_card_without_a_record_tells_no_accuracy(run, tmp_path):
    (run / "sweep-test.json").unlink()
    told = paste(f"python -m training.export {run} --formats torch-export --out {tmp_path / 'out'}")
    assert told.status == 0
    assert "python -m training.evaluate" in told.err
    card = (tmp_path / "out" / "card.md").read_text()
    assert "Not measured" in card
    assert "model-index" not in card


def test_a_record_of_another_training_is_refused(run):
    record = json.loads((run / "sweep-test.json").read_text())
    record["fingerprint"]["train"] = "another"
    (run / "sweep-test.json").write_text(json.dumps(record))
    told = paste(f"python -m training.export {run} --formats torch-export")
    assert told.status == 2
    assert "evaluate this one again" in told.err


def test_predictions_are_those_of_the_evaluation(run, tmp_path):
    manifest, record = read_split(Path("own-images"), "test"), read_record(run / "sweep-test.json")
    for chosen in ("RG", "B"):
        out = tmp_path / f"{chosen}.json"
        command = ["python", "-m", "training.predict", str(run), *manifest.files, "--channels", chosen]
        told = paste(shlex.join([*command, "--out", str(out)]))
        assert told.status == 0, told.err
        answers = json.loads(out.read_text())["predictions"]
        assert [row["image"] for row in answers] == manifest.files
        right = [row["guesses"][0]["label"] == label for row, label in zip(answers, manifest.labels, strict=True)]
        assert right == from_hex(record["right"][chosen], len(manifest)).tolist()
        for row in answers:
            assert sum(guess["probability"] for guess in row["guesses"]) == pytest.approx(1, abs=1e-5)  # 3 classes


def test_damaged_images_do_not_stop_the_others(run, tmp_path):
    folder = tmp_path / "some [bold]"
    folder.mkdir()
    sound = Path("own-images/lynx/lynx 0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(sound[: len(sound) // 2])
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "deep.png")
    Image.open(io.BytesIO(sound)).convert("L").save(folder / "gray.png")
    (folder / "sound.jpg").write_bytes(sound)
    out = tmp_path / "answers.csv"
    told = paste(shlex.join(["python", "-m", "training.predict", str(run), str(folder), "--out", str(out)]))
    assert told.status == 1
    reasons = [line for line in told.err.splitlines() if line.startswith("not read: ")]
    assert [Path(line.split(": ")[1]).name for line in reasons] == ["cut.jpg", "deep.png", "empty.png"]
    assert "16 bits" in reasons[1]
    assert "row" not in told.err
    assert "error: 3 of 5 images could not be read" in told.err
    rows = list(csv.DictReader(out.open()))
    assert {Path(row["image"]).name for row in rows} == {"gray.png", "sound.jpg"}
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    again = paste(shlex.join(["python", "-m", "training.predict", str(run), str(folder / "cut.jpg")]))
    assert again.status == 1
    assert "1 of 1" in again.err


def test_pictures_are_drawn_and_replaced_with_a_word(run):
    command = shlex.join(["python", "-m", "training.predict", str(run), *WOLVES, "--channels", "RB"])
    first, second = paste(command), paste(command)
    assert "in place of the one before" not in first.out
    assert f"wrote {run / 'predictions-RB.png'} in place of the one before" in second.out
    with Image.open(run / "predictions-RB.png") as drawn:
        assert drawn.format == "PNG"
        assert drawn.height > 0.4 * drawn.width  # two rows


def test_images_are_drawn_as_the_network_saw_them():
    white = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.406) / 0.225])[:, None, None].expand(2, 4, 5)
    shown = as_seen(white, ChannelSet(("R", "B")))
    assert torch.allclose(shown, torch.tensor([1.0, 0.0, 1.0]).expand(4, 5, 3))
    assert torch.equal(as_seen(white.flip(0), ChannelSet(("B", "R"))), shown)
    assert as_seen(torch.zeros(2, 4, 5), ChannelSet(("450", "610"))).shape == (4, 10, 3)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no image given"),
        (["nothing.jpg"], "nothing.jpg: no such image or folder"),
        (["runs/own-images/checkpoints"], "checkpoints: no images"),
        (["own-images", "--channels", "RX"], "--channels RX: unknown channel 'X'"),
    ],
)
def test_bad_words_are_one_line(run, words, reason):
    told = paste(shlex.join(["python", "-m", "training.predict", str(run), *words]))
    assert told.status == 2
    assert reason in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--out", "answers.txt"], "name a .json or .csv file"), (["--picture", "a.svg"], "name a .png file")],
)
def test_flags_name_files_that_can_be_written(run, words, reason):
    told = paste(shlex.join(["python", "-m", "training.predict", str(run), *WOLVES, *words]))
    assert told.status == 2
    assert reason in " ".join(told.err.split())
