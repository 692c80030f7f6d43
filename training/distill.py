"""Distillation: a part of the loss is the distance to a teacher's answers on all channels of the same crops."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet
from training.build import load_model
from training.config import ConfigError, Recipe
from training.runtime import Runtime


class Teacher:
    """Another network, which teaches every image, or the student itself, which teaches those that lack channels.

    The latter is in-place distillation: Yu and Huang, "Universally Slimmable Networks", arXiv 1903.05134.

    Args:
        recipe: says which teacher, what part of the loss, and the temperature.
        student: the network that is trained.
        classes: number of logits.
        runtime: device and precision.

    Raises:
        ConfigError: the teacher was trained on other classes or channels.
        DataError: the teacher's run directory cannot be read.
    """

    def __init__(self, recipe: Recipe, student: nn.Module, classes: int, runtime: Runtime) -> None:
        schedule = recipe.schedule
        self.part, self.temperature = schedule.distill, schedule.temperature
        self.student, self.runtime = student, runtime
        self.channels = ChannelSet.full(recipe.model.channels)
        self.other = None
        if schedule.teacher:
            network = _load(schedule.teacher, recipe, classes)
            self.other = network.to(runtime.device, memory_format=torch.channels_last)

    def mix(self, losses: Tensor, logits: Tensor, images: Tensor, lacking: Tensor) -> Tensor:
        """Losses of which a part is the distance to the teacher, where it teaches.

        Args:
            losses: (N,) of the labels.
            logits: N×classes, the student's.
            images: N×C×H×W, with all channels.
            lacking: (N,), bool, which images the student was not given all channels of.
        """
        taught = torch.ones_like(lacking) if self.other else lacking
        answers = self._answers(images[taught])
        mixed = mix(losses[taught], logits[taught], answers, self.part, self.temperature)
        return losses.index_put((taught,), mixed)

    @torch.no_grad()
    def _answers(self, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            if self.other:
                return self.other(images).float()
            self.student.eval()  # running statistics: these images must not enter the batch's twice
            logits = self.student(images, self.channels).float()
            self.student.train()
            return logits


def mix(losses: Tensor, logits: Tensor, teacher: Tensor, part: float, temperature: float = 1.0) -> Tensor:
    """Losses of which a part is the Kullback-Leibler divergence from a teacher's answers.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, §2: both are
    softened by the temperature T, and the distance is multiplied by T² so that its gradient keeps its size.

    Args:
        losses: (N,) of the labels.
        logits, teacher: N×classes; no gradient flows into the teacher's.
        part: 0 … 1.
        temperature: above 0.
    """
    softened, target = (logits / temperature).log_softmax(1), (teacher.detach() / temperature).softmax(1)
    distance = temperature**2 * F.kl_div(softened, target, reduction="none").sum(1)
    return (1 - part) * losses + part * distance


def _load(run_dir: Path, recipe: Recipe, classes: int) -> nn.Module:
    """The teacher, specialised to all channels."""
    theirs, model, metadata = load_model(run_dir)
    facts = {
        "classes": (int(metadata["classes"]), classes),
        "labels": (theirs.data.labels, recipe.data.labels),
        "channels": (theirs.model.channels, recipe.model.channels),
    }
    for name, (its, ours) in facts.items():
        if its != ours:
            raise ConfigError(
                f"--schedule.teacher {run_dir} was trained on other {name} ({its}) than this run ({ours}); "
                "train a teacher on the same lists"
            )
    return model.materialize()
