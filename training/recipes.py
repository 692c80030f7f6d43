"""Named recipes. Each says what it is for and about how long it takes."""

from training.config import Data, Model, Optim, Recipe, Schedule


def _quickstart(name: str, stem: str, channel_sets: str) -> Recipe:
    return Recipe(
        name=name,
        data=Data(size=48, batch_size=64, scale=0.5),
        model=Model(stem=stem),
        optim=Optim(lr=0.02),  # at 0.05 some seeds, and some roundings, take most of the epochs to recover
        schedule=Schedule(epochs=24, channel_sets=channel_sets, eval_epochs=4),
    )


def _part(name: str, stem: str, channel_sets: str) -> Recipe:
    return Recipe(
        name=name,
        data=Data(labels="0-19", size=64, batch_size=128),
        model=Model(stem=stem),
        schedule=Schedule(epochs=45, channel_sets=channel_sets),
    )


def _small(name: str, channel_sets: str, **model: str) -> Recipe:
    """To compare networks with one another on a CPU."""
    return Recipe(
        name=name,
        data=Data(labels="0-19", size=64, batch_size=64),
        model=Model(**model),
        optim=Optim(lr=0.05),
        schedule=Schedule(epochs=24, channel_sets=channel_sets, eval_epochs=6),
    )


_BANDS = "450+490+530+570+610+650"
# Cameras with one to six bands each. Every band is in some of them; most sets, and four single bands, are in none.
_CAMERAS = f"{_BANDS} 450+490+530+570+610 450+490+610+650 450+530+610 490+570+650 450+570 530+650 490+610 490 610"


def _mini_imagenet(name: str, stem: str, channel_sets: str) -> Recipe:
    return Recipe(
        name=name,
        data=Data(size=84, batch_size=256),
        model=Model(stem=stem, body="resnet34"),
        optim=Optim(lr=0.2),
        schedule=Schedule(epochs=100, channel_sets=channel_sets),
    )


RECIPES: dict[str, tuple[str, Recipe]] = {
    "quickstart": (
        "Any-channel ResNet-18 on the embedded data set; a few CPU minutes.",
        _quickstart("quickstart", "any-channel", "sandwich"),
    ),
    "quickstart-naive": (
        "Its control: an ordinary ResNet-18 trained on RGB, missing channels black.",
        _quickstart("quickstart-naive", "zero-fill", "full"),
    ),
    "resnet18-part": (
        "Any-channel ResNet-18 on 20 classes of mini-ImageNet at 64 px; about half an hour on two CPU cores.",
        _part("resnet18-part", "any-channel", "sandwich"),
    ),
    "resnet18-part-naive": (
        "Its control: an ordinary ResNet-18 trained on RGB, missing channels black.",
        _part("resnet18-part-naive", "zero-fill", "full"),
    ),
    "resnet10-part": (
        "The same, small enough to compare many stems: ResNet-10; some twenty minutes on a CPU core.",
        _small("resnet10-part", "sandwich", body="resnet10"),
    ),
    "resnet10-part-naive": (
        "Its control: an ordinary ResNet-10 trained on RGB, missing channels black.",
        _small("resnet10-part-naive", "full", body="resnet10", stem="zero-fill"),
    ),
    "resnet34-part": (
        "ResNet-34 on all channels, to compare two-layer networks with: --model.body; up to two hours on a core.",
        _small("resnet34-part", "full", body="resnet34"),
    ),
    "spectral": (
        "Six synthetic bands, trained on ten sets of them: what becomes of other sets, and of other bands?",
        _small("spectral", _CAMERAS, body="resnet10", vocabulary=_BANDS, norm="moments"),
    ),
    "mini-imagenet": (
        "Any-channel ResNet-34 on all of mini-ImageNet at 84 px; wants a GPU.",
        _mini_imagenet("mini-imagenet", "any-channel", "sandwich"),
    ),
    "mini-imagenet-naive": (
        "Its control: an ordinary ResNet-34 trained on RGB, missing channels black.",
        _mini_imagenet("mini-imagenet-naive", "zero-fill", "full"),
    ),
}
