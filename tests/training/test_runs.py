"""The programs, run for real on small data: train, stop, kill, resume, refuse."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest
import torch
from images import write_images
from processes import Fault, assert_nothing_lost, evaluate, run_ranks, train
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TINY_WORDS, train_args

from pipelines.sharding import epoch_order
from training.build import load_model
from training.monitor import read_metrics
from training.records import read_record

ROOT = Path(__file__).parent.parent.parent


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_run_directory_holds_what_it_should(finished_run):
    assert {path.name for path in finished_run.iterdir()} == {
        ".lock",
        "config.yaml",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "model.safetensors",
    }
    rows = read_metrics(finished_run)
    assert [row["step"] for row in rows if "val/top1/RGB" in row] == [5, 10]
    assert {key for row in rows for key in row if key.startswith("val/")} == {
        f"val/top1/{name}" for name in ("RGB", "RG", "RB", "GB", "R", "G", "B")
    }
    board = EventAccumulator(str(finished_run / "tensorboard")).Reload()
    tags = board.Tags()
    assert {"train/loss", "train/lr", "train/images_per_s", "train/data_wait", "val/top1/B"} <= set(
        tags["scalars"]
    )
    assert set(tags["images"]) == {
        "input/by_channel_set",
        "pictures/answers",
        "pictures/kernels",
        *(f"pictures/confusion/{name}" for name in ("RGB", "RG", "RB", "GB", "R", "G", "B")),
    }
    assert tags["tensors"] == ["recipe/text_summary", "custom_scalars__config__"]
    assert [event.step for event in board.Scalars("val/top1/B")] == [5, 10]


def test_training_learns(tmp_path, program):
    """Eight pictures, over and over: a network that learns must fit them."""
    folder = write_images(tmp_path / "data", 8, classes=2)
    write_images(folder, 4, classes=2, split="val", seed=1)
    length = ("--schedule.epochs", "20", "--schedule.eval-epochs", "20")
    ease = ("--data.scale", "0.9", "--optim.label-smoothing", "0")
    assert program("train", *train_args(folder, tmp_path / "run", *length, *ease)) == 0
    losses = [row["train/loss"] for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "flags",
    [
        ("--model.stem", "attention"),
        ("--model.stem", "zero-fill", "--schedule.channel-sets", "mixed"),
        ("--model.stem", "plain", "--model.plain-channels", "GB", "--schedule.channel-sets", "GB"),
        ("--model.body", "strict", "--model.width", "0.0625", "--model.deep", "--optim.ema", "0.5"),
    ],
    ids=lambda flags: flags[1],
)
def test_rivals_train_and_are_evaluated_on_the_sets_they_take(data_dir, tmp_path, program, flags):
    run = tmp_path / "run"
    assert program("train", *train_args(data_dir, run, *flags, "--schedule.eval-epochs", "2")) == 0
    assert program("evaluate", run) == 0
    record = json.loads((run / "sweep-test.json").read_text())
    sets = ["GB"] if "plain" in flags else ["RGB", "RG", "RB", "GB", "R", "G", "B"]
    assert list(record["scores"]) == list(record["cost"]["sets"]) == sets
    if "attention" in flags:  # annealed, in four of ten steps
        assert weights(run)["stem.temperature"] == 1
    if "strict" in flags:
        _, model, _ = load_model(run)
        assert model.body.layer1[2].is_identity  # though the weights are means over steps
        assert count_weight_layers(model.materialize("RG")) == 4


def test_what_is_annealed_is_in_its_final_form_after_a_single_step(data_dir, tmp_path, program):
    flags = ("--model.body", "strict", "--model.width", "0.0625", "--model.deep", "--schedule.epochs", "1")
    assert program("train", *train_args(data_dir, tmp_path / "run", *flags, "--data.batch-size", "64")) == 0
    _, model, _ = load_model(tmp_path / "run")
    assert model.body.layer1[2].is_identity


def count_weight_layers(network: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in network.modules())


def watch_teacher(monkeypatch) -> list[int]:
    """How many images were taught, step by step, from now on."""
    from training.distill import Teacher

    answers, calls = Teacher._answers, []

    def watched(self, images):
        norms = [b.clone() for b in self.student.buffers()]
        logits = answers(self, images)
        assert self.student.training
        assert not logits.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(norms, self.student.buffers(), strict=True))
        calls.append(len(images))
        return logits

    monkeypatch.setattr(Teacher, "_answers", watched)
    return calls


def test_another_network_teaches_every_image(data_dir, finished_run, tmp_path, program, monkeypatch, capsys):
    calls = watch_teacher(monkeypatch)
    taught = ["--schedule.teacher", str(finished_run), "--schedule.distill", "1", "--schedule.temperature", "2"]
    run = tmp_path / "student"
    assert program("train", *train_args(data_dir, run, *taught)) == 0
    assert calls == [8] * 10
    assert program("evaluate", run) == 0
    schedule = read_record(run / "sweep-test.json")["recipe"]["schedule"]
    assert (schedule["teacher"], schedule["temperature"]) == (finished_run.name, 2)
    for flags, reason in {
        ("--data.labels", "0"): "was trained on other classes (3) than this run (1)",
        (
            "--model.vocabulary",
            "R+G+650",
            "--schedule.teacher",
            str(finished_run),
        ): "was trained on other channels",
        ("--schedule.teacher", "nowhere"): "nowhere/config.yaml: no such file",
    }.items():
        assert program("train", *train_args(data_dir, tmp_path / "refused", *taught, *flags)) == 2
        assert reason in capsys.readouterr().err


def test_distillation_takes_part_and_leaves_the_norms_alone(data_dir, tmp_path, program, monkeypatch):
    calls = watch_teacher(monkeypatch)
    plain, taught = tmp_path / "plain", tmp_path / "taught"
    for run, part in ((plain, "0"), (taught, "0.5")):
        assert program("train", *train_args(data_dir, run, "--schedule.distill", part)) == 0
    assert calls == [4] * 10  # of two groups of four images the one that lacks channels
    ours, theirs = weights(taught), weights(plain)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


MIXED = ["--augment.mixup", "0.3", "--augment.cutmix", "1", "--schedule.accumulate", "2"]
OTHER_STEPS = ["--optim.optimizer", "adamw", "--optim.lr", "0.001", "--optim.ema", "0.8", "--optim.clip", "1"]


def test_killed_with_everything_on_and_resumed_ends_with_the_same_weights(data_dir, tmp_path):
    """Right after a checkpoint; tests/faults kills plain runs at any moment."""
    whole, torn, log, flags = tmp_path / "whole", tmp_path / "torn", tmp_path / "log", MIXED + OTHER_STEPS
    assert run_ranks(train_args(data_dir, whole, *flags), log) == [0], log.read_text()
    after_the_second = Fault(2, function="Checkpoints._prune")
    assert run_ranks(train_args(data_dir, torn, *flags), log, {0: after_the_second}) == [-9]
    assert (torn / "checkpoints" / "LAST").read_text() == "step-00000005"
    assert run_ranks(train_args(data_dir, torn, *flags, "--resume"), log) == [0], log.read_text()
    assert_nothing_lost(torn, whole)


def test_stop_file_saves_and_resume_goes_on(data_dir, tmp_path, program, capsys, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert program("train", *train_args(data_dir, whole)) == 0
    from training.loop import Trainer

    step = Trainer._train_step

    def stop_at_seven(self, batch):
        step(self, batch)
        if self.step == 7:
            (stopped / "STOP").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop_at_seven)
        assert program("train", *train_args(data_dir, stopped)) == 0
    assert "stopped at step 8" in capsys.readouterr().out
    assert not (stopped / "model.safetensors").exists()
    assert program("train", *train_args(data_dir, stopped, "--resume")) == 0
    assert not (stopped / "STOP").exists()
    assert_same_weights(whole, stopped)


def test_same_seed_same_weights_other_seed_others(data_dir, tmp_path, program):
    for name, seed in [("a", "0"), ("b", "0"), ("c", "1")]:
        assert program("train", *train_args(data_dir, tmp_path / name, "--seed", seed)) == 0
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["body.fc.weight"], weights(tmp_path / "c")["body.fc.weight"])


def test_the_next_command_scores_what_there_is(data_dir, finished_run, program, capsys):
    """Lists may have no test images; then val is scored."""
    for flags in ("", " --split val"):
        assert program("train", *train_args(data_dir, finished_run, "--resume")) == 0
        assert capsys.readouterr().out.endswith(f"next: python -m training.evaluate {finished_run}{flags}\n")
        (data_dir / "test.txt").unlink(missing_ok=True)


def test_finished_and_foreign_run_directories(data_dir, finished_run, program, capsys):
    before = (finished_run / "model.safetensors").stat().st_mtime_ns
    assert program("train", *train_args(data_dir, finished_run, "--resume")) == 0
    assert "is finished" in capsys.readouterr().out
    assert program("train", *train_args(data_dir, finished_run)) == 2
    assert "add --resume" in capsys.readouterr().err
    (finished_run / "model.safetensors").rename(finished_run / "kept")
    assert program("train", *train_args(data_dir, finished_run, "--resume", "--optim.lr", "9")) == 2
    assert "optim.lr: 0.02 → 9.0" in capsys.readouterr().err
    assert (finished_run / "kept").stat().st_mtime_ns == before


def test_resume_onto_other_data_is_refused(data_dir, tmp_path, program, capsys):
    run = tmp_path / "run"
    assert program("train", *train_args(data_dir, run)) == 0
    (run / "model.safetensors").unlink()
    write_images(data_dir, 40, split="train", seed=9)
    assert program("train", *train_args(data_dir, run, "--resume")) == 2
    assert "data fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: (d / "val.txt").unlink(), "no val.txt or validation.txt"),
        (lambda d: (d / "train.txt").write_text(""), "train.txt: the list is empty"),
        (lambda d: (d / "val.txt").write_text("images/val_0000.JPEG 3\n"), "val.txt:1: label 3 is out of range"),
        (lambda d: (d / "train.txt").write_text("../x.JPEG 0\n"), "train.txt:1: path '../x.JPEG' leaves"),
        (lambda d: [f.unlink() for f in (d / "images").glob("train*")], "40 of 40 images are unusable"),
    ],
)
def test_bad_data_is_one_line_and_leaves_nothing(data_dir, tmp_path, program, capsys, spoil, reason):
    spoil(data_dir)
    assert program("train", *train_args(data_dir, tmp_path / "run")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert reason in error
    assert not (tmp_path / "run").exists()


def test_a_few_bad_images_are_quarantined_and_written_down(data_dir, tmp_path, program):
    (data_dir / "images/train_0004.JPEG").write_bytes(b"")
    assert program("train", *train_args(data_dir, tmp_path / "run")) == 0
    assert (tmp_path / "run/quarantine-train.tsv").read_text().startswith("images/train_0004.JPEG\tzero bytes")


def test_wrong_number_of_ranks_is_refused(data_dir, tmp_path, program, capsys, monkeypatch):
    assert program("train", *train_args(data_dir, tmp_path / "run", "--processes", "2")) == 2
    assert "2 processes were asked for, but this one sees a world of 1" in capsys.readouterr().err


def test_batch_that_the_ranks_cannot_share(data_dir, tmp_path, program, capsys, monkeypatch):
    from training.runtime import Runtime

    start = Runtime.__init__

    def one_of_three(self, *args):
        start(self, *args)
        self.world = 3

    monkeypatch.setattr(Runtime, "__init__", one_of_three)
    monkeypatch.setattr(Runtime, "first", lambda self, work: work())
    assert program("train", *train_args(data_dir, tmp_path / "run")) == 2
    assert "--data.batch-size 8 does not divide by 3 processes; use 6" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_loss_that_is_no_number_stops_the_run(data_dir, tmp_path, program, capsys):
    args = train_args(data_dir, tmp_path / "run", "--optim.lr", "1e30", "--optim.warmup-epochs", "0")
    assert program("train", *args) == 1
    assert "start anew with --run-dir and an --optim.lr below" in capsys.readouterr().err
    assert not (tmp_path / "run/model.safetensors").exists()
    for saved in (tmp_path / "run").glob("checkpoints/step-*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(saved).values())


def test_second_process_in_a_run_directory_is_refused(data_dir, tmp_path, program, capsys):
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert program("train", *train_args(data_dir, run)) == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert program("train", *train_args(data_dir, run)) == 0


def test_resume_after_the_data_moved_and_a_torn_line(data_dir, tmp_path, program):
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert program("train", *train_args(data_dir, run)) == 0
    (run / "model.safetensors").rename(tmp_path / "wanted")
    data_dir.rename(moved)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 10, "tr')
    assert program("train", *train_args(moved, run, "--resume")) == 0
    assert (run / "model.safetensors").exists()
    assert program("evaluate", run) == 0  # the run knows where the data is now
    assert read_metrics(run)[-1]["step"] == 10


def test_evaluating_what_is_not_there(tmp_path, program, capsys, data_dir):
    assert program("evaluate", tmp_path / "nothing") == 2
    assert "not a run directory" in capsys.readouterr().err
    run = tmp_path / "run"
    assert program("train", *train_args(data_dir, run)) == 0
    (run / "model.safetensors").unlink()
    assert program("evaluate", run) == 2
    assert "finish the training first" in capsys.readouterr().err
    assert not list(run.glob("sweep*"))


def test_evaluating_on_other_classes_is_refused(finished_run, tmp_path, program, capsys):
    other = write_images(tmp_path / "other", 8, classes=4)
    write_images(other, 4, classes=4, split="test")
    assert program("evaluate", finished_run, "--data", other) == 2
    assert "was trained on 3 classes, but" in capsys.readouterr().err


def test_a_run_goes_on_from_loose_images_to_packed_ones(data_dir, tmp_path, program, monkeypatch, capsys):
    """Begun on the images themselves, continued in mid-epoch and evaluated on a packed folder: nothing differs."""
    from pipelines.packed import pack
    from training.loop import Trainer

    whole, moved, packed = tmp_path / "whole", tmp_path / "moved", tmp_path / "packed"
    dali = ("--data.loader", "dali")  # reads while it trains; a resident loader would have all in memory
    assert program("train", *train_args(data_dir, whole, *dali)) == 0
    step = Trainer._train_step

    def stop_at_six(self, batch):
        step(self, batch)
        if self.step == 6:
            (moved / "STOP").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop_at_six)
        assert program("train", *train_args(data_dir, moved, *dali)) == 0
    pack(data_dir, packed)
    shutil.rmtree(data_dir)
    assert program("train", *train_args(packed, moved, *dali, "--resume")) == 0
    assert_same_weights(whole, moved)
    for run in (whole, moved):
        assert program("evaluate", run, "--data", packed) == 0
    ours, theirs = (json.loads((run / "sweep-test.json").read_text()) for run in (whole, moved))
    assert ours["scores"] == theirs["scores"]
    assert ours["fingerprint"] == theirs["fingerprint"]


@pytest.mark.parametrize("images", [997])
def test_any_number_of_ranks_counts_the_same(data_dir, finished_run, tmp_path, program, images):
    """997 is a prime: no world size and no batch size divides it."""
    write_images(data_dir, images, split="test", seed=5)
    assert program("evaluate", finished_run) == 0
    record = finished_run / "sweep-test.json"
    whole = json.loads(record.read_text())
    alone = whole["scores"]
    assert {row["n"] for row in alone.values()} == {images}
    for ranks in (2, 3):
        record.unlink()
        args, log = [str(finished_run), "--processes", str(ranks)], tmp_path / f"log{ranks}"
        assert run_ranks(args, log, world=ranks, main=evaluate) == [0] * ranks, log.read_text()
        shared = json.loads(record.read_text())
        assert shared["processes"]["sweep"] == ranks
        for name, row in alone.items():
            assert {k: row[k] for k in ("n", "top1", "top5")} == {
                k: shared["scores"][name][k] for k in ("n", "top1", "top5")
            }
            assert shared["scores"][name]["nll"] == pytest.approx(row["nll"], rel=1e-6)
        for key in ("scores", "right", "labels", "predicted", "reliability"):  # to the last digit
            assert shared[key] == whole[key]


def add_up_gradients(_: list[str]) -> None:
    """On two ranks: gradients are the mean of both."""
    from training.runtime import Runtime

    runtime = Runtime(processes=2)
    model, _ = runtime.prepare(torch.nn.Linear(3, 1), None)
    torch.manual_seed(runtime.rank)
    inputs = torch.randn(4, 3)
    runtime.backward(model(inputs).mean())
    mean = runtime.sum(inputs.mean(0)) / 2
    assert torch.allclose(model.module.weight.grad[0], mean), (model.module.weight.grad, mean)
    runtime.close()


def test_gradients_are_means_over_the_ranks(tmp_path):
    log = tmp_path / "log"
    assert run_ranks([], log, world=2, main=add_up_gradients) == [0, 0], log.read_text()


def test_two_ranks_train_and_refuse_together(data_dir, tmp_path):
    run, log, other = tmp_path / "run", tmp_path / "log", tmp_path / "other"
    assert run_ranks(train_args(data_dir, run, "--processes", "2"), log, world=2) == [0, 0], log.read_text()
    assert "2 × cpu" in log.read_text()
    assert [row["step"] for row in read_metrics(run) if "val/top1/B" in row] == [5, 10]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    (data_dir / "train.txt").write_text("")
    assert run_ranks(train_args(data_dir, other), log, world=2) == [2, 1]
    assert "the list is empty" in log.read_text()
    assert not other.exists()


def train_and_delete(args: list[str]) -> None:
    """In the middle of the second epoch the file that is named first goes away."""
    from training.loop import Trainer

    step, file = Trainer._train_step, Path(args[0])

    def delete_after_six(self, batch):
        step(self, batch)
        if self.step == 6:
            file.unlink(missing_ok=True)

    Trainer._train_step = delete_after_six
    train(args[1:])


@pytest.mark.parametrize("loader", ["dali", pytest.param("portable", marks=pytest.mark.slow)])
def test_file_lost_while_running_stops_all_ranks_with_one_line(data_dir, tmp_path, loader):
    """Without word from the rank that fails, the other would wait for its gradients for half an hour."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    run, log = tmp_path / "run", tmp_path / "log"
    name = (data_dir / "train.txt").read_text().splitlines()[epoch_order(40, shuffle=True, seed=0, epoch=1)[-1]]
    lost = data_dir / name.split()[0]
    args = train_args(data_dir, run, "--data.loader", loader, "--data.prefetch", "1")
    # The last rank reads it. Both end by themselves; no launcher ends them.
    assert run_ranks([str(lost), *args], log, world=2, main=train_and_delete) == [1, 2]
    (said,) = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert str(lost) in said
    assert "--resume" in said
    assert (run / "checkpoints/LAST").read_text() == "step-00000009"


def test_tiny_settings_are_real_flags():
    from training.train import parse

    assert parse(["quickstart", *TINY_WORDS]).schedule.epochs == 2
