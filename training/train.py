"""Train a recipe: `python -m training.train RECIPE [--data.path DIR] [--run-dir DIR] [--resume] …`

One process, or several: `accelerate launch --config_file launch/cpu.yaml -m training.train RECIPE …`.
`python -m training.train --help` lists the recipes, `python -m training.train RECIPE --help` all settings.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from modeling.channels import ChannelSet
from modeling.resnet import ChannelNet
from modeling.zoo import build_model
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, Loader
from training.checkpoint import Checkpoints, save_weights
from training.cli import run_program
from training.config import (
    ConfigError,
    Model,
    Recipe,
    first_difference,
    load_recipe,
    save_recipe,
    to_dict,
)
from training.data import load_samples, make_loader, write_quarantine
from training.loop import Trainer
from training.monitor import Monitor
from training.optim import build_optimizer
from training.preemption import StopFile
from training.recipes import RECIPES
from training.records import commit, hardware
from training.runtime import Runtime


@dataclass(kw_only=True)
class Job(Recipe):
    """A recipe, and where and how this run of it goes."""

    run_dir: Path | None = None
    """Where everything is written; runs/RECIPE by default."""
    resume: bool = False
    """Go on from the run directory's last checkpoint, or start afresh where there is none."""
    processes: int | None = None
    """Refuse to start unless there are this many ranks."""


def main(job: Job) -> None:
    """Train to the end, or to a stop request, and leave weights in the run directory."""
    runtime = Runtime(job.schedule.precision, job.seed, job.processes)
    try:
        _train(job, runtime)
    finally:
        runtime.close()


def _train(job: Job, runtime: Runtime) -> None:
    run_dir = job.run_dir or Path("runs") / job.name
    recipe = Recipe(**{name: getattr(job, name) for name in Recipe.__dataclass_fields__})
    recipe = replace(recipe, data=replace(recipe.data, path=recipe.data.path.absolute()))
    if (run_dir / "model.safetensors").exists() and job.resume:
        _say(runtime, f"{run_dir} is finished; next: python -m training.evaluate {run_dir}")
        return
    train_samples, val_samples = (load_samples(recipe.data, split, runtime) for split in ("train", "val"))
    runtime.first(lambda: _open_run(run_dir, recipe, job.resume))
    model = new_model(recipe.model, train_samples.classes)
    checkpoints = Checkpoints(run_dir / "checkpoints", recipe.schedule.keep)
    saved = runtime.first(checkpoints.load) if job.resume else None
    if saved:
        model.load_state_dict(saved[0])
    model, optimizer = runtime.prepare(model, build_optimizer(model, recipe.optim))
    train, reason = make_loader(recipe.data, train_samples, runtime, training=True, seed=recipe.seed)
    val, _ = make_loader(recipe.data, val_samples, runtime, training=False)
    step = saved[1]["step"] if saved else 0
    monitor = Monitor(run_dir, runtime.is_main, step)
    stop = StopFile(run_dir, runtime)
    trainer = Trainer(recipe, runtime, model, optimizer, train, val, checkpoints, monitor, stop)
    if saved:
        trainer.load_state_dict(saved[1])
    if runtime.is_main:
        for split, samples in (("train", train_samples), ("val", val_samples)):
            write_quarantine(samples, run_dir, split)
        _introduce(run_dir, recipe, runtime, train, reason, trainer)
        if not step:
            monitor.text("recipe", (run_dir / "config.yaml").read_text())
            monitor.images("input/by_channel_set", next(iter(_preview(val))).images, recipe.model.channels)
    finished = trainer.fit()
    monitor.close()
    if not finished:
        _say(runtime, f"stopped at step {trainer.step}, saved; go on with: --run-dir {run_dir} --resume")
        return
    runtime.first(lambda: _finish(run_dir, recipe, runtime.unwrap(model), trainer, train_samples.fingerprint))
    _say(runtime, f"finished in {trainer.seconds_so_far:.0f} s; next: python -m training.evaluate {run_dir}")


def new_model(settings: Model, classes: int) -> ChannelNet:
    """The network that a recipe describes, with fresh weights."""
    fill = 0.0
    if settings.fill == "black":
        fill = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return build_model(
        settings.body,
        settings.stem,
        settings.vocabulary,
        classes,
        templates=settings.templates,
        fill=fill,
    )


def _open_run(run_dir: Path, recipe: Recipe, resume: bool) -> None:
    """Make the run directory, or check that the one there is this recipe's and is to be continued."""
    config = run_dir / "config.yaml"
    if config.exists():
        if not resume:
            raise ConfigError(f"{run_dir} holds a run already; add --resume, or choose another --run-dir")
        changed = first_difference(to_dict(load_recipe(config)), to_dict(recipe))
        if changed:
            raise ConfigError(f"{run_dir} was started with another recipe ({changed}); choose another --run-dir")
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, config)


def _preview(loader: Loader) -> Loader:
    """A loader of the same images that leaves the given one where it stands."""
    return type(loader)(loader.samples, loader.view, loader.batch_size, loader.device, threads=loader.threads)


def _introduce(
    run_dir: Path, recipe: Recipe, runtime: Runtime, train: Loader, reason: str, trainer: Trainer
) -> None:
    where = f"{runtime.world} × {runtime.device.type}, {runtime.precision}"
    sets = " ".join(map(str, ChannelSet.all_of(recipe.model.channels)))
    print(
        f"{recipe.name}: {recipe.model.stem} {recipe.model.body} on {where}; channel sets {sets}\n"
        f"  {len(train.samples)} images, {train.samples.classes} classes, {reason}\n"
        f"  {trainer.steps} steps, from step {trainer.step}; everything goes to {run_dir}\n"
        f"  watch: tensorboard --logdir {run_dir} --host 127.0.0.1",
        flush=True,
    )


def _finish(run_dir: Path, recipe: Recipe, model: ChannelNet, trainer: Trainer, fingerprint: str) -> None:
    metadata = {
        "recipe": (run_dir / "config.yaml").read_text(),
        "vocabulary": recipe.model.vocabulary,
        "classes": str(trainer.train.samples.classes),
        "train_fingerprint": fingerprint,
        "seconds": f"{trainer.seconds_so_far:.1f}",
        "processes": str(trainer.runtime.world),
        "precision": trainer.runtime.precision,
        "commit": commit(),
        "hardware": hardware(),
    }
    save_weights(run_dir / "model.safetensors", model.state_dict(), metadata)


def _say(runtime: Runtime, line: str) -> None:
    if runtime.is_main:
        print(line, flush=True)


def parse(args: list[str] | None = None) -> Job:
    """The job that the command line describes."""
    jobs = {
        key: (text, Job(**{name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}))
        for key, (text, recipe) in RECIPES.items()
    }
    return tyro.extras.overridable_config_cli(jobs, args=args, prog="python -m training.train")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
