import copy
import math
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from modeling.zoo import build_model
from pipelines.errors import DataError
from training.config import (
    Augment,
    ConfigError,
    Data,
    Model,
    Optim,
    Recipe,
    Schedule,
)
from training.optim import build_optimizer, learning_rate
from training.recipe_file import first_difference, load_recipe, save_recipe, to_dict
from training.recipes import RECIPES
from training.runtime import resolve_precision
from training.subsets import channel_sets, trained_sets
from training.train import parse


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_being_written_and_read(name, tmp_path):
    recipe = RECIPES[name][1]
    save_recipe(recipe, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == recipe
    assert recipe.name == name


@pytest.mark.parametrize("name", [name for name in RECIPES if f"{name}-naive" in RECIPES])
def test_the_control_differs_in_the_stem_and_its_channel_sets_only(name):
    ours, naive = (to_dict(RECIPES[key][1]) for key in (name, f"{name}-naive"))
    for recipe in (ours, naive):
        del recipe["name"], recipe["model"]["stem"], recipe["schedule"]["channel_sets"]
    assert ours == naive


@pytest.mark.parametrize("text", ["model: {stem: any-channel, wheels: 4}", "[1]", "seed: [", "data: 3", ""])
def test_a_file_that_is_no_recipe(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"config\.yaml: not a recipe"):
        load_recipe(tmp_path / "config.yaml")


def test_missing_recipe_names_the_run_directory(tmp_path):
    with pytest.raises(DataError, match="not a run directory"):
        load_recipe(tmp_path / "config.yaml")


def test_first_difference():
    a = Recipe()
    assert first_difference(to_dict(a), to_dict(Recipe())) is None
    b = replace(a, data=replace(a.data, size=84))
    assert first_difference(to_dict(a), to_dict(b)) == "data.size: 64 → 84"


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: Data(scale=0), "--data.scale"),
        (lambda: Data(size=8), "--data.size"),
        (lambda: Data(labels="x"), "--data.labels"),
        (lambda: Data(batch_size=1), "--data.batch-size"),
        (lambda: Data(max_bad=7), "--data.max-bad"),
        (lambda: Model(templates=0), "--model.templates"),
        (lambda: Optim(momentum=0), "--optim.momentum"),
        (lambda: Optim(lr=0), "--optim.lr"),
        (lambda: Optim(clip=0), "--optim.clip 0 must be above 0"),
        (lambda: Optim(ema=1), "--optim.ema 1 must lie in"),
        (lambda: Augment(mixup=-1), "--augment.mixup -1 must not be negative"),
        (lambda: Schedule(accumulate=0), "--schedule.accumulate 0 must be at least 1"),
        (lambda: Schedule(picture_sweeps=-1), "--schedule.picture-sweeps -1 must not be negative"),
        (lambda: Schedule(profile="100"), "--schedule.profile 100 must be FIRST:LAST"),
        (lambda: Schedule(profile="5:4"), "--schedule.profile 5:4 must be FIRST:LAST"),
        (lambda: Optim(label_smoothing=2), "--optim.label-smoothing"),
        (lambda: Recipe(seed=-1), "--seed"),
        (lambda: Schedule(epochs=0), "--schedule.epochs"),
        (lambda: Schedule(groups=1), "--schedule.groups"),
        (lambda: Schedule(eval_epochs=0), "--schedule.eval-epochs"),
        (
            lambda: Model(vocabulary="RGBN"),
            "--model.vocabulary RGBN: images give no channel 'N'; name R, G, B, or",
        ),
        (lambda: Model(vocabulary="450+900"), "--model.vocabulary 450.900: images give no channel '900'"),
        (lambda: Model(vocabulary="RGBR"), "--model.vocabulary RGBR: channel given twice"),
        (lambda: Model(stem="slices", embedding="wavelengths"), "--model.embedding wavelengths is for"),
    ],
)
def test_impossible_settings_name_their_flag(make, flag):
    with pytest.raises((ConfigError, DataError), match=flag):
        make()


def test_flags_override_a_recipe():
    job = parse(["quickstart", "--data.size", "64", "--optim.lr", "0.3", "--run-dir", "somewhere", "--resume"])
    assert (job.data.size, job.optim.lr, str(job.run_dir), job.resume) == (64, 0.3, "somewhere", True)
    assert job.model == RECIPES["quickstart"][1].model


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        resolve_precision("fp16", cpu=True)
    assert resolve_precision("fp32", cpu=True) == "fp32"
    assert resolve_precision("auto", cpu=True) in ("bf16", "fp32")


def test_learning_rate_rises_then_falls_to_nothing():
    settings = Optim(lr=0.5, warmup_epochs=2)
    rates = [learning_rate(settings, step, 100, 10) for step in range(100)]
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert max(rates) == rates[20] == 0.5
    assert 0 < rates[0] < 0.05
    assert 0 < rates[-1] < 0.001
    assert rates[60] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_runs_shorter_than_the_warmup():
    rates = [learning_rate(Optim(lr=1.0, warmup_epochs=5), step, 3, 3) for step in range(3)]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0


def test_weight_decay_is_for_weights_only():
    model = build_model("resnet18", "any-channel", "RGB", 4)
    layers, tables, free = build_optimizer(model, Optim()).param_groups
    assert [group["weight_decay"] for group in (layers, tables, free)] == [5e-4, 5e-4, 0.0]
    decayed_ids = {id(p) for group in (layers, tables) for p in group["params"]}
    free_ids = {id(p) for p in free["params"]}
    assert len(decayed_ids) + len(free_ids) == len(list(model.parameters()))
    assert not decayed_ids & free_ids
    conv = model.stem.conv
    assert {id(conv.templates), id(conv.mixing), id(model.body.fc.weight)} <= decayed_ids
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {
        id(conv.embedding),
        id(model.stem.norm.weight),
        id(model.body.fc.bias),
        id(norms[0].weight),
    } <= free_ids


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "muon"])
def test_every_optimizer_lowers_a_loss(name):
    torch.manual_seed(0)
    model = build_model("resnet10", "any-channel", "RGB", 4).train()
    optimizer = build_optimizer(model, Optim(optimizer=name, lr=0.005))
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_do_not_depend_on_how_tensors_lie_in_memory(name):
    plain = nn.Conv2d(6, 8, 3)
    laid_out = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    settings = Optim(optimizer=name, lr=0.1, weight_decay=0.01)
    kind = {"sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True), "adamw": torch.optim.AdamW}[name]
    ours = build_optimizer(laid_out, settings)
    groups = [{"params": [plain.weight], "weight_decay": 0.01}, {"params": [plain.bias], "weight_decay": 0.0}]
    wanted = kind(groups, lr=0.1)
    for step in range(4):
        plain.weight.grad, plain.bias.grad = torch.randn_like(plain.weight), torch.randn_like(plain.bias)
        laid_out.weight.grad, laid_out.bias.grad = plain.weight.grad.clone(), plain.bias.grad.clone()
        if step % 2:
            laid_out.weight.grad = laid_out.weight.grad.contiguous(memory_format=torch.channels_last)
        if step == 2:  # as from a checkpoint
            state = ours.state_dict()
            state["state"] = {
                i: {key: value.clone(memory_format=torch.contiguous_format) for key, value in moments.items()}
                for i, moments in state["state"].items()
            }
            ours.load_state_dict(state)
        wanted.step()
        ours.step()
    assert torch.allclose(laid_out.weight, plain.weight, atol=1e-5)
    assert torch.allclose(laid_out.bias, plain.bias, atol=1e-5)


def test_muon_is_for_the_weights_of_layers():
    model = build_model("resnet10", "any-channel", "RGB", 4)
    layers, *rest = build_optimizer(model, Optim(optimizer="muon")).param_groups
    assert not layers.get("use_fallback")
    assert all(group["use_fallback"] for group in rest)
    assert all(parameter.dim() in (2, 4) for parameter in layers["params"])
    assert id(model.stem.conv.templates) in {id(p) for p in rest[0]["params"]}


@pytest.mark.parametrize(("decay", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_decays(decay, half):
    settings = Optim(lr=1.0, warmup_epochs=0, decay=decay)
    rates = [learning_rate(settings, step, 100, 10) for step in range(101)]
    assert rates[0] == 1
    assert rates[50] == pytest.approx(half)
    assert rates[100] == pytest.approx(1.0 if decay == "constant" else 0.0)


def steps_of(strategy, **options):
    recipe = replace(Recipe(), schedule=Schedule(channel_sets=strategy, **options))
    steps = [channel_sets(recipe, step) for step in range(300)]
    assert steps == [channel_sets(recipe, step) for step in range(300)]
    return steps, recipe


def test_sandwich_has_the_largest_and_one_of_the_smallest():
    steps, recipe = steps_of("sandwich", groups=4)
    assert {len(sets) for sets in steps} == {4}
    assert {(len(sets[0]), len(sets[1])) for sets in steps} == {(3, 1)}
    assert {str(chosen) for sets in steps for chosen in sets[2:]} == {"RG", "RB", "GB", "R", "G", "B"}
    assert steps != [channel_sets(replace(recipe, seed=1), step) for step in range(300)]


@pytest.mark.parametrize(("strategy", "groups"), [("sampled", 1), ("mixed", 4)])
def test_sampling_draws_a_size_first(strategy, groups):
    steps, _ = steps_of(strategy, groups=4)
    assert {len(sets) for sets in steps} == {groups}
    sizes = [len(chosen) for sets in steps for chosen in sets]
    for size in (1, 2, 3):  # a third each, though there is but one set of size 3
        assert abs(sizes.count(size) / len(sizes) - 1 / 3) < 0.1
    assert {str(chosen) for sets in steps for chosen in sets} == {"RGB", "RG", "RB", "GB", "R", "G", "B"}


@pytest.mark.parametrize(("strategy", "wanted"), [("full", "RGB"), ("GB", "GB"), ("B", "B")])
def test_one_set_all_the_time(strategy, wanted):
    assert {str(chosen) for sets in steps_of(strategy)[0] for chosen in sets} == {wanted}


def test_listed_sets_take_turns():
    steps, recipe = steps_of("RG B RGB", groups=2)
    assert {len(sets) for sets in steps} == {2}
    assert all(len(set(sets)) == 2 for sets in steps)
    counts = Counter(str(chosen) for sets in steps for chosen in sets)
    assert counts.keys() == {"RG", "B", "RGB"}
    assert min(counts.values()) > 150  # 200 each on average
    assert list(map(str, trained_sets(recipe))) == ["RG", "B", "RGB"]


def test_what_each_strategy_trains_on():
    every = ["RGB", "RG", "RB", "GB", "R", "G", "B"]
    for strategy, wanted in {"sandwich": every, "sampled": every, "full": ["RGB"], "GB": ["GB"]}.items():
        assert list(map(str, trained_sets(steps_of(strategy)[1]))) == wanted


@pytest.mark.parametrize("strategy", ["RG B RG", " "])
def test_each_listed_set_is_named_once(strategy):
    with pytest.raises(ConfigError, match="name one set or more, each of them once"):
        Recipe(schedule=Schedule(channel_sets=strategy))


@pytest.mark.parametrize("strategy", ["sandwitch", "RGX", "RR", "RG X"])
def test_neither_a_strategy_nor_a_set(strategy):
    with pytest.raises(ConfigError, match=r"--schedule\.channel-sets .*mixed, sampled, full nor channel sets"):
        Recipe(schedule=Schedule(channel_sets=strategy))


@pytest.mark.parametrize(
    ("model", "schedule", "reason"),
    [
        ({"stem": "table", "conditioning": False}, {}, "--model.no-conditioning is for --model.stem any-channel"),
        ({"stem": "slices", "gain": "none"}, {}, "--model.gain none is for --model.stem any-channel"),
        ({"plain_channels": "RG"}, {}, "--model.plain-channels is for --model.stem plain"),
        ({"stem": "plain", "plain_channels": "RX"}, {}, "--model.plain-channels RX: unknown channel 'X'"),
        ({"stem": "plain", "plain_channels": "RG"}, {}, "takes RG alone; add --schedule.channel-sets RG"),
        ({"stem": "plain"}, {"channel_sets": "RG"}, "takes RGB alone"),
        ({"pooling": "mean"}, {}, "--model.pooling is for --model.body strict, matched, rrdb"),
        ({"body": "graph", "growth": 8}, {}, "--model.growth is for --model.body rrdb, rrdb-attention, not graph"),
        ({"body": "strict", "kernel_size": 4}, {}, "--model.kernel-size 4 must be odd"),
        ({"body": "strict", "width": 0}, {}, "--model.width 0 must be above 0"),
        ({}, {"anneal": 0}, "--schedule.anneal 0 must lie in (0, 1]"),
        ({}, {"distill": 1.5}, "--schedule.distill 1.5 must lie in"),
        ({}, {"distill": 1, "temperature": 0}, "--schedule.temperature 0 must be above 0"),
        ({}, {"teacher": Path("run")}, "--schedule.teacher run teaches nothing"),
        ({}, {"temperature": 4.0}, "--schedule.temperature 4.0 does nothing without"),
        ({}, {"distill": 0.5, "channel_sets": "full"}, "nothing to teach itself"),
        ({}, {"distill": 0.5, "channel_sets": "RGB"}, "nothing to teach itself"),
        ({}, {"distill": 0.5, "channel_sets": "RG B"}, "never shows it; add RGB to them"),
    ],
)
def test_rivals_refuse_what_does_not_concern_them(model, schedule, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        Recipe(model=Model(**model), schedule=Schedule(**schedule))


def test_an_expert_is_a_plain_stem_on_one_set():
    Recipe(model=Model(stem="plain", plain_channels="RG"), schedule=Schedule(channel_sets="RG"))
    Recipe(model=Model(stem="plain"), schedule=Schedule(channel_sets="full"))


def test_torch_is_seeded_by_the_recipe(fresh_accelerate):
    from training.runtime import Runtime

    Runtime(seed=5)
    first = torch.rand(3)
    Runtime(seed=5)
    assert torch.equal(first, torch.rand(3))
