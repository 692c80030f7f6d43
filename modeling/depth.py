"""How deep a network is, measured in its graph: `python -m modeling.depth NAME`.

NAME is a body of ours, as resnet18, or torchvision/NAME for a classifier of torchvision's.

"Layer" is ambiguous, so depth is told in four ways, and all but the first are found in the graph, not by names:

- D0, blocks: what the network itself calls its parts. This one is a matter of naming.
- D1, layers on the longest path from input to output: convolutions and linear maps, as modules or functions, by
  `einsum`, or by a product and its sum or mean, whose weight is a registered parameter or made from such; and
  matrix products of two activations. Thus attention counts two, Q·Kᵀ and attention·V, and everything else of the
  kind counts too: the Gram matrix of a covariance, or similarities that only serve to choose neighbours;
  `Depth.products` says how many they are. Not counted are the making of weights, elementwise products such as
  gains and gates, squares and their sums, which norms and variances are made of, and filters that are not learned.
  A product that something other than a sum or mean adds up, such as a pooling, is missed.
- D2, affine maps that nonlinearities separate, on the path that has most of them. Layers with nothing nonlinear
  between them are one map, together with BatchNorm at inference, sums, means, and all that moves values about; a
  map without a layer does not count. Whatever is not known to be affine is taken for nonlinear, LayerNorm and
  products of activations among them, so D2 may be too large, and too small only where D1 missed a
  layer. That the maps are affine is shown by `modeling.affine.prove`, by numbers: on random inputs in float64.
- D3, distinct weights on the path of D1: a recurrent cell counts its weight once, however often it is applied. A
  weight and its transpose, or two slices of one parameter, are two.

A Transformer's block of attention and MLP has D1 = 6 (QKV, Q·Kᵀ, attention·V, projection, two of the MLP), and
D2 = 4.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

import torch
from torch import nn
from torch.fx import Node

from modeling.affine import NotAffineError, Proof, check
from modeling.channels import parse_names
from modeling.graph import Graph, trace
from modeling.pooling import Pooling

_THEIRS = "torchvision/"


@dataclass(frozen=True)
class Step:
    """One layer of a path.

    Attributes:
        kind: the operation, as "conv2d".
        parameters: qualified names of those that the weight is, or is made from; none in a product of activations.
        weight: shape of the weight, None in a product of activations.
        output: shape.
        region: which of the path's affine maps the layer belongs to, from 1; None in a product of activations.
    """

    kind: str
    parameters: tuple[str, ...]
    weight: tuple[int, ...] | None
    output: tuple[int, ...]
    region: int | None


@dataclass(frozen=True)
class Depth:
    """Depth of a network, see the module's description.

    Attributes:
        d0, d1, d2, d3: blocks, layers, affine maps, distinct weights.
        path: the layers of D1. Of several paths as long it is one with most affine maps.
    """

    d0: int
    d1: int
    d2: int
    d3: int
    path: tuple[Step, ...]

    @property
    def products(self) -> int:
        """How many layers of the path are products of activations, which have no weight of their own."""
        return sum(not step.parameters for step in self.path)


def audit(network: nn.Module, *inputs: Any) -> Depth:
    """Measure how deep a network is.

    Args:
        network: any that `torch.export` takes; it is measured at inference, and stays as it is.
        inputs: as the network takes them, an image and a channel set for instance. Values do not matter.

    Raises:
        ValueError: an operation that no rule covers; see `modeling.graph.Graph`.
    """
    return measure(network, trace(network, *inputs))


def measure(network: nn.Module, graph: Graph) -> Depth:
    """The same as `audit`, for a network whose graph is at hand."""
    longest = _longest(graph, lambda path: (path.layers, path.maps))
    layers = [part for part in longest.parts() if part.node in graph.layers]
    return Depth(
        d0=count_blocks(network, {name for layer in graph.layers.values() for name in layer.parameters}),
        d1=longest.layers,
        d2=_longest(graph, lambda path: (path.maps, path.layers)).maps,
        d3=len({graph.layers[part.node].identity for part in layers if graph.layers[part.node].parameters}),
        path=tuple(_step(graph, part) for part in layers),
    )


def count_blocks(network: nn.Module, weights: Iterable[str]) -> int:
    """Number of blocks: those that the network names, and other children with weights of layers.

    A network names them by an attribute `blocks`: modules, or names of submodules. A child called "body" is no
    block but has some: so stem and body are the stem, the body's blocks, and whatever else of it is a layer.

    Args:
        network: whose children, or blocks, are counted.
        weights: qualified names of the layers' weights.
    """
    return _count_blocks(network, {id(network.get_parameter(name)) for name in weights})


def _count_blocks(module: nn.Module, weights: set[int]) -> int:
    named = getattr(module, "blocks", ())
    blocks = [module.get_submodule(block) if isinstance(block, str) else block for block in named]
    covered = {id(parameter) for block in blocks for parameter in block.parameters()}
    count = len(blocks)
    for name, child in module.named_children():
        rest = {id(parameter) for parameter in child.parameters()} & weights - covered
        count += _count_blocks(child, rest) if name == "body" else bool(rest)
    return count


class _Path(NamedTuple):
    """A path from an input to a node.

    Attributes:
        layers, maps: how many are on it.
        node: where it ends.
        before: the path without its last node.
    """

    layers: int
    maps: int
    node: Node
    before: "_Path | None"

    def parts(self) -> "list[_Path]":
        """The path to each of its nodes, in order."""
        parts, path = [], self
        while path:
            parts.append(path)
            path = path.before
        return parts[::-1]


def _longest(graph: Graph, length: Callable[[_Path], Any]) -> _Path:
    """The longest path to an output.

    A layer behind another one starts a new affine map only if something nonlinear lies between. So the longest
    path to a node is not enough to know: `best` has the longest of those on whose last affine map there is a
    layer, and the longest of the others.
    """
    best: dict[Node, dict[bool, _Path]] = {node: {False: _Path(0, 0, node, None)} for node in graph.inputs}
    for node in graph.nodes:
        found: dict[bool, list[_Path]] = {}
        for source in graph.sources(node):
            for inside, path in best[source].items():
                now, longer = _extended(graph, path, inside, node)
                found.setdefault(now, []).append(longer)
        best[node] = {inside: max(paths, key=length) for inside, paths in found.items()}
    return max((path for node in graph.outputs for path in best[node].values()), key=length)


def _extended(graph: Graph, path: _Path, inside: bool, node: Node) -> tuple[bool, _Path]:
    """A path with one more node, and whether there is a layer on its last affine map then."""
    layer, affine = node in graph.layers, node in graph.affine
    starts = affine and layer and not inside
    return affine and (inside or layer), _Path(path.layers + layer, path.maps + starts, node, path)


def _step(graph: Graph, path: _Path) -> Step:
    """The last node of a path."""
    layer = graph.layers[path.node]
    return Step(
        layer.kind,
        layer.parameters,
        layer.weight,
        tuple(path.node.meta["val"].shape),
        path.maps if path.node in graph.affine else None,
    )


def table(path: Sequence[Step]) -> str:
    """Steps of a path as lines of text, one below the other."""
    rows = [("", "operation", "weight", "its shape", "output", "affine map")]
    for count, step in enumerate(path, start=1):
        name, *others = step.parameters or ("(activations)",)
        made = f"{name} and {len(others)} more" if others else name
        shapes = ("×".join(map(str, shape or ())) for shape in (step.weight, step.output))
        rows.append((str(count), step.kind, made, *shapes, str(step.region or "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def summary(depth: Depth, proof: Proof) -> str:
    """The four numbers, a line each."""
    products = f", {depth.products} of them products of activations" if depth.products else ""
    return (
        f"D0 {depth.d0:3}  blocks\n"
        f"D1 {depth.d1:3}  layers on the longest path{products}\n"
        f"D2 {depth.d2:3}  affine maps that nonlinearities separate; proven for each, those of branches too: "
        f"{proof.fused} by fusing, {proof.superposed} by superposition, to {proof.error:.1e} of its value\n"
        f"D3 {depth.d3:3}  distinct weights on the longest path"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the longest path of a network, layer by layer, and the four numbers.

    Ends with status 2 and one line if there is no such network, or none that takes such images.
    """
    parser = argparse.ArgumentParser(prog="python -m modeling.depth", description="How deep is a network?")
    parser.add_argument("name", help=f"a body of ours, as resnet18, or {_THEIRS}NAME for one of torchvision's")
    parser.add_argument("--size", type=int, default=64, help="height and width of images (%(default)s)")
    parser.add_argument("--channels", default="RGB", help="that images have (%(default)s)")
    parser.add_argument("--classes", type=int, default=100, help="number of logits (%(default)s)")
    ours = parser.add_argument_group("two-layer networks")
    ours.add_argument("--width", type=float, help="multiple of the usual number of features")
    ours.add_argument("--pooling", choices=get_args(Pooling), help="what the head looks at")
    ours.add_argument("--deep", action="store_true", default=None, help="as trained before anything is merged")
    options = parser.parse_args(arguments)
    body = {k: value for k in ("width", "pooling", "deep") if (value := getattr(options, k)) is not None}
    try:
        network, image = _subject(options.name, options.size, options.channels, options.classes, body)
        graph = trace(network, image)
        depth, proof = measure(network, graph), check(graph)
    except (ValueError, NotAffineError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(table(depth.path), summary(depth, proof), sep="\n\n")


def _subject(
    name: str, size: int, channels: str, classes: int, options: dict[str, Any]
) -> tuple[nn.Module, torch.Tensor]:
    """A network with fresh weights, and an image that it takes.

    Raises:
        ValueError: there is no such network, or it does not take such images.
    """
    planes = len(parse_names(channels))
    build = _builder(name, size, channels, classes, options)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torchvision, about initial values to come
            network, image = build().eval(), torch.zeros(1, planes, size, size)
            network(image)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} does not take {planes} channels of {size} px: {reason}") from None
    return network, image


def _builder(
    name: str, size: int, channels: str, classes: int, options: dict[str, Any]
) -> Callable[[], nn.Module]:
    """What builds a network of this name.

    Raises:
        ValueError: there is none, or none with these options.
    """
    from torchvision import models

    from modeling.zoo import BODIES, build_model

    ours, theirs = list(BODIES), models.list_models(module=models)
    for option in options:
        if name not in ours or option not in BODIES[name].options:
            takers = ", ".join(body for body in ours if option in BODIES[body].options)
            raise ValueError(f"{name} has no --{option}; it belongs to {takers}")
    if name in ours:
        return lambda: build_model(name, "any-channel", channels, classes, **options).materialize()
    if name.startswith(_THEIRS) and (found := name.removeprefix(_THEIRS)) in theirs:
        sized = {"image_size": size} if found.startswith("vit_") else {}  # the only ones that must be told
        return lambda: models.get_model(found, num_classes=classes, **sized)
    near = get_close_matches(name.removeprefix(_THEIRS), [*ours, *theirs], n=1)
    meant = f"; did you mean {near[0] if near[0] in ours else _THEIRS + near[0]}?" if near else "."
    raise ValueError(
        f"no network is called {name!r}{meant} There are {', '.join(ours)}, and {_THEIRS}NAME for a classifier of "
        "torchvision.models.list_models()"
    )


if __name__ == "__main__":
    main()
