"""Train a recipe: `python -m training.train RECIPE [--data.path DIR] [--run-dir DIR] [--resume] …`

One process, or several: `accelerate launch --config_file launch/cpu.yaml -m training.train RECIPE …`.
`python -m training.train --help` lists the recipes, `python -m training.train RECIPE --help` all settings.
"""

import contextlib
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro
from torch import Tensor

from modeling.weights import NETWORK
from pipelines.batch import Loader
from pipelines.class_names import class_names
from pipelines.files import locked
from pipelines.manifest import has_list
from pipelines.samples import Samples
from training import zero
from training.build import load_training_samples, make_loader, network_arguments, new_model
from training.checkpoint import Checkpoints, save_weights
from training.cli import run_program
from training.config import ConfigError, Data, Recipe
from training.loop import Trainer
from training.monitor import Monitor
from training.optim import build_optimizer
from training.preemption import StopFile
from training.recipe_file import first_difference, load_recipe, save_recipe, to_dict, to_yaml
from training.recipes import RECIPES
from training.records import hardware
from training.rehearsal import rehearse
from training.runtime import Runtime, restarts


@dataclass(kw_only=True)
class Job(Recipe):
    """A recipe, and where and how this run of it goes."""

    run_dir: Path | None = None
    """Where everything is written; runs/RECIPE by default."""
    resume: bool = False
    """Go on from the run directory's last checkpoint, or start afresh where there is none."""
    processes: int | None = None
    """Refuse to start unless there are this many ranks."""
    dry_run: bool = False
    """Do a few steps, a sweep over one batch and a checkpoint, say what they took and what the whole run would,
    and keep nothing."""
    print_config: bool = False
    """Print the recipe with all its settings and end."""


def main(job: Job) -> None:
    """Train to the end, or to a stop request, and leave weights in the run directory."""
    if job.print_config:
        print(to_yaml(_recipe(job)), end="")
        return
    runtime = Runtime(job.schedule.precision, job.seed, job.processes, job.schedule.patience)
    with runtime.answering():
        _train(job, runtime)
    runtime.close()


def _train(job: Job, runtime: Runtime) -> None:
    run_dir = job.run_dir or Path("runs") / job.name
    quoted = shlex.quote(str(run_dir))  # as it can be pasted
    recipe, resume = _recipe(job), job.resume or restarts() > 0
    if not job.dry_run and runtime.first(lambda: _is_finished(run_dir, recipe, resume)):
        _say(runtime, f"{run_dir} is finished; next: {_scoring(run_dir, recipe.data)}")
        return
    if runtime.zero:
        zero.check(runtime.zero, runtime.precision, recipe)
    samples = load_training_samples(recipe.data, runtime)
    names = runtime.first(lambda: class_names(recipe.data.path, recipe.data.chosen_labels))
    channels, passes = recipe.model.channels, recipe.schedule.epochs
    make = partial(make_loader, recipe.data, runtime=runtime, channels=channels, passes=passes)
    train, reason = make(samples["train"], training=True, seed=recipe.seed)
    val, _ = make(samples["val"], training=False)
    with contextlib.ExitStack() as held:  # holds the lock on the run directory
        if job.dry_run:
            run_dir = Path(runtime.first(lambda: held.enter_context(tempfile.TemporaryDirectory())))
        runtime.first(lambda: _open_run(run_dir, recipe, samples, held))
        trainer = _build_trainer(run_dir, recipe, runtime, train, val, names, resume)
        _say(runtime, _introduction(trainer, reason))
        if job.dry_run:
            _say(runtime, "\n".join(["dry run, of which nothing is kept", *rehearse(trainer)]))
            trainer.monitor.close()
            return
        _say(runtime, f"  everything goes to {run_dir}; watch: tensorboard --logdir {quoted} --host 127.0.0.1")
        finished = trainer.fit()
        trainer.monitor.close(finished)
        if finished:
            weights = trainer.result.state_dict()
            runtime.first(lambda: _write_weights(run_dir, trainer, weights))
    if finished:
        _say(runtime, f"finished in {trainer.seconds_so_far:.0f} s; next: {_scoring(run_dir, recipe.data)}")
    else:
        _say(runtime, f"stopped at step {trainer.step}, saved; go on with: --run-dir {quoted} --resume")


def _scoring(run_dir: Path, data: Data) -> str:
    """The command that scores a run, on val where there is no test list, as it can be pasted."""
    flags = "" if has_list(data.path, "test") else " --split val"
    return f"python -m training.evaluate {shlex.quote(str(run_dir))}{flags}"


def _recipe(job: Job) -> Recipe:
    """The job's recipe alone, with paths that hold from any folder."""
    recipe = Recipe(**{name: getattr(job, name) for name in Recipe.__dataclass_fields__})
    teacher = job.schedule.teacher and job.schedule.teacher.absolute()
    return replace(recipe, data=recipe.data.absolute(), schedule=replace(job.schedule, teacher=teacher))


def _build_trainer(
    run_dir: Path,
    recipe: Recipe,
    runtime: Runtime,
    train: Loader,
    val: Loader,
    names: list[str] | None,
    resume: bool,
) -> Trainer:
    """All parts of a run, standing where its last checkpoint stood."""
    model = new_model(recipe.model, train.samples.classes)
    checkpoints = Checkpoints(run_dir / "checkpoints", recipe.schedule.keep)
    weights, state = (runtime.first(checkpoints.load) if resume else None) or (None, None)
    if weights:
        model.load_state_dict(weights)
        train.load_state_dict(state["loader"])  # first, since it refuses other data
    if recipe.schedule.compile:
        # What follows the stem has the same shapes in every step; stems change with the channel sets.
        model.body.compile(dynamic=False)
    model, optimizer = runtime.prepare(model, build_optimizer(model, recipe.optim), recipe.optim.clip)
    monitor = Monitor(run_dir, runtime.is_main, state["step"] if state else 0)
    stop = StopFile(run_dir, runtime)
    trainer = Trainer(recipe, runtime, model, optimizer, train, val, checkpoints, monitor, stop, names)
    if state:
        trainer.load_state_dict(state)
    elif runtime.is_main:
        trainer.board.begin()
    return trainer


def _is_finished(run_dir: Path, recipe: Recipe, resume: bool) -> bool:
    """Whether the run directory holds this very recipe, finished; False where it may be begun or continued.

    Raises:
        ConfigError: it holds a run that is not to be continued, or one of another recipe.
    """
    config = run_dir / "config.yaml"
    if not config.exists() or not (run_dir / "checkpoints").exists():  # nothing there that could be lost
        return False
    if not resume:
        raise ConfigError(f"{run_dir} holds a run already; add --resume, or choose another --run-dir")
    changed = first_difference(to_dict(load_recipe(config)), to_dict(recipe))
    if changed:
        raise ConfigError(f"{run_dir} was started with another recipe ({changed}); choose another --run-dir")
    return (run_dir / "model.safetensors").exists()


def _open_run(run_dir: Path, recipe: Recipe, samples: dict[str, Samples], held: contextlib.ExitStack) -> None:
    """Make the run directory, lock it, and say in it what the run is and which images it does without."""
    run_dir.mkdir(parents=True, exist_ok=True)
    busy = f"{run_dir} is in use by another process; wait, or choose another --run-dir"
    held.enter_context(locked(run_dir / ".lock", busy))
    save_recipe(recipe, run_dir / "config.yaml")
    for split, scanned in samples.items():
        if scanned.quarantined:
            scanned.write_quarantine(run_dir / f"quarantine-{split}.tsv")


def _introduction(trainer: Trainer, reason: str) -> str:
    recipe, runtime, samples = trainer.recipe, trainer.runtime, trainer.train.samples
    sets = " ".join(map(str, trainer.evaluated))
    parts = f"; each rank takes its batch in {trainer.parts} parts" if trainer.parts > 1 else ""
    quick = " with matrix products for small maps" if runtime.small_maps else ""
    return (
        f"{recipe.name}: {recipe.model.stem} {recipe.model.body} on {runtime.world} × {runtime.device.type}, "
        f"{runtime.precision}{quick}; channel sets {sets}\n"
        f"  {len(samples)} images, {samples.classes} classes, {reason}\n"
        f"  {trainer.steps} steps, from step {trainer.step}{parts}"
    )


def _write_weights(run_dir: Path, trainer: Trainer, weights: dict[str, Tensor]) -> None:
    """Leave `model.safetensors`, which marks the run as finished, with what loaders and records need to know."""
    samples, model = trainer.train.samples, trainer.recipe.model
    metadata = {
        NETWORK: json.dumps(network_arguments(model, samples.classes)),
        "recipe": (run_dir / "config.yaml").read_text(),
        "vocabulary": model.vocabulary,
        "classes": str(samples.classes),
        "train_fingerprint": samples.fingerprint,
        "seconds": f"{trainer.seconds_so_far:.1f}",
        "processes": str(trainer.runtime.world),
        "precision": trainer.runtime.precision,
        "commit": trainer.commit,
        "hardware": hardware(trainer.runtime.world),
    }
    if trainer.board.names:
        metadata["class_names"] = json.dumps(trainer.board.names)
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
