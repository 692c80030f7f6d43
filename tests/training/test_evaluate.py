"""The evaluator: against a plain loop, several runs at once, killed and resumed, failing, and what it leaves."""

import csv
import fcntl
import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from images import write_images
from PIL import Image
from processes import Fault, evaluate, run_ranks
from safetensors.torch import load_file, save_file
from sweeps import made_up
from tiny import train_args
from torch.nn import functional as F
from torchvision.io import decode_image

from modeling.channels import ChannelSet
from pipelines import portable
from pipelines.batch import Batch
from pipelines.manifest import read_split
from training.build import load_model
from training.evaluation.looks import Look, looks_at
from training.evaluation.metrics import decode_classes, from_hex
from training.evaluation.outcome import to_markdown, with_earlier_rows
from training.records import read_record, write_record
from training.subsets import is_sample, scored_sets

SETS = ["RGB", "RG", "RB", "GB", "R", "G", "B"]
SAID = ("scores", "right", "labels", "predicted", "reliability", "images", "robustness")
MEAN, STD = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
IMAGES = 45  # of the test list; batches hold 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data and two runs, `any` and `naive`, trained and evaluated each by itself, with torchvision's pixels."""
    folder = tmp_path_factory.mktemp("evaluate")
    for seed, (split, count) in enumerate([("train", 16), ("val", 8), ("test", IMAGES)]):
        write_images(folder / "data", count, split=split, seed=seed)
    (folder / "data/classes.txt").write_text("dog\ncat\nbird\n")
    flags = ["--data.loader", "portable", "--schedule.eval-epochs", "2"]
    naive = ["--model.stem", "zero-fill", "--schedule.channel-sets", "mixed"]
    for name, more in {"any": [], "naive": naive}.items():
        args = train_args(folder / "data", folder / name, *flags, *more, "--name", name)
        assert run_ranks(args, folder / "log") == [0], (folder / "log").read_text()
        assert run_ranks([str(folder / name)], folder / "log", main=evaluate) == [0], (folder / "log").read_text()
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """Copies of a finished run, to be evaluated."""

    def make(source: str, name: str = "") -> Path:
        run = tmp_path / (name or source)
        shutil.copytree(folder / source, run, ignore=shutil.ignore_patterns("checkpoints", "sweep*"))
        return run

    return make


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Images that the portable loader decodes, one after the other."""
    seen, decode = [], portable.decode
    monkeypatch.setattr(portable, "decode", lambda samples, i: seen.append(int(i)) or decode(samples, i))
    return seen


def said(run: Path) -> dict:
    record = read_record(run / "sweep-test.json")
    return {key: record[key] for key in SAID if key in record}


def plain_images(files: list[str], size: int) -> torch.Tensor:
    """Seven eighths of each image's middle square, resized with antialiasing and normalised, N×3×size×size."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    images = []
    for file in files:
        image = decode_image(file)
        height, width = image.shape[1:]
        side = round(0.875 * min(height, width))
        top, left = (height - side) // 2, (width - side) // 2
        square = image[None, :, top : top + side, left : left + side]
        small = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)[0]
        images.append((small / 255 - mean) / std)
    return torch.stack(images)


def plain_loop(run: Path, data: Path) -> dict:
    """For each channel set: probabilities of the network as it was trained, image by image."""
    recipe, model, _ = load_model(run)
    images = plain_images(read_split(data, "test").files, recipe.data.size)
    found = {}
    with torch.no_grad():
        for name in SETS:
            seen = images[:, ["RGB".index(c) for c in name]]
            found[name] = torch.cat([model(part, name).double().softmax(1) for part in seen.split(50)])
    return found


def test_results_equal_a_plain_loop(copy, folder, tmp_path, program):
    """997 images, a prime: whatever counts an image twice, or not, or under another one's label, is seen here."""
    data = write_images(tmp_path / "data", 997, split="test", seed=5)
    write_images(data, 3, split="train")  # whence the classes
    run = copy("any")
    assert program("evaluate", run, "--data", data) == 0
    record = read_record(run / "sweep-test.json")
    labels = [int(line.split()[1]) for line in (data / "test.txt").read_text().splitlines()]
    assert decode_classes(record["labels"]).tolist() == labels
    for name, probabilities in plain_loop(run, data).items():
        score, guesses = record["scores"][name], decode_classes(record["predicted"][name]).tolist()
        top1 = top5 = 0
        nll, gap, by_class = 0.0, np.zeros(15), {}
        for row, label, guess in zip(probabilities.tolist(), labels, guesses, strict=True):
            best = sorted(range(3), key=lambda c: -row[c])
            if row[best[0]] - row[best[1]] < 1e-5:  # rounding may decide
                best = [guess, *(c for c in best if c != guess)]
            assert guess == best[0]
            top1, top5 = top1 + (best[0] == label), top5 + (label in best[:5])
            nll -= np.log(row[label]) / 997
            gap[int(np.ceil(15 * max(row))) - 1] += (best[0] == label) - max(row)
            by_class.setdefault(label, []).append(best[0] == label)
        assert (score["n"], score["top1"], score["top5"]) == (997, top1, top5)
        assert score["nll"] == pytest.approx(nll, rel=1e-5)
        assert score["macro"] == pytest.approx(np.mean([np.mean(hits) for hits in by_class.values()]))
        assert score["ece"] == pytest.approx(
            np.abs(gap).sum() / 997, abs=2e-3
        )  # one image may fall into the next bin
        assert from_hex(record["right"][name], 997).tolist() == [
            a == b for a, b in zip(guesses, labels, strict=True)
        ]


def test_runs_that_see_images_alike_share_a_pass(copy, folder, program, decoded):
    """Three runs, of which one wants another size: two passes, and each run's own results."""
    wanted = {name: said(folder / name) for name in ("any", "naive")}
    large = copy("any", "large")
    config = large / "config.yaml"
    config.write_text(config.read_text().replace("size: 32", "size: 40"))
    decoded.clear()
    runs = [copy("any"), large, copy("naive")]
    assert program("evaluate", *runs) == 0
    assert len(decoded) == 2 * 48
    assert set(decoded) == set(range(IMAGES))
    assert said(runs[0]) == wanted["any"]
    assert said(runs[2]) == wanted["naive"]
    assert said(large)["scores"]["RGB"]["nll"] != wanted["any"]["scores"]["RGB"]["nll"]


def damage(run: Path) -> None:
    """Put one weight out of the world of numbers."""
    file = run / "model.safetensors"
    weights = load_file(file)
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights["body.fc.weight"][0, 0] = torch.nan
    save_file(weights, file, metadata)


def test_runs_that_fail_leave_the_others_alone(copy, folder, program, capsys):
    wanted = said(folder / "any")
    missing, broken, good, elsewhere = (copy("any", name) for name in ("missing", "broken", "good", "elsewhere"))
    (missing / "model.safetensors").unlink()
    damage(broken)
    config = elsewhere / "config.yaml"
    config.write_text(config.read_text().replace("/data\n", "/nowhere\n"))
    assert program("evaluate", missing, broken, good, elsewhere) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 4
    assert f"{missing}: {missing}/model.safetensors: not there; finish the training first" in errors[0]
    assert f"{broken}: FloatingPointError: its outputs are no numbers on {IMAGES} of images 0 to 44" in errors[1]
    assert "nowhere: no such folder" in errors[2]
    assert f"3 of 4 runs failed: {missing}, {broken}, {elsewhere}" in errors[3]
    assert said(good) == wanted
    assert not [file for run in (missing, broken, elsewhere) for file in run.glob("sweep*.*") if file.is_file()]


def test_if_all_fail_none_is_called_done(tmp_path, program, capsys):
    assert program("evaluate", tmp_path / "a", tmp_path / "b") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: 2 of 2 runs failed: {tmp_path / 'a'}, {tmp_path / 'b'}"


def test_no_run_is_no_evaluation(program, capsys):
    assert program("evaluate") == 2
    assert "no run directory given" in capsys.readouterr().err


def told_next(text: str) -> list[list[str]]:
    """The words of each command that a program told to run next."""
    return [shlex.split(line)[4:] for line in text.splitlines() if line.startswith("next: python")]


def test_the_next_commands_make_pages(copy, folder, tmp_path, program, capsys):
    """Runs on other images need a page of their own, and a record with a name of its own is named."""
    elsewhere, one, other = copy("any", "else where"), copy("any"), copy("naive")
    for split in ("train", "test"):
        write_images(tmp_path / "data", 3, split=split, seed=9)
    config = elsewhere / "config.yaml"
    config.write_text(config.read_text().replace(f"{folder}/data\n", f"{tmp_path}/data\n"))
    runs = [str(run) for run in (elsewhere, one, other)]
    flags = ("--channel-sets", "RG"), ("--split", "val")
    wanted = {
        (): [[runs[0]], runs[1:]],
        flags[0]: [[f"{runs[0]}/sweep-test-RG.json"], [f"{run}/sweep-test-RG.json" for run in runs[1:]]],
    }
    for more, pages in wanted.items():
        assert program("evaluate", *runs, *more) == 0
        assert told_next(capsys.readouterr().out) == pages
        for page in pages:
            assert program("report", *page, "--samples", "0", "--out", tmp_path / "page.html") == 0
        capsys.readouterr()
    assert program("evaluate", one, *flags[1]) == 0
    assert told_next(capsys.readouterr().out) == [[runs[1], *flags[1]]]


@pytest.mark.parametrize(
    ("names", "status", "told"),
    [
        ("dog\ncat\nbird\n", 0, ""),
        ("dog\nbird\ncat\n", 2, "error: class 1 is 'cat' in "),
        ("dog\nwolf\nfox\n", 0, "note: class 1 is 'cat' in "),
    ],
)
def test_other_classes_by_the_same_numbers_are_noticed(copy, tmp_path, program, capsys, names, status, told):
    data = write_images(tmp_path / "data", 3, split="test")
    write_images(data, 3, split="train")
    (data / "classes.txt").write_text(names)
    assert program("evaluate", copy("any"), "--data", data) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note:", "error:"))]
    assert [line[: len(told)] for line in lines] == [told] * bool(told)


def test_a_run_that_fails_alone_is_one_line(copy, program, capsys):
    run = copy("any")
    damage(run)
    assert program("evaluate", run) == 1
    assert f"error: {run}: FloatingPointError: its outputs" in capsys.readouterr().err.splitlines()[-1]


def test_second_evaluation_of_a_run_is_refused_and_leaves_others_alone(copy, folder, program, capsys):
    busy, free = copy("any"), copy("naive")
    with (busy / ".sweep-test.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert program("evaluate", busy) == 2
        assert "is being evaluated in the same way by another process; wait" in capsys.readouterr().err
        assert program("evaluate", busy, free) == 1
        assert said(free) == said(folder / "naive")
        assert not (busy / "sweep-test.json").exists()
    assert program("evaluate", busy) == 0
    assert said(busy) == said(folder / "any")


def evaluate_failing_on_one_rank(args: list[str]) -> None:
    """The networks of the run `raises` do, in the second batch of the last rank."""
    from training import evaluate as program
    from training.evaluation import candidates

    prepare = candidates.prepare

    def prepared(run_dir, job, samples, runtime):
        candidate, calls = prepare(run_dir, job, samples, runtime), []

        def fail(*_):
            calls.append(1)
            if len(calls) > len(SETS):
                raise torch.OutOfMemoryError("no memory left\nin sight")

        if run_dir.name == "raises" and runtime.rank == runtime.world - 1:
            for network in candidate.networks.values():
                network.register_forward_hook(fail)
        return candidate

    program.prepare = prepared
    evaluate(args)


def test_ranks_agree_on_who_failed(copy, folder, tmp_path):
    wanted, good, raises, log = said(folder / "naive"), copy("naive"), copy("any", "raises"), tmp_path / "log"
    args = [str(raises), str(good), "--part", "16"]
    assert run_ranks(args, log, world=2, main=evaluate_failing_on_one_rank) == [1, 1], log.read_text()
    errors = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert errors[0] == f"error: {raises}: OutOfMemoryError: no memory left in sight"
    assert errors[1].startswith("error: 1 of 2 runs failed")
    assert len(errors) == 2
    assert said(good) == wanted
    assert not (raises / "sweep-test.json").exists()


def evaluate_failing_to_load_on_one_rank(args: list[str]) -> None:
    """The last rank has no memory for the run `raises`."""
    from training.evaluation import candidates

    load = candidates.load_with

    def load_with(run_dir, missing):
        if run_dir.name == "raises" and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            raise torch.OutOfMemoryError("no memory left")
        return load(run_dir, missing)

    candidates.load_with = load_with
    evaluate(args)


@pytest.mark.parametrize("more", [[], ["--recalibrate", "16"]], ids=["plain", "recalibrated"])
def test_ranks_agree_on_who_was_not_loaded(copy, tmp_path, more):
    """Before the ranks measure norms together, in which one of them would be missed."""
    good, raises, log = copy("naive"), copy("any", "raises"), tmp_path / "log"
    main = evaluate_failing_to_load_on_one_rank
    assert run_ranks([str(raises), str(good), *more], log, world=2, main=main) == [1, 1], log.read_text()
    errors = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert errors[0] == f"error: {raises}: OutOfMemoryError: no memory left"
    assert errors[1].startswith("error: 1 of 2 runs failed")
    assert len(errors) == 2
    assert (good / f"sweep-test{'-recalibrated' if more else ''}.json").exists()


def test_killed_and_resumed_on_another_number_of_ranks(copy, folder, program, tmp_path, decoded, capsys):
    """Two ranks answer for 16 images, and die while they keep the next; one goes on from there."""
    wanted, run, log = said(folder / "any"), copy("any"), tmp_path / "log"
    fault = {0: Fault(2, function="Partial.save")}
    assert run_ranks([str(run), "--part", "16"], log, fault, world=2, main=evaluate)[0] == -9, log.read_text()
    assert [file.name for file in (run / "sweep-test.partial").iterdir()] == ["000000000000.safetensors"]
    assert not (run / "sweep-test.json").exists()
    decoded.clear()
    assert program("evaluate", run, "--part", "24") == 0
    assert f"going on at image 16 of {IMAGES}" in capsys.readouterr().out
    assert sorted(set(decoded)) == [0, 1, 2, *range(16, IMAGES)]  # the first three fill up the last batch
    assert said(run) == wanted
    assert not (run / "sweep-test.partial").exists()


def test_parts_of_another_question_are_not_taken(copy, folder, program, tmp_path, decoded):
    """The same run with other weights: what is on disk is not about them."""
    run, wanted = copy("any"), said(folder / "naive")
    fault = {0: Fault(3, function="Partial.save")}
    assert run_ranks([str(run), "--part", "16"], tmp_path / "log", fault, main=evaluate) == [-9]
    assert len(list((run / "sweep-test.partial").iterdir())) == 2
    (run / "sweep-test.partial/000000000099.safetensors").write_bytes(b"torn")
    for name in ("model.safetensors", "config.yaml"):
        shutil.copy(copy("naive", name) / name, run / name)
    decoded.clear()
    assert program("evaluate", run) == 0
    assert set(decoded) == set(range(IMAGES))
    assert said(run) == wanted


def test_changed_images(copy, program, folder, tmp_path):
    run = copy("any")
    assert program("evaluate", run, "--robustness") == 0
    record = read_record(run / "sweep-test.json")
    rows = record["robustness"]
    assert program("evaluate", run) == 0
    assert read_record(run / "sweep-test.json")["robustness"] == rows, "another evaluation keeps them"
    assert list(rows) == ["permuted", "noisy R", "noisy G", "noisy B", "0.5x", "0.75x", "1.5x", "2x"]
    for name in SETS:
        assert rows["permuted"][name]["nll"] == pytest.approx(record["scores"][name]["nll"], rel=1e-5)
    assert list(rows["noisy G"]) == ["RGB", "RG", "GB", "G"]
    assert rows["noisy G"]["G"]["nll"] != record["scores"]["G"]["nll"]
    _, model, _ = load_model(run)
    images = F.interpolate(
        plain_images(read_split(folder / "data", "test").files, 32), scale_factor=1.5, mode="bilinear"
    )
    labels = torch.arange(IMAGES) % 3
    with torch.no_grad():
        nll = F.cross_entropy(model(images[:, 1:], "GB"), labels)
    assert rows["1.5x"]["GB"]["nll"] == pytest.approx(float(nll), rel=1e-5)
    table = list(csv.DictReader((run / "sweep-test.csv").read_text().splitlines()))
    assert len(table) == 7 * 6 + 3 * 4
    assert {(row["condition"], row["channels"]) for row in table} >= {("", "RGB"), ("noisy B", "B"), ("2x", "RG")}
    for row in table:
        score = (rows[row["condition"]] if row["condition"] else record["scores"])[row["channels"]]
        assert (int(row["top1"]), float(row["ece"])) == (score["top1"], score["ece"])
    text = (run / "sweep-test.md").read_text()
    assert "| noisy R |" in text
    assert "| same guess, % | RGB | RG |" in text
    assert record["class_names"] == ["dog", "cat", "bird"]
    args, log, before = [str(run), "--robustness"], tmp_path / "log", said(run)
    assert run_ranks(args, log, world=2, main=evaluate) == [0, 0], log.read_text()
    assert said(run) == before  # noise, too


def batch(images: torch.Tensor, first: int = 0) -> Batch:
    count = len(images)
    return Batch(images, torch.zeros(count), torch.ones(count), torch.arange(first, first + count))


def test_rows_on_changed_images_outlive_an_evaluation_that_says_the_same(tmp_path, capsys):
    file, first = tmp_path / "sweep-test.json", made_up()
    plain = {key: value for key, value in first.items() if key != "robustness"}
    assert with_earlier_rows(plain, file) is plain, "nothing was there"
    write_record(file, first)
    later = {**plain, "provenance": {**plain["provenance"], "commit": "a later one"}}
    kept = with_earlier_rows(later, file)
    assert kept["robustness"] == first["robustness"]
    assert kept["provenance"]["commit"] == "a later one"
    assert f"commit {first['provenance']['commit'][:12]}" in to_markdown(kept)
    write_record(file, kept)
    assert with_earlier_rows(later, file) == kept, "and a third one"
    assert capsys.readouterr().err == ""
    for other in ({"fingerprint": {"test": "other images"}}, {"scores": made_up(seed=1)["scores"]}):
        assert "robustness" not in with_earlier_rows({**plain, **other}, file)
        assert "told of changed images, but the scores have changed since" in capsys.readouterr().err
    file.write_text("torn")
    assert with_earlier_rows(plain, file) is plain
    assert "not a record" in capsys.readouterr().err


def test_noise_is_on_one_channel_and_seeded():
    images, rgb = torch.zeros(4, 3, 64, 64), ("R", "G", "B")
    look = Look(ChannelSet(("B", "G")), ChannelSet(("B", "G")), "noisy G")
    shown = look.show(batch(images), rgb)
    assert not shown[:, 0].any()
    assert float(shown[:, 1].std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(shown, look.show(batch(images), rgb))
    assert not torch.equal(shown, look.show(batch(images, first=4), rgb))
    assert not images.any()


def test_images_shrink_with_antialiasing():
    """Against Pillow, of a picture with detail that sampling alone would turn into something else."""
    pixels = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    look = Look(ChannelSet(("G",)), ChannelSet(("G",)), "0.5x")
    shown = look.show(batch(torch.from_numpy(pixels).expand(1, 3, 64, 64)), ("R", "G", "B"))
    wanted = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(shown[0, 0].numpy() - wanted).max() < 1e-5


def test_permuted_channels_are_all_moved_and_named():
    sets = [ChannelSet(("R", "G", "B")), ChannelSet(("G",))]
    turned = [look for look in looks_at(sets, robustness=True) if look.condition == "permuted"]
    assert [(str(look), str(look.shown)) for look in turned] == [("RGB", "GBR"), ("G", "G")]


def test_many_channels_are_scored_on_a_sample():
    def stem(count: int) -> SimpleNamespace:
        vocabulary = tuple(f"{450 + 5 * i}" for i in range(count))
        return SimpleNamespace(vocabulary=vocabulary, sets=lambda: ChannelSet.all_of(vocabulary))

    def sets(count: int) -> list[ChannelSet]:
        return scored_sets(stem(count))

    assert sets(6) == ChannelSet.all_of(sets(6)[0].names)
    many = sets(8)
    assert len(many) == len({frozenset(chosen) for chosen in many}) == 63
    assert [len(chosen) for chosen in many[:1] + many[-8:]] == [8] + 8 * [1]
    assert many == sets(8)
    assert len(sets(40)) == 63
    assert is_sample(many, stem(8))
    assert not is_sample(many[1:], stem(8))
    assert not is_sample(sets(6), stem(6))


def test_a_record_is_json_that_others_can_read(copy, program):
    run = copy("any")
    assert program("evaluate", run) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)  # NaN and Infinity are no JSON

    record = json.loads((run / "sweep-test.json").read_text(), parse_constant=refuse)
    assert "robustness" not in record
    for bins in record["reliability"].values():
        assert sum(bins["count"]) == IMAGES
        assert len(bins["count"]) == len(bins["confidence"]) == len(bins["right"]) == 15
