"""The model card: what a trained network is, how good on which channels, and how to load it.

Markdown with the metadata that Hugging Face's model cards begin with, so that it serves there as `README.md`; see
https://huggingface.co/docs/hub/model-cards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from modeling.channels import ChannelSet
from modeling.cost import count_parameters
from modeling.network import ChannelNet
from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, RGB
from training.build import what_classes_are_called
from training.config import Recipe
from training.formats import TOLERANCE, Format
from training.reporting.blocks import Rows, markdown_table
from training.subsets import trained_sets


@dataclass(frozen=True)
class File:
    """A network for one channel set, in a file.

    Attributes:
        name: of the file.
        kind: its format.
        channels: name of the channel set.
        any_size: whether it takes images of any height and width.
        difference: largest absolute difference of its logits from the original's.
    """

    name: str
    kind: Format
    channels: str
    any_size: bool
    difference: float


def model_card(
    recipe: Recipe,
    model: ChannelNet,
    metadata: dict[str, str],
    record: dict[str, Any] | None,
    files: Sequence[File],
) -> str:
    """The text of `card.md`.

    Args:
        recipe: of the run.
        model: the network.
        metadata: what its weights say of themselves.
        record: of its sweep, where there is one: all accuracies come from it.
        files: that lie beside the card and `model.safetensors`.
    """
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(recipe, record, files), sort_keys=False, allow_unicode=True)}---",
        f"# {recipe.name}",
        _what(recipe, model, metadata),
        "## Accuracy by channel set",
        *_accuracy(record),
        "## Input",
        _input(recipe),
        "## How to load it",
        _loading(model, files),
        *(["## Files for one channel set", markdown_table(_file_rows(recipe, files)), _CHECKED] if files else []),
        "## Classes",
        _classes(metadata),
        "## Training",
        _training(metadata, record),
        f"```yaml\n{metadata['recipe'].strip()}\n```",
        "## Limits",
        _limits(recipe, record),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe, record: dict[str, Any] | None, files: Sequence[File]) -> dict[str, Any]:
    """Metadata as Hugging Face documents it: library, task, tags, results."""
    front: dict[str, Any] = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "any-channel", *sorted({file.kind for file in files})],
    }
    if record:
        split, data = record["split"], recipe.data.path.name
        front["metrics"] = ["accuracy"]
        front["model-index"] = [
            {
                "name": recipe.name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": f"{data}, channels {chosen}", "type": data, "split": split},
                        "metrics": [{"type": "accuracy", "value": round(score["accuracy"], 4)}],
                    }
                    for chosen, score in record["scores"].items()
                ],
            }
        ]
    return front


def _what(recipe: Recipe, model: ChannelNet, metadata: dict[str, str]) -> str:
    sets = model.stem.sets()
    names = " ".join(map(str, sets)) if len(sets) <= 15 else f"{len(sets)} sets"
    return (
        f"An image classifier for {metadata['classes']} classes: body {recipe.model.body}, stem "
        f"{recipe.model.stem}, {count_parameters(model) / 1e6:.1f} million parameters. Its vocabulary is "
        f"{ChannelSet(recipe.model.channels)}; the same weights take the channel sets {names}. It was trained on "
        f"{' '.join(map(str, trained_sets(recipe)))}."
    )


def _accuracy(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["Not measured: the run had not been evaluated when this card was written."]
    rows = [["channels", "top-1 %", "95 % interval", "top-5 %", "images"]]
    for chosen, score in record["scores"].items():
        percents = [100 * score[key] for key in ("accuracy", "low", "high")]
        top5 = 100 * score["top5"] / score["n"]
        rows.append(
            [chosen, f"{percents[0]:.1f}", f"{percents[1]:.1f}–{percents[2]:.1f}", f"{top5:.1f}", str(score["n"])]
        )
    fingerprint = record["fingerprint"][record["split"]]
    return [
        markdown_table(rows),
        f"On the {record['split']} images (fingerprint {fingerprint}), with 95 % Wilson intervals, in "
        f"{record['precision']['sweep']}; measured at commit {record['provenance']['commit'][:12]}.",
    ]


def _input(recipe: Recipe) -> str:
    lines = [
        "N×|S|×H×W in float32: the channels S in the order of the set's name. Evaluation takes the central square "
        f"of 87.5 % of an upright image's short side, resizes it to {recipe.data.size}×{recipe.data.size} "
        "(bilinear, antialiased), scales pixels to 0 … 1, subtracts the mean and divides by the deviation:",
        markdown_table(
            [
                ["channel", "mean", "std"],
                *([c, str(m), str(s)] for c, m, s in zip(RGB, IMAGENET_MEAN, IMAGENET_STD, strict=True)),
            ]
        ),
    ]
    if not set(recipe.model.channels) <= set(RGB):
        lines.append(
            "Channels named by a wavelength in nm are mixed from the three normalised colours; `mix` in the "
            "metadata of the files has the weights."
        )
    return "\n\n".join(lines)


def _loading(model: ChannelNet, files: Sequence[File]) -> str:
    chosen = files[0].channels if files else str(model.stem.sets()[0])
    code = [
        "import torch",
        "",
        "# DIR: a checkout of the project; needs torch, torchvision and safetensors, and unpickles nothing",
        'net = torch.hub.load("DIR", "anychannel", source="local", weights="model.safetensors")',
        f'logits = net(images, "{chosen}")',
        f'plain = net.materialize("{chosen}")  # an ordinary network for these channels alone',
    ]
    for file in {file.kind: file for file in reversed(files)}.values():
        if file.kind == "onnx":
            code += ["", "import onnxruntime", f'session = onnxruntime.InferenceSession("{file.name}")']
            code += ['(logits,) = session.run(None, {"images": images.numpy()})']
            code += ["session.get_modelmeta().custom_metadata_map  # channels, mean, std, size, class_names"]
        else:
            code += ["", "# as with any .pt2, from a source that you trust: PyTorch may unpickle parts of it"]
            code += [f'net = torch.export.load("{file.name}").module()', "logits = net(images)"]
    return "```python\n" + "\n".join(code) + "\n```"


_CHECKED = (
    f"Each file was read back and compared with the original network on random images of several batch sizes, and "
    f"of several heights and widths where it takes them; above {TOLERANCE:g} it would not have been written."
)


def _file_rows(recipe: Recipe, files: Sequence[File]) -> Rows:
    size = f"{recipe.data.size}×{recipe.data.size}"
    return [
        ["file", "channels", "images", "largest difference of a logit"],
        *(
            [f"`{file.name}`", file.channels, "any size" if file.any_size else size, f"{file.difference:.1e}"]
            for file in files
        ),
    ]


def _classes(metadata: dict[str, str]) -> str:
    return "\n".join(f"{label}. {name}" for label, name in enumerate(what_classes_are_called(metadata)))


def _training(metadata: dict[str, str], record: dict[str, Any] | None) -> str:
    rows = [
        ["", ""],
        ["training images", f"fingerprint {metadata['train_fingerprint']}"],
        ["time", f"{float(metadata['seconds']) / 60:.1f} min"],
        ["hardware", f"{metadata['hardware']}; ranks: {metadata['processes']}; {metadata['precision']}"],
        ["commit", metadata["commit"]],
    ]
    return f"{markdown_table(rows)}\n\nThe whole recipe:"


def _limits(recipe: Recipe, record: dict[str, Any] | None) -> str:
    measured = "the table above" if record else "no measurement yet"
    ties = "- Neighbours are chosen; where two are equally near, rounding decides, and ONNX may answer otherwise."
    return "\n".join(
        [
            *([ties] if recipe.model.body == "graph" else []),
            "- Every image gets one of the classes above, whatever it shows.",
            f"- What is known of its accuracy is {measured}; other cameras, sizes and subjects were not measured.",
            f"- Channels that are missing cost accuracy. A set outside the vocabulary "
            f"{ChannelSet(recipe.model.channels)}, or channels in another order than named, give wrong answers "
            "without an error in the files for one channel set, which see numbers only.",
            "- A channel must be what it was in training, e.g. R of an ordinary camera's sRGB image.",
        ]
    )
