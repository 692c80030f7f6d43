"""What people watch: curves that survive a resume, the table of runs, pictures, and the profiler's window."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from images import write_images
from processes import board_steps, run_ranks, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer
from tiny import train_args

from modeling.channels import ChannelSet
from modeling.norms import affine
from training.board import Board, kernel_of, some_of
from training.build import new_model
from training.config import Model, Recipe, Schedule
from training.drawings import RIGHT, WRONG, _font, answers, confusion_picture, kernels, sized
from training.evaluation.metrics import confusion
from training.monitor import LAYOUT, Monitor, read_metrics
from training.recipe_file import settings_that_matter, to_dict

RGB = ("R", "G", "B")
NAMES = ["cat", "a dog of no particular breed whatsoever", "猫", "3", "4", "five"]
BANDS = ("450", "490", "530", "570", "610", "650")


def train_and_ask(args: list[str]) -> None:
    """After step 7 somebody asks for a profile."""
    from training.loop import Trainer

    step = Trainer._train_step

    def ask_at_seven(self, batch):
        step(self, batch)
        if self.step == 7:
            (self.monitor.run_dir / "PROFILE").touch()

    Trainer._train_step = ask_at_seven
    train(args)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    """A finished run of ten steps, profiled from the first to the third, and again when step 8 is done."""
    folder = tmp_path_factory.mktemp("watched")
    for seed, (split, count) in enumerate([("train", 40), ("val", 13), ("test", 13)]):
        write_images(folder / "data", count, split=split, seed=seed)
    args, log = train_args(folder / "data", folder / "run", "--schedule.profile", "1:3"), folder / "log"
    assert run_ranks(args, log, main=train_and_ask) == [0], log.read_text()
    assert "recorded steps 1 to 3" in log.read_text()
    return folder / "run"


def board_of(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()


def test_a_run_that_goes_on_has_every_step_once(tmp_path, monkeypatch):
    """Killed after step 5, resumed from step 3; then begun anew, since no checkpoint was left."""
    # Three processes, in other seconds; here all in one, whose files sort by a number: 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    pixels = np.zeros((4, 4, 3), np.uint8)
    killed = Monitor(tmp_path, active=True)
    killed.begin("name: x", {"optim.lr": 0.1})
    for step in range(1, 6):
        killed.scalars(step, {"train/loss": float(step)})
        killed.image("pictures/x", pixels, step)
    killed.flush()  # and no more
    resumed = Monitor(tmp_path, active=True, step=3)
    for step in range(4, 8):
        resumed.scalars(step, {"train/loss": 10.0 * step})
        resumed.image("pictures/x", pixels, step)
    resumed.close()
    assert board_steps(tmp_path) == {"train/loss": [1, 2, 3, 4, 5, 6, 7], "pictures/x": [1, 2, 3, 4, 5, 6, 7]}
    assert [event.value for event in board_of(tmp_path).Scalars("train/loss")] == [1, 2, 3, 40, 50, 60, 70]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    anew = Monitor(tmp_path, active=True)
    anew.scalars(1, {"train/loss": 7.0})
    anew.close()
    assert board_steps(tmp_path)["train/loss"] == [1]


def test_what_a_run_says_of_itself(watched):
    board = board_of(watched)
    (text,) = board.Tensors("recipe/text_summary")
    recipe = (watched / "config.yaml").read_text()
    assert text.tensor_proto.string_val[0].decode() == f"```yaml\n{recipe}\n```"
    (chart,) = board.Tensors("custom_scalars__config__")
    layout = Layout.FromString(chart.tensor_proto.string_val[0])
    shown = {c.title: list(c.multiline.tag) for category in layout.category for c in category.chart}
    assert shown == {title: tags for charts in LAYOUT.values() for title, (_, tags) in charts.items()}
    scalars = board.Tags()["scalars"]
    by_chart = [[tag for tag in scalars if re.match(pattern, tag)] for (pattern,) in shown.values()]
    assert sorted(tag for tags in by_chart for tag in tags) == sorted(scalars)  # each curve in one chart
    assert by_chart[0] == [f"val/top1/{name}" for name in ("RGB", "RG", "RB", "GB", "R", "G", "B")]
    last = [board.Scalars(tag)[-1].value for tag in by_chart[0]]
    assert [board.Scalars(f"accuracy/{name}")[-1].value for name in ("best_set", "worst_set")] == [
        max(last),
        min(last),
    ]
    assert 0.1 < board.Scalars("memory/resident_gib")[-1].value < 64


def test_a_run_is_one_row_of_the_table_of_runs(watched):
    """All in the run's own event file, and no list of columns that would hide those of other runs."""
    assert [path.suffix for path in (watched / "tensorboard").iterdir()] == [".0"]
    rows = EventAccumulator(str(watched / "tensorboard")).Reload().summary_metadata
    rows = {
        tag: HParamsPluginData.FromString(row.plugin_data.content) for tag, row in rows.items() if "_hpar" in tag
    }
    assert set(rows) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    settings = rows["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["optim.lr"].number_value == 0.02
    assert settings["model.body"].string_value == "resnet10"
    assert settings["model.conditioning"].string_value == "True"
    assert settings["data.labels"].string_value == "None"
    assert not {"data.path", "schedule.log_steps", "name"} & set(settings)  # which change no result
    assert rows["_hparams_/session_end_info"].session_end_info.status == STATUS_SUCCESS


def test_settings_that_matter_are_those_that_resuming_refuses_to_change():
    settings = settings_that_matter(to_dict(Recipe()))
    assert settings["schedule.epochs"] == 30
    assert settings["seed"] == 0
    assert "schedule.profile" not in settings


@pytest.mark.parametrize(
    ("epochs", "every", "sweeps", "wanted"),
    [(24, 4, 3, [4, 16, 24]), (12, 5, 1, [5, 10, 12]), (12, 5, 9, [5, 12]), (3, 5, 2, [3]), (24, 4, 0, [])],
)
def test_pictures_come_with_the_first_sweep_every_so_many_and_the_last(tmp_path, epochs, every, sweeps, wanted):
    recipe = Recipe(schedule=Schedule(epochs=epochs, eval_epochs=every, picture_sweeps=sweeps))
    board = Board(recipe, [0] * 9, Monitor(tmp_path, active=False))
    swept = [epoch for epoch in range(1, epochs + 1) if epoch % every == 0 or epoch == epochs]
    assert [epoch for epoch in swept if board.wants_pictures(epoch)] == wanted


def test_confusion_counts_each_image_once_in_its_row():
    labels, predicted = torch.tensor([0, 0, 0, 2, 2, 1]), torch.tensor([0, 1, 1, 2, 0, 1])
    counts = confusion(labels, predicted, 4)
    seen = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    assert {(i, j): int(counts[i, j]) for i, j in counts.nonzero().tolist()} == seen
    assert counts.shape == (4, 4)


@pytest.mark.parametrize("classes", [3, 12, 20, 100, 1000])
def test_matrix_is_darker_where_more_images_are(classes):
    """Half of class 0 is taken for class 1; all of class 1 is right; nobody has seen class 2."""
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    counts[0, :2], counts[1, 1] = torch.tensor([4, 6]), 10
    picture = confusion_picture(counts, "RG", [f"a class of the name {i}" for i in range(classes)])
    assert picture.dtype == np.uint8
    assert max(picture.shape) < 1200
    assert len(picture) > 300
    cell, top = max(1, (300 if classes < 50 else 480) // classes), 48
    left = int((picture[top + 1] == 0x7F).all(-1).argmax()) + 1  # behind the matrix's outline
    corners = picture[top : top + 3 * cell : cell, left : left + 3 * cell : cell].astype(int).sum(-1)
    assert corners[1, 1] < corners[0, 1] < corners[0, 0] < 3 * 255
    assert corners[1, 0] == corners[2, 1] == 3 * 255


def near(picture: np.ndarray, ink: str) -> bool:
    """Whether a picture holds a colour; the edges of letters are smoothed."""
    rgb = [int(ink[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(picture.astype(int) - rgb).sum(-1) < 8).any())


@pytest.mark.parametrize("side", [32, 48, 84, 224])
def test_answers_say_right_or_wrong_by_word_and_colour(side):
    sets = ChannelSet.all_of(RGB)
    images = torch.zeros(3, 3, side, side)
    guesses = {chosen: [0, 1, 2] for chosen in sets} | {sets[-1]: [0, 5, 5]}
    picture = answers(images, [0, 1, 2], guesses, RGB, NAMES)
    columns = np.array_split(picture[:, 104:], len(sets), axis=1)
    for chosen, column in zip(sets, columns, strict=True):
        inks = {ink: near(column, ink) for ink in (RIGHT, WRONG)}
        assert inks == {RIGHT: True, WRONG: chosen == sets[-1]}
    assert picture.size < 3 * 1000 * 1000


def test_classes_go_by_their_names_cut_where_there_is_no_room():
    sets, images = ChannelSet.all_of(RGB)[:1], torch.zeros(1, 3, 80, 80)
    names = ["dog", "dig", "d" * 80, "d" * 90]
    pictures = {name: answers(images, [0], {sets[0]: [1]}, RGB, ["cat", name]) for name in names}
    assert not np.array_equal(pictures["dog"], pictures["dig"])
    assert np.array_equal(pictures["d" * 80], pictures["d" * 90])
    assert len({picture.shape for picture in pictures.values()}) == 1
    counts = torch.eye(3, dtype=torch.int64)
    rows = [confusion_picture(counts, "", [name, "x", "y"])[:, :100] for name in ("0", "dog", "d" * 80)]
    assert (rows[0] != rows[1]).any(), "a name stands where it is not just the number"
    assert (rows[2][:, 0] == 255).all(), "no name leaves the picture"


def inked(picture: np.ndarray) -> np.ndarray:
    """Which rows of a picture hold something."""
    return (picture < 255).any((1, 2))


def test_long_names_are_written_out_where_there_is_room():
    """Words go to more lines beside and below an image, and to more room beside a matrix."""
    sets, images = ChannelSet.all_of(RGB)[:1], torch.ones(1, 3, 80, 80) * 10
    short = answers(images, [0], {sets[0]: [1]}, RGB, ["cat", "dog"])
    long = answers(images, [0], {sets[0]: [1]}, RGB, ["cat", "African hunting dog"])
    assert len(long) == len(short) + 16
    beside = [
        answers(images, [0], {sets[0]: [1]}, RGB, [name, "dog"])[:, :104]
        for name in ("cat", "African hunting cat")
    ]
    assert inked(beside[1][20:]).sum() > 1.5 * inked(beside[0][20:]).sum()
    counts = torch.eye(2, dtype=torch.int64)
    names = ["cat", "African hunting dog", "a" * 80, "a" * 90]
    widths = [confusion_picture(counts, "", [name, "x"]).shape[1] for name in names]
    assert widths[0] < widths[1] < widths[2] == widths[3] < 600


def test_letters_beyond_ascii_are_drawn():
    """A font that lacks a letter draws a box, the same for each."""
    drawn = {letter: _font().getmask(letter) for letter in "äßéñžЖλ"}
    assert len({(bytes(mask), mask.size) for mask in drawn.values()}) == len(drawn)


@pytest.mark.parametrize("side", [32, 64, 80, 159, 160, 224, 500])
def test_images_are_shown_neither_tiny_nor_at_full_size(side):
    image = torch.zeros(1, 1, side, side)
    image[..., : side // 2] = 1.0
    shown = sized(image)
    assert 80 <= shown.shape[-1] == shown.shape[-2] < 160
    assert shown.mean().item() == pytest.approx(image.mean().item(), abs=0.02)


def test_answers_by_bands_have_room_for_their_names():
    sets = some_of(ChannelSet.all_of(BANDS))
    assert len(sets) == 8
    assert (len(sets[0]), len(sets[-1])) == (6, 1)
    picture = answers(torch.randn(2, 6, 64, 64), [0, 1], {chosen: [0, 0] for chosen in sets}, BANDS, NAMES)
    one_line = answers(torch.randn(2, 6, 64, 64), [0, 1], {sets[-1]: [0, 0]}, BANDS, NAMES)
    assert len(picture) == len(one_line) + 16


def test_kernels_show_no_weight_as_gray_and_each_channel_in_its_place():
    kernel = torch.zeros(40, 2, 5, 5)
    kernel[0, 1] = 1.0  # the first filter sees blue alone
    picture = kernels({ChannelSet(("R", "B")): kernel}, RGB)
    first, second = picture[20 + 10, 2 + 10], picture[20 + 10, 2 + 22 + 10]
    assert first.tolist() == [128, 128, 255]
    assert second.tolist() == [128, 128, 128]
    rows = [
        len(kernels({chosen: torch.randn(40, len(chosen), 5, 5)}, BANDS))
        for chosen in map(ChannelSet, (BANDS[:1], BANDS[:3]))
    ]
    assert rows[1] - rows[0] == 2 * 24  # a row for each channel


@pytest.mark.parametrize(
    "stem", ["any-channel", "zero-fill", "repeat", "table", "slices", "depthwise", "hypernet"]
)
def test_kernels_are_those_that_the_plain_network_has(stem):
    network = new_model(Model(stem=stem, body="resnet10"), 3)
    for chosen in network.stem.sets():
        plain = network.materialize(chosen).stem
        weight = plain[-1].weight[:, chosen.indices(RGB)] if stem == "zero-fill" else plain.weight
        scale, _ = affine(network.stem.norm.ordinary(chosen))
        assert torch.allclose(kernel_of(network.stem, chosen) * scale.view(-1, 1, 1, 1), weight, atol=1e-6)


def test_kernels_that_are_mixed_for_each_image_are_shown_as_their_mean():
    stem = new_model(Model(stem="attention", body="resnet10"), 3).stem
    chosen = ChannelSet(("R", "G"))
    assert torch.equal(kernel_of(stem, chosen), stem.kernel(chosen).mean(0))


def steps_in(trace: Path) -> int:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sum(event.get("name", "").startswith("Optimizer.step#") for event in events)


def test_profiler_records_named_steps_and_those_asked_for_meanwhile(watched):
    traces = {trace.name: steps_in(trace) for trace in sorted((watched / "profile").glob("*.gz"))}
    assert traces == {
        "step-00000001-00000003.trace.json.gz": 3,
        "step-00000009-00000010.trace.json.gz": 2,  # where the training ended
    }
    assert not (watched / "PROFILE").exists()
    assert "convolution" in (watched / "profile/step-00000001-00000003.txt").read_text()
    assert not [path for path in (watched / "profile").iterdir() if path.name.startswith(".")]
