"""Distillation: a part of the loss is the distance to a teacher's answers on all channels of the same crops."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet
from pipelines.samples import Samples
from training.build import load_model
from training.config import ConfigError, Recipe
from training.runtime import Runtime
from training.subsets import trained_sets


class Teacher:
    """Another network, which teaches every image, or the student itself, which teaches those that lack channels.

    The latter is in-place distillation: Yu and Huang, "Universally Slimmable Networks", arXiv 1903.05134.

    Args:
        recipe: says which teacher, what part of the loss, and the temperature.
        student: the network that is trained.
        samples: that it is trained on.
        names: of the classes, where they have some.
        runtime: device and precision.

    Raises:
        ConfigError: the teacher was trained on other classes or channels, or never on all of them at once.
        DataError: the teacher's run directory cannot be read.
    """

    def __init__(
        self, recipe: Recipe, student: nn.Module, samples: Samples, names: Sequence[str] | None, runtime: Runtime
    ) -> None:
        schedule = recipe.schedule
        self.part, self.temperature = schedule.distill, schedule.temperature
        self.student, self.runtime = student, runtime
        self.channels = ChannelSet.full(recipe.model.channels)
        self.other = None
        if schedule.teacher:
            network = _load(schedule.teacher, recipe, samples, names, quiet=not runtime.is_main)
            self.other = network.to(runtime.device, memory_format=torch.channels_last)

    def mix(self, losses: Tensor, logits: Tensor, images: Tensor, lacking: Tensor) -> Tensor:
        """Losses of which a part is the distance to the teacher, where it teaches.

        Args:
            losses: (N,) of the labels.
            logits: N×classes, the student's.
            images: N×C×H×W, with all channels.
            lacking: (N,), bool, which images the student was not given all channels of.
        """
        taught = lacking if self.other is None else torch.ones_like(lacking)
        shown = images[taught]
        if not len(shown):
            return losses
        distances = distance(logits[taught], self._answers(shown), self.temperature)
        return losses.index_put((taught,), (1 - self.part) * losses[taught] + self.part * distances)

    @torch.no_grad()
    def _answers(self, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            if self.other is not None:
                return self.other(images).float()
            self.student.eval()  # running statistics: these images must not enter the batch's twice
            logits = self.student(images, self.channels).float()
            self.student.train()
            return logits


def distance(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The Kullback-Leibler divergence of answers from a teacher's, (N,).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, §2: both are
    softened by the temperature T, and the distance is multiplied by T² so that its gradient keeps its size.

    Args:
        logits, teacher: N×classes; no gradient flows into the teacher's.
        temperature: above 0.
    """
    softened, target = (logits / temperature).log_softmax(1), (teacher.detach() / temperature).softmax(1)
    return temperature**2 * F.kl_div(softened, target, reduction="none").sum(1)


def _load(
    run_dir: Path, recipe: Recipe, samples: Samples, names: Sequence[str] | None, *, quiet: bool
) -> nn.Module:
    """The teacher, specialised to all channels."""
    theirs, model, metadata = load_model(run_dir)
    facts = {
        "classes": (int(metadata["classes"]), samples.classes),
        "labels": (theirs.data.chosen_labels, recipe.data.chosen_labels),
        "channels": (theirs.model.channels, recipe.model.channels),
    }
    if names and "class_names" in metadata:
        facts["class names"] = (json.loads(metadata["class_names"]), list(names))
    for name, (its, ours) in facts.items():
        if its != ours:
            raise ConfigError(
                f"--schedule.teacher {run_dir} was trained on other {name} ({its}) than this run ({ours}); "
                "train a teacher on the same lists"
            )
    if metadata["train_fingerprint"] != samples.fingerprint and not quiet:
        print(
            f"note: {run_dir} was trained on other images than this run; if it saw those of val.txt or test.txt, "
            "what it teaches is worth less than accuracy there says",
            *([] if "class names" in facts else ["; see that its classes are the same, in the same order"]),
            sep="",
            file=sys.stderr,
        )
    try:
        network = model.materialize()
    except ValueError as error:
        raise ConfigError(f"--schedule.teacher {run_dir} cannot teach: {error}") from None
    if all(len(chosen) < len(recipe.model.channels) for chosen in trained_sets(theirs)):
        seen = theirs.schedule.channel_sets
        raise ConfigError(f"--schedule.teacher {run_dir} cannot teach: it never saw all channels, but {seen}")
    return network
