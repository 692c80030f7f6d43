"""Typed settings of a run. Every field is a flag: `--data.path`, `--optim.lr`, …

A recipe is a complete description of a run; it is written to `config.yaml` in the run directory and read back by
the evaluator and by `--resume`.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modeling.channels import ChannelSet, Vocabulary, parse_names
from modeling.pooling import Pooling
from modeling.stems import Gain, Norm
from modeling.zoo import BODIES, BodyName, BodyOptions, StemName
from pipelines import spectral
from pipelines.build import LoaderName
from pipelines.integrity import Policy
from pipelines.manifest import parse_labels

STRATEGIES = ("sandwich", "mixed", "sampled", "full")  # see training.subsets


class ConfigError(Exception):
    """Settings that cannot work together. The message names the flag and the remedy on one line.

    No ValueError, for the reason that `DataError` is none.
    """


@dataclass(kw_only=True)
class Data:
    """Which images, and how they are looked at."""

    path: Path = Path("data/synthetic")
    """Folder of train.txt, val.txt (or validation.txt) and test.txt."""
    root: Path | None = None
    """Folder that the paths in the lists are relative to; the lists' own folder by default."""
    labels: str | None = None
    """Keep only these classes, e.g. 0-19,40; they are renumbered from 0."""
    size: int = 64
    """Height and width of the network's input, in pixels."""
    batch_size: int = 128
    """Images per optimizer step, over all ranks together; must divide by the number of ranks."""
    scale: float = 0.25
    """Smallest part of an image's area that a random training crop may keep."""
    loader: LoaderName = "auto"
    """Who decodes: resident (once, then kept in memory), dali, portable (torchvision), or auto: the first of these
    that fits and runs here."""
    threads: int | None = None
    """CPU threads that decode in each process; by default the cores that are its own."""
    prefetch: int = 3
    """Batches decoded ahead; more costs memory and helps where reading is uneven."""
    hardware_load: float = 0.65
    """Part of the images that DALI gives to a GPU's JPEG engine, 0 to 1; the rest goes to its other cores."""
    policy: Policy = "quarantine"
    """Images that are unusable, or that training shares with val or test: leave them out and write that down, or
    fail."""
    max_bad: float = 0.05
    """Part of a list's images that may be unusable before the run refuses to start."""

    @property
    def chosen_labels(self) -> list[int] | None:
        """The classes to keep, None for all."""
        return parse_labels(self.labels) if self.labels else None

    def absolute(self) -> "Data":
        """The same with paths that hold from any folder."""
        root = self.root and self.root.absolute()
        return dataclasses.replace(self, path=self.path.absolute(), root=root)

    def __post_init__(self) -> None:
        if self.labels is not None:
            parse_labels(self.labels)
        if self.batch_size < 2:
            raise ConfigError(f"--data.batch-size {self.batch_size} must be at least 2: norms need company")
        if self.prefetch < 1:
            raise ConfigError(f"--data.prefetch {self.prefetch} must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--data.threads {self.threads} must be at least 1")
        if not 0 <= self.hardware_load <= 1:
            raise ConfigError(f"--data.hardware-load {self.hardware_load} must lie in [0, 1]")
        if not 0 <= self.max_bad < 1:
            raise ConfigError(f"--data.max-bad {self.max_bad} must lie in [0, 1)")
        if not 0 < self.scale <= 1:
            raise ConfigError(f"--data.scale {self.scale} must lie in (0, 1]")
        if self.size < 32:
            raise ConfigError(f"--data.size {self.size} is too small for a ResNet; use 32 or more")


@dataclass(kw_only=True)
class Model:
    """Which network."""

    body: BodyName = "resnet18"
    """Everything behind the stem."""
    stem: StemName = "any-channel"
    """How channel sets are taken in; zero-fill is the naive control, modeling/rivals.py describes the others."""
    vocabulary: str = "RGB"
    """Channels that the model knows: R, G, B, or synthetic bands named by their wavelength in nm, as in
    450+530+610 (see pipelines/spectral.py)."""
    templates: int = 8
    """Kernel templates per filter of the any-channel and attention stems."""
    fill: Literal["black", "mean"] = "black"
    """What the zero-fill stem puts for a missing channel: a black image, or the channel's mean."""
    norm: Norm = "per-set"
    """BatchNorm of the stem: one per channel set; one per number of channels; the latter with statistics of any
    set, also of those that training never saw, by the moments of the images; or one shared by all. Zero-fill,
    zero-fill-rescaled, repeat and plain always share one, and the attention stem has no moments."""
    embedding: Literal["ids", "wavelengths"] = "ids"
    """What the any-channel stem makes a channel's kernel from: something learned for each, or a function of its
    wavelength, so that it takes channels that training never saw."""
    conditioning: bool = True
    """Whether the any-channel stem's kernel for a channel depends on the other channels that are there."""
    gain: Gain = "sqrt"
    """What the any-channel stem makes up for missing channels with: √(C0/|S|), C0/|S| (linear) or nothing."""
    plain_channels: str | None = None
    """The one channel set that the plain stem takes, e.g. RG; all channels by default."""
    width: float = 1.0
    """Of a two-layer body: multiplies its features and its stem's."""
    pooling: Pooling = "mean-std"
    """Of a two-layer body: what its head looks at; see modeling/pooling.py."""
    kernel_size: int | None = None
    """Of strict's first layer, 5 by default, and of matched's depthwise convolutions, 7; odd."""
    deep: bool = False
    """Train the layers of strict or matched as two each, with an activation between them that is annealed away,
    and merge them when the training is done."""
    growth: int = 24
    """Of the dense blocks in rrdb and rrdb-attention."""
    neighbours: int = 9
    """Of each node in graph."""
    steps: int = 4
    """Of recurrent."""

    def __post_init__(self) -> None:
        try:
            spectral.weights(self.channels)
        except ValueError as error:
            raise ConfigError(f"--model.vocabulary {self.vocabulary}: {error}") from None
        if self.templates < 1:
            raise ConfigError(f"--model.templates {self.templates} must be at least 1")
        self._check_flags_of_stems()
        self._check_flags_of_bodies()
        self._check_plain_channels()

    def _check_flags_of_stems(self) -> None:
        """Refuse what this stem would ignore."""
        flags = {"no-conditioning": not self.conditioning, "embedding wavelengths": self.embedding != "ids"}
        flags[f"gain {self.gain}"] = self.gain != "sqrt"
        for flag, given in flags.items():
            if given and self.stem != "any-channel":
                raise ConfigError(f"--model.{flag} is for --model.stem any-channel, not {self.stem}; leave it out")
        if self.norm == "moments" and self.stem == "attention":
            raise ConfigError("--model.norm moments is for stems with one kernel for a set, not attention")

    def _check_flags_of_bodies(self) -> None:
        """Refuse what this body would ignore, and numbers that no body can have."""
        given = self.body_options
        ordinary = dataclasses.asdict(BodyOptions())
        try:
            BodyOptions(**given)
        except ValueError as error:
            raise ConfigError(f"--model.{str(error).replace('_', '-')}") from None
        for name, value in given.items():
            takers = [body for body in BODIES if name in BODIES[body].options]
            if value != ordinary[name] and self.body not in takers:
                flag = f"--model.{name.replace('_', '-')}"
                raise ConfigError(f"{flag} is for --model.body {', '.join(takers)}, not {self.body}; leave it out")

    @property
    def body_options(self) -> dict[str, Any]:
        """What concerns the body, by its name in `BodyOptions`."""
        return {name: getattr(self, name) for name in BodyOptions.__dataclass_fields__}

    def _check_plain_channels(self) -> None:
        if self.plain_channels is None:
            return
        if self.stem != "plain":
            raise ConfigError(f"--model.plain-channels is for --model.stem plain, not {self.stem}; leave it out")
        try:
            ChannelSet.parse(self.plain_channels, self.channels)
        except ValueError as error:
            raise ConfigError(f"--model.plain-channels {self.plain_channels}: {error}") from None

    @property
    def channels(self) -> Vocabulary:
        """The vocabulary as names."""
        return parse_names(self.vocabulary)


@dataclass(kw_only=True)
class Augment:
    """What else is done to training images, beside crops and flips."""

    mixup: float = 0.0
    """Each batch is mixed with itself in another order, by parts drawn from Beta(α, α) with this α; 0 does not."""
    cutmix: float = 0.0
    """The same, but a rectangle of each image is replaced; with both, one of them is drawn for each step."""
    rand_augment: int = 0
    """Changes of colour or geometry that each image gets, drawn at random (RandAugment); of RGB images only."""
    magnitude: int = 9
    """How strong these changes are, 0 to 30."""
    grow_from: int | None = None
    """Height and width of images in the first epoch; they grow to --data.size until half of the training is over,
    which saves time."""

    def __post_init__(self) -> None:
        if self.rand_augment < 0:
            raise ConfigError(f"--augment.rand-augment {self.rand_augment} must not be negative")
        if not 0 <= self.magnitude <= 30:
            raise ConfigError(f"--augment.magnitude {self.magnitude} must lie in [0, 30]")
        if self.grow_from is not None and self.grow_from < 32:
            raise ConfigError(f"--augment.grow-from {self.grow_from} is too small for a ResNet; use 32 or more")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--augment.{name} {getattr(self, name)} must not be negative")


@dataclass(kw_only=True)
class Optim:
    """The optimizer and its learning rate, warmed up linearly, then lowered."""

    optimizer: Literal["sgd", "adamw", "lamb", "muon"] = "sgd"
    """sgd with Nesterov momentum; the others want a learning rate of about 0.001 (adamw), 0.005 (lamb) or 0.002
    (muon, which is for weights of layers; the rest is left to AdamW)."""
    lr: float = 0.1
    """Highest learning rate, for the batch size of the recipe: it holds for any number of ranks."""
    lr_batch: int | None = None
    """Batch size that the learning rate is meant for: with another --data.batch-size it changes in proportion. By
    default it is what it is."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to 0, if it does."""
    momentum: float = 0.9
    """Of sgd and muon."""
    weight_decay: float = 5e-4
    """On weights of convolutions and linear layers only; norms, biases and embeddings have none."""
    warmup_epochs: float = 1.0
    """Epochs until the highest learning rate is reached."""
    clip: float | None = None
    """Largest norm of the gradient; a larger gradient is scaled down to it."""
    ema: float = 0.0
    """Part of a running mean of the weights that a step keeps, e.g. 0.999; that mean is validated, and saved as
    the result. 0 has none."""
    label_smoothing: float = 0.1
    """Probability mass spread over all classes in the target."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"--optim.lr {self.lr} must be above 0")
        if self.lr_batch is not None and self.lr_batch < 1:
            raise ConfigError(f"--optim.lr-batch {self.lr_batch} must be at least 1; leave it out for no scaling")
        if not 0 < self.momentum < 1:
            raise ConfigError(f"--optim.momentum {self.momentum} must lie in (0, 1)")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"--optim.clip {self.clip} must be above 0; leave it out for none")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"--optim.ema {self.ema} must lie in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"--optim.label-smoothing {self.label_smoothing} must lie in [0, 1)")
        for name in ("weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--optim.{name.replace('_', '-')} {getattr(self, name)} must not be negative")


@dataclass(kw_only=True)
class Schedule:
    """How long, on which channel sets, in which precision, and what is written down on the way."""

    epochs: int = 30
    """Passes over the training list."""
    channel_sets: str = "sandwich"
    """Channel sets of a training batch. sandwich: a group with all channels, one with a single channel, and
    groups with random sets; mixed: groups with random sets; sampled: one random set for the whole batch; full: all
    channels only; or the sets themselves, as in "RG B", of which each group gets one: one alone trains a dedicated
    expert."""
    groups: int = 4
    """Groups of a sandwich or mixed batch, each with a channel set of its own; 2 or more."""
    distill: float = 0.0
    """This part of the loss, 0 to 1, is the distance to a teacher's answer on all channels of the same crop, which
    costs a forward pass. Without --schedule.teacher the network teaches itself, where channels lack."""
    teacher: Path | None = None
    """Run directory of a finished network that teaches every image."""
    temperature: float = 1.0
    """Of both answers that distillation compares; above 1 the unlikely classes count for more."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of convolutions and matrix products. auto: bf16 where the hardware has it, else fp32."""
    accumulate: int | Literal["auto"] = 1
    """Parts that each rank's share of a batch is worked through in, to save memory; their gradients add up. Norms
    see a part at a time. auto: 1, 2, 4, … the first that fits into the memory, tried before the first step."""
    compile: bool = False
    """Compile everything behind the stem with torch.compile: minutes at the start, faster steps on a GPU."""
    anneal: float = 0.4
    """Part of the training, 0 to 1, until what is annealed has its final form: templates that are attended to, or
    layers that are merged."""
    eval_epochs: int = 5
    """Epochs between sweeps over the validation list; the last epoch always ends with one."""
    log_steps: int = 20
    """Optimizer steps between log lines, where all ranks meet and stop if one has no batches any more."""
    picture_sweeps: int = 3
    """Sweeps over the validation list between pictures for TensorBoard: images with their answers, kernels,
    confusion matrices. The first and the last sweep make some too; 0: none."""
    profile: str | None = None
    """Steps that a profiler records, e.g. 100:105. While a run goes on, touch RUN_DIR/PROFILE for the next few."""
    checkpoint_steps: int = 500
    """Optimizer steps between checkpoints; every epoch ends with one as well."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the one that did best on val."""
    patience: float = 10.0
    """Minutes that ranks wait for one that does not answer, before they end and say which it was."""

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise ConfigError(f"--schedule.groups {self.groups} must be at least 2: all channels, and one channel")
        if not 0 <= self.distill <= 1:
            raise ConfigError(f"--schedule.distill {self.distill} must lie in [0, 1]")
        if self.teacher and not self.distill:
            raise ConfigError(
                f"--schedule.teacher {self.teacher} teaches nothing; add --schedule.distill 0.5, say"
            )
        if self.temperature != 1 and not self.distill:
            raise ConfigError(f"--schedule.temperature {self.temperature} does nothing without --schedule.distill")
        if not self.temperature > 0:
            raise ConfigError(f"--schedule.temperature {self.temperature} must be above 0")
        if not 0 < self.anneal <= 1:
            raise ConfigError(f"--schedule.anneal {self.anneal} must lie in (0, 1]")
        if not self.patience > 0:
            raise ConfigError(f"--schedule.patience {self.patience} must be above 0")
        if self.picture_sweeps < 0:
            raise ConfigError(
                f"--schedule.picture-sweeps {self.picture_sweeps} must not be negative; 0 makes none"
            )
        for name in ("epochs", "accumulate", "eval_epochs", "log_steps", "checkpoint_steps", "keep"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise ConfigError(f"--schedule.{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        _ = self.window  # which refuses what it cannot read

    @property
    def window(self) -> range | None:
        """The steps that a profiler records, counted from 1."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ConfigError(
                f"--schedule.profile {self.profile} must be FIRST:LAST, steps from 1 on, as in 100:105"
            )
        return range(int(first), int(last) + 1)


@dataclass(kw_only=True)
class Recipe:
    """A complete description of a run."""

    name: str = "custom"
    """What reports call this run."""
    seed: int = 0
    """Of weights, order, crops and channel sets."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        self._check_channel_sets()
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed} must not be negative")
        if self.augment.rand_augment and self.model.vocabulary != "RGB":
            raise ConfigError(f"--augment.rand-augment knows RGB images only, not {self.model.vocabulary}")
        if (self.augment.grow_from or 0) > self.data.size:
            raise ConfigError(
                f"--augment.grow-from {self.augment.grow_from} is beyond --data.size {self.data.size}"
            )

    @property
    def lr_scale(self) -> float:
        """What the batch size multiplies learning rates by. Source: Goyal et al., arXiv 1706.02677, §2.1."""
        return self.data.batch_size / self.optim.lr_batch if self.optim.lr_batch else 1.0

    def _check_channel_sets(self) -> None:
        wanted, model = self.schedule.channel_sets, self.model
        taken = model.plain_channels or model.vocabulary
        if model.stem == "plain" and wanted != taken and not (wanted == "full" and taken == model.vocabulary):
            raise ConfigError(f"--model.stem plain takes {taken} alone; add --schedule.channel-sets {taken}")
        itself = self.schedule.distill and not self.schedule.teacher
        if model.stem == "plain" and itself and taken != model.vocabulary:
            raise ConfigError(f"--schedule.distill needs a stem that takes all channels, not plain on {taken}")
        if itself and wanted in ("full", model.vocabulary):
            raise ConfigError(
                "--schedule.distill: where every image has all channels the network has nothing to teach itself; "
                "name a --schedule.teacher, or other --schedule.channel-sets"
            )
        if wanted in STRATEGIES:
            return
        try:
            named = [ChannelSet.parse(name, self.model.channels) for name in wanted.split()]
        except ValueError as error:
            raise ConfigError(
                f"--schedule.channel-sets {wanted}: neither {', '.join(STRATEGIES)} nor channel sets ({error})"
            ) from None
        if not named or len(set(named)) < len(named):
            raise ConfigError(f"--schedule.channel-sets {wanted!r}: name one set or more, each of them once")
        if itself and all(len(chosen) < len(model.channels) for chosen in named):
            raise ConfigError(
                f"--schedule.distill: the network answers on all channels, which --schedule.channel-sets {wanted} "
                f"never shows it; add {model.vocabulary} to them, or name a --schedule.teacher"
            )
