"""What TensorBoard shows of a run beside its scalars: the recipe, and pictures now and then."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from modeling.channels import ChannelSet
from modeling.stems import Stem
from pipelines.samples import Samples
from training.build import first_images
from training.config import Recipe
from training.drawings import answers, channel_grid, confusion_picture, kernels, sized
from training.evaluation.metrics import confusion
from training.monitor import Monitor
from training.recipe_file import settings_that_matter, to_dict, to_yaml

_IMAGES = 6  # rows of a picture
_SETS = 8  # that pictures show


class Board:
    """Fills a monitor with what needs images, the stem or the recipe. For the first rank alone.

    Args:
        recipe: the run's.
        val: the validation list.
        monitor: where it all goes.
        names: what classes are called; by default pictures have their numbers.
    """

    def __init__(self, recipe: Recipe, val: Samples, monitor: Monitor, names: Sequence[str] | None = None) -> None:
        self.recipe, self.val, self.monitor, self.names = recipe, val, monitor, names
        self.vocabulary = recipe.model.channels
        # From all over the list: it may be sorted by class.
        self.shown = np.linspace(0, len(val) - 1, min(_IMAGES, len(val))).astype(int)

    @cached_property
    def images(self) -> Tensor:
        """Some images as evaluation sees them, N×C×H×W on the CPU."""
        return first_images(self.recipe.data, self.val.take(self.shown), self.vocabulary, len(self.shown))

    def begin(self) -> None:
        """What there is to be seen before the first step."""
        self.monitor.begin(to_yaml(self.recipe), settings_that_matter(to_dict(self.recipe)))
        grid = channel_grid(sized(self.images), self.vocabulary)
        self.monitor.image("input/by_channel_set", (255 * grid).byte().permute(1, 2, 0).numpy(), 0)

    def wants_pictures(self, epoch: int) -> bool:
        """Whether there shall be some after the sweep of this epoch: the first, every so many, and the last."""
        schedule = self.recipe.schedule
        if not schedule.picture_sweeps:
            return False
        return epoch == schedule.epochs or (epoch // schedule.eval_epochs - 1) % schedule.picture_sweeps == 0

    @torch.no_grad()
    def draw(self, step: int, stem: Stem, predicted: Mapping[str, Tensor]) -> None:
        """Some images with their answers, the stem's kernels, and confusion matrices, by channel set.

        Args:
            step: that the network is of.
            stem: the network's.
            predicted: best guess for each image of the list, int64, (images,), by name of the channel set.
        """
        sets = some_of([stem.parse(name) for name in predicted])
        labels = torch.from_numpy(self.val.labels)
        guesses = {chosen: predicted[str(chosen)].cpu() for chosen in sets}
        seen = {chosen: rows[self.shown].tolist() for chosen, rows in guesses.items()}
        generated = {chosen: kernel_of(stem, chosen) for chosen in sets}
        wanted = labels[self.shown].tolist()
        names = self.names or [str(label) for label in range(self.val.classes)]
        self.monitor.image("pictures/answers", answers(self.images, wanted, seen, self.vocabulary, names), step)
        self.monitor.image("pictures/kernels", kernels(generated, self.vocabulary), step)
        for chosen, rows in guesses.items():
            counts = confusion(labels, rows.long(), self.val.classes)
            title = f"{chosen}: {100 * counts.trace() / counts.sum():.1f} % right of {len(rows)} images of val"
            self.monitor.image(f"pictures/confusion/{chosen}", confusion_picture(counts, title, names), step)


def kernel_of(stem: Stem, chosen: ChannelSet) -> Tensor:
    """What a stem convolves a set's channels with, O×|S|×k×k: of several the mean."""
    kernel = stem.kernel(chosen).detach()
    if kernel.dim() == 5:  # M of them, mixed for each image
        kernel = kernel.mean(0)
    return kernel if kernel.shape[1] == len(chosen) else kernel[:, stem.indices(chosen)]


def some_of(sets: list[ChannelSet]) -> list[ChannelSet]:
    """All channel sets if they are few, else some from the largest to the smallest."""
    chosen = np.linspace(0, len(sets) - 1, min(_SETS, len(sets))).astype(int)
    return [sets[i] for i in chosen]
