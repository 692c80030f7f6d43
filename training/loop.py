"""The training loop."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modeling.channels import ChannelSet
from pipelines.batch import Batch, Loader
from pipelines.progress import track
from training.augment import Augmentation
from training.board import Board
from training.checkpoint import Checkpoints
from training.config import ConfigError, Recipe
from training.distill import Teacher
from training.evaluation.metrics import Score
from training.feed import Feed
from training.memory import Rehearsed, parts_that_fit
from training.meter import Meter, memory
from training.monitor import Monitor
from training.optim import learning_rate, set_learning_rate
from training.preemption import StopFile
from training.profiler import Profiler
from training.records import commit
from training.runtime import Runtime
from training.subsets import channel_sets, listed_sets, scored_sets
from training.sweep import specialise, sweep


class NonFiniteLossError(RuntimeError):
    """The loss is infinite or not a number; the last checkpoint is from before."""


class Trainer:
    """Trains one model through one recipe.

    Args:
        recipe: the settings.
        runtime: ranks, device, precision.
        model, optimizer: as `Runtime.prepare` returned them.
        train, val: loaders of this rank.
        checkpoints, monitor, stop: where progress goes, and what may end it early.
        names: what classes are called, where something names them.
    """

    def __init__(
        self,
        recipe: Recipe,
        runtime: Runtime,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: Loader,
        val: Loader,
        checkpoints: Checkpoints,
        monitor: Monitor,
        stop: StopFile,
        names: Sequence[str] | None = None,
    ) -> None:
        self.recipe, self.runtime, self.model, self.optimizer = recipe, runtime, model, optimizer
        self.train, self.val = train, val
        self.checkpoints, self.monitor, self.stop = checkpoints, monitor, stop
        self.board = Board(recipe, val.samples, monitor, names)
        self.profiler = Profiler(monitor, recipe.schedule)
        self.vocabulary = recipe.model.channels
        self.teacher = None
        if recipe.schedule.distill:
            self.teacher = Teacher(recipe, runtime.unwrap(model), train.samples, names, runtime)
        self.augment = Augmentation(recipe.augment, train.samples.classes, recipe.seed, runtime.rank)
        self.ema = running_mean(runtime.unwrap(model), recipe.optim.ema)
        self.evaluated = listed_sets(recipe) or scored_sets(runtime.unwrap(model).stem)
        self.steps_per_epoch = -(-len(train.samples) // recipe.data.batch_size)
        self.steps = recipe.schedule.epochs * self.steps_per_epoch
        # Over before the last step, so that what is annealed is in its final form when the training ends.
        self.anneal_steps = max(1.0, min(recipe.schedule.anneal * self.steps, self.steps - 1))
        self.step = 0
        self.best = 0.0  # mean accuracy of the best sweep over val so far
        self.parts = recipe.schedule.accumulate if recipe.schedule.accumulate != "auto" else self._parts_that_fit()
        self._check_company()
        self.commit = commit()  # of the code as the run started; it may change underneath
        self.seconds = 0.0  # spent training so far, over all runs that resumed one another
        self._started = time.perf_counter()
        self._feed = Feed(runtime)
        self._meter = self._new_meter()
        self._last: dict[str, float] = {}
        self._saved = 0  # step of the newest checkpoint

    def fit(self) -> bool:
        """Train to the end, or to a stop request: True when the recipe is complete."""
        work = track(self.iterate(), self.steps - self.step, self._describe, quiet=not self.runtime.is_main)
        with closing(self.profiler):
            self.profiler.after(self.step)
            for _ in work:
                # Now and then only: the ranks must agree, and asking makes the GPU wait.
                if self.step % self.recipe.schedule.log_steps == 0 and self.stop.requested():
                    self.save()
                    return False
        return True

    @property
    def result(self) -> nn.Module:
        """The network to validate and to keep: the running mean of the weights, where there is one."""
        return self.ema.module if self.ema else self.runtime.whole(self.model)

    @property
    def seconds_so_far(self) -> float:
        """Wall time of this run and of those it resumed."""
        return self.seconds + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights that a resumed run needs. To be called on every rank."""
        scaler = self.runtime.scaler
        return {
            "step": self.step,
            "best": self.best,
            "commit": self.commit,
            "seconds": self.seconds_so_far,
            "optimizer": self.runtime.optimizer_state(self.optimizer),
            "scaler": scaler.state_dict() if scaler else None,
            "ema": self.ema.state_dict() if self.ema else None,
            "loader": self.train.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint stood."""
        self.step = self._saved = state["step"]
        self.best, self.seconds, self.commit = state["best"], state["seconds"], state["commit"]
        self.runtime.load_optimizer_state(self.optimizer, state["optimizer"])
        if self.runtime.scaler and state["scaler"]:
            self.runtime.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.train.load_state_dict(state["loader"])

    def iterate(self) -> Iterator[None]:
        """Train; yields after every optimizer step, when the run is whole and may be saved."""
        schedule = self.recipe.schedule
        while self.train.epoch < schedule.epochs:
            for batch in self._timed():
                self._train_step(batch)
                self.profiler.after(self.step)
                if self.step % schedule.log_steps == 0 or self.step == self.steps:
                    self._log()
                if self.step % schedule.checkpoint_steps == 0 and self.step % self.steps_per_epoch:
                    self.save()  # an epoch's last step is saved below, after its validation
                yield
            evaluated = self.train.epoch % schedule.eval_epochs == 0 or self.train.epoch == schedule.epochs
            self.save(best=evaluated and self._validate())

    def _train_step(self, batch: Batch) -> None:
        lr = learning_rate(self.recipe.optim, self.step, self.steps, self.steps_per_epoch)
        set_learning_rate(self.optimizer, lr * self.recipe.lr_scale)
        last = self.step + 1 == self.steps  # which may be the first, too
        network, progress = self.runtime.unwrap(self.model), 1.0 if last else self.step / self.anneal_steps
        self.model.train()
        network.anneal(progress)
        loss = self._backward(batch)
        norm = self.runtime.clip(self.model, self.recipe.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update_parameters(network)
            self.ema.module.anneal(progress)  # which is no matter of means
        self.step += 1
        self._meter.add(loss, batch.valid, norm)

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss, worked through in parts that add up; returns that loss."""
        images, targets = self.augment(batch.images, batch.labels, self.step, self.step / self.steps)
        rows = [values.tensor_split(self.parts) for values in (images, targets, batch.valid)]
        total = torch.zeros((), device=self.runtime.device)
        for i, part in enumerate(zip(*rows, strict=True)):
            with self.runtime.accumulate(self.model, more=i < self.parts - 1):
                loss = self._loss(*part).sum() / len(batch.valid)
                self.runtime.backward(loss)
            total += loss.detach()
        return total

    def _parts_that_fit(self) -> int:
        network, size, device = self.runtime.unwrap(self.model), self.recipe.data.size, self.runtime.device

        def attempt(rows: int) -> None:
            images = torch.zeros(rows, len(self.vocabulary), size, size, device=device)
            images = images.contiguous(memory_format=torch.channels_last)
            labels = torch.zeros(rows, dtype=torch.int64, device=device)
            # Not through DDP: where one rank fails, the others would wait for its gradients.
            self._loss(images, labels, torch.ones_like(labels, dtype=torch.bool), network).sum().backward()

        network.train()
        with Rehearsed(network):
            return parts_that_fit(attempt, self.recipe.data.batch_size // self.runtime.world, self.runtime)

    def _check_company(self) -> None:
        """A norm of maps has the positions of one image to go by; one of vectors has not."""
        data, world = self.recipe.data, self.runtime.world
        vectors = any(isinstance(part, nn.BatchNorm1d) for part in self.model.modules())
        if vectors and data.batch_size // world // self.parts < 2:
            raise ConfigError(
                f"--model.body {self.recipe.model.body} has a norm that needs two images at a time: give "
                f"--data.batch-size {2 * world * self.parts}, or fewer processes or parts (--schedule.accumulate)"
            )

    def _loss(self, images: Tensor, targets: Tensor, valid: Tensor, model: nn.Module | None = None) -> Tensor:
        """Per image, (N,); that of padding rows is zero, so that each sample weighs the same in an epoch."""
        groups = self._groups(images)
        with self.runtime.autocast():
            seen = [chosen.select(part, self.vocabulary) for part, chosen in groups]
            logits = (model or self.model)(seen, [chosen for _, chosen in groups]).float()
        smoothing = self.recipe.optim.label_smoothing
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        if self.teacher:
            lacking = [torch.full((len(p),), len(c) < len(self.vocabulary), device=p.device) for p, c in groups]
            losses = self.teacher.mix(losses, logits, images, torch.cat(lacking))
        return losses * valid

    def _groups(self, images: Tensor) -> list[tuple[Tensor, ChannelSet]]:
        """The batch in even parts, each with the channel set that it shall be seen by in this step."""
        sets = channel_sets(self.recipe, self.step)
        parts = images.tensor_split(len(sets))  # empty ones where there are fewer images than groups
        return [(part, chosen) for part, chosen in zip(parts, sets, strict=True) if len(part)]

    def _validate(self) -> bool:
        """Sweep over val; whether it went better than ever before."""
        start = time.perf_counter()
        self.runtime.average_buffers(self.ema.module if self.ema else self.runtime.unwrap(self.model))
        network, epoch = self.result, self.train.epoch
        networks = specialise(network, self.evaluated)
        found = sweep(networks, self.vocabulary, self.val, len(self.val.samples), self.runtime)
        scores = found.scores
        self.monitor.sweep(self.step, "val", scores, epoch=epoch)
        if self.board.wants_pictures(epoch):
            self.runtime.first(lambda: self.board.draw(self.step, network.stem, found.predicted))
        self._say(f"epoch {epoch}/{self.recipe.schedule.epochs} val top-1: {format_scores(scores)}")
        self._meter.since += time.perf_counter() - start  # validation is not training's time
        mean = fmean(score.accuracy for score in scores.values())
        improved, self.best = mean > self.best, max(mean, self.best)
        return improved

    def _log(self) -> None:
        self._feed.meet()
        values = self._meter.read(self.runtime)
        self._check_finite(values)
        lr = self.optimizer.param_groups[0]["lr"]
        self.monitor.scalars(
            self.step, {**values, "train/lr": lr, **memory(self.runtime.device)}, epoch=self.train.epoch
        )
        self._meter = self._new_meter()
        self._last = values

    def _check_finite(self, values: dict[str, float]) -> None:
        """The same values on every rank, so that all stop. In fp16 gradients may overflow, and are skipped."""
        norm = 0.0 if self.runtime.scaler else values["train/grad_norm"]
        if not math.isfinite(values["train/loss"] + norm):
            raise NonFiniteLossError(
                f"{self._meter.where_it_broke(self.runtime, self.step)}; "
                f"the last checkpoint is of step {self._saved}; "
                f"start anew with --run-dir and an --optim.lr below {self.recipe.optim.lr}"
            )

    def _new_meter(self) -> Meter:
        return Meter(torch.zeros(4, device=self.runtime.device))

    def save(self, best: bool = False) -> None:
        """Write a checkpoint, unless this step has one. To be called on every rank.

        Args:
            best: whether it did best on val so far.

        Raises:
            NonFiniteLossError: the weights are not worth keeping.
            DataError: a loader has failed meanwhile.
        """
        if self.step == self._saved:
            return
        self._feed.meet()
        self._check_finite(self._meter.read(self.runtime))  # nothing poisoned is saved
        weights, state = self.runtime.weights(self.model), self.state_dict()
        if self.runtime.is_main:
            self.monitor.flush()  # a run that goes on from here shall find all its curves
            self.checkpoints.save(self.step, weights, state, best)
        self._saved = self.step

    def _timed(self) -> Iterator[Batch]:
        """The rest of the epoch; counts the time that the loop waits for the loader."""
        iterator = self._feed.batches(self.train, self.steps_per_epoch - self.step % self.steps_per_epoch)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self._meter.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _describe(self) -> str:
        last = self._last
        told = f" loss {last['train/loss']:.3f} {last['train/images_per_s']:.0f} images/s" if last else ""
        return f"{self.recipe.name} epoch {self.train.epoch + 1}/{self.recipe.schedule.epochs}{told}"

    def _say(self, line: str) -> None:
        if self.runtime.is_main:
            print(line, flush=True)


def running_mean(model: nn.Module, keep: float) -> AveragedModel | None:
    """An exponential moving average of a network's weights and statistics, or None where it keeps nothing."""
    if not keep:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(keep), use_buffers=True)


def format_scores(scores: dict[str, Score]) -> str:
    """`RGB 61.2  RG 59.8 …`, in per cent."""
    return "  ".join(f"{name} {100 * score.accuracy:.1f}" for name, score in scores.items())
