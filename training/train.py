"""Train a recipe: `python -m training.train RECIPE [--data.path DIR] [--run-dir DIR] [--resume] …`

One process, or several: `accelerate launch --config_file launch/cpu.yaml -m training.train RECIPE …`.
`python -m training.train --help` lists the recipes, `python -m training.train RECIPE --help` all settings.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from modeling.channels import ChannelSet
from pipelines.batch import Loader
from pipelines.integrity import Samples
from training.build import first_images, load_samples, make_loader, new_model
from training.checkpoint import Checkpoints, save_weights
from training.cli import run_program
from training.config import ConfigError, Recipe, first_difference, load_recipe, save_recipe, to_dict
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
    recipe = _recipe(job)
    if job.resume and (run_dir / "model.safetensors").exists():
        _say(runtime, f"{run_dir} is finished; next: python -m training.evaluate {run_dir}")
        return
    samples = {split: load_samples(recipe.data, split, runtime) for split in ("train", "val")}
    train, reason = make_loader(recipe.data, samples["train"], runtime, training=True, seed=recipe.seed)
    val, _ = make_loader(recipe.data, samples["val"], runtime, training=False)
    runtime.first(lambda: _open_run(run_dir, recipe, job.resume, samples))
    trainer = _build_trainer(run_dir, recipe, runtime, train, val, job.resume)
    _say(runtime, _introduction(run_dir, trainer, reason))
    finished = trainer.fit()
    trainer.monitor.close()
    if not finished:
        _say(runtime, f"stopped at step {trainer.step}, saved; go on with: --run-dir {run_dir} --resume")
        return
    runtime.first(lambda: _write_weights(run_dir, trainer))
    _say(runtime, f"finished in {trainer.seconds_so_far:.0f} s; next: python -m training.evaluate {run_dir}")


def _recipe(job: Job) -> Recipe:
    """The job's recipe alone, with a data path that holds from any folder."""
    recipe = Recipe(**{name: getattr(job, name) for name in Recipe.__dataclass_fields__})
    return replace(recipe, data=replace(recipe.data, path=recipe.data.path.absolute()))


def _build_trainer(
    run_dir: Path, recipe: Recipe, runtime: Runtime, train: Loader, val: Loader, resume: bool
) -> Trainer:
    """All parts of a run, standing where its last checkpoint stood."""
    model = new_model(recipe.model, train.samples.classes)
    checkpoints = Checkpoints(run_dir / "checkpoints", recipe.schedule.keep)
    weights, state = (runtime.first(checkpoints.load) if resume else None) or (None, None)
    if weights:
        model.load_state_dict(weights)
    model, optimizer = runtime.prepare(model, build_optimizer(model, recipe.optim))
    monitor = Monitor(run_dir, runtime.is_main, state["step"] if state else 0)
    stop = StopFile(run_dir, runtime)
    trainer = Trainer(recipe, runtime, model, optimizer, train, val, checkpoints, monitor, stop)
    if state:
        trainer.load_state_dict(state)
    elif runtime.is_main:
        monitor.text("recipe", (run_dir / "config.yaml").read_text())
        monitor.images("input/by_channel_set", first_images(recipe.data, val.samples), recipe.model.channels)
    return trainer


def _open_run(run_dir: Path, recipe: Recipe, resume: bool, samples: dict[str, Samples]) -> None:
    """Make the run directory, or check that the one there is this recipe's and is to be continued."""
    config = run_dir / "config.yaml"
    if not config.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, config)
    elif not resume:
        raise ConfigError(f"{run_dir} holds a run already; add --resume, or choose another --run-dir")
    else:
        changed = first_difference(to_dict(load_recipe(config)), to_dict(recipe))
        if changed:
            raise ConfigError(f"{run_dir} was started with another recipe ({changed}); choose another --run-dir")
    for split, scanned in samples.items():
        if scanned.quarantined:
            scanned.write_quarantine(run_dir / f"quarantine-{split}.tsv")


def _introduction(run_dir: Path, trainer: Trainer, reason: str) -> str:
    recipe, runtime, samples = trainer.recipe, trainer.runtime, trainer.train.samples
    sets = " ".join(map(str, ChannelSet.all_of(recipe.model.channels)))
    return (
        f"{recipe.name}: {recipe.model.stem} {recipe.model.body} on {runtime.world} × {runtime.device.type}, "
        f"{runtime.precision}; channel sets {sets}\n"
        f"  {len(samples)} images, {samples.classes} classes, {reason}\n"
        f"  {trainer.steps} steps, from step {trainer.step}; everything goes to {run_dir}\n"
        f"  watch: tensorboard --logdir {run_dir} --host 127.0.0.1"
    )


def _write_weights(run_dir: Path, trainer: Trainer) -> None:
    """Leave `model.safetensors`, which marks the run as finished, with what a record needs to know."""
    samples = trainer.train.samples
    metadata = {
        "recipe": (run_dir / "config.yaml").read_text(),
        "vocabulary": trainer.recipe.model.vocabulary,
        "classes": str(samples.classes),
        "train_fingerprint": samples.fingerprint,
        "seconds": f"{trainer.seconds_so_far:.1f}",
        "processes": str(trainer.runtime.world),
        "precision": trainer.runtime.precision,
        "commit": commit(),
        "hardware": hardware(),
    }
    weights = trainer.runtime.unwrap(trainer.model).state_dict()
    save_weights(run_dir / "model.safetensors", weights, metadata)


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
