"""Proof that what `modeling.graph` takes for affine is affine, by fusing it and by superposition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from modeling.graph import Graph, evaluate, trace

_BASIS = 4096  # inputs, …
_MATRIX = 2**20  # … and entries of the matrix, up to which a map is fused literally


@dataclass(frozen=True)
class Proof:
    """That a network's affine maps are affine.

    Attributes:
        error: the largest deviation, relative to the largest value of the map.
        fused: how many maps have been replaced by a matrix and a vector, which gave equal outputs.
        superposed: how many are too large for that; they obey f(αx + βy) - f(0) = α(f(x) - f(0)) + β(f(y) - f(0))
            for random values, as the fused ones do too.
    """

    error: float
    fused: int
    superposed: int


class NotAffineError(ArithmeticError):
    """What was taken for an affine map is none."""


def prove(network: nn.Module, *inputs: Any, tolerance: float = 1e-9) -> Proof:
    """Show in float64 that every affine map of a network is one.

    A map leads from the network's input and the outputs of nonlinear operations, which take random values here, to
    where the next nonlinear operation reads. It is maximal: everything affine in between belongs to it. Maps of at
    most 4096 inputs and 2²⁰ entries are fused: they are applied to a basis, and the matrix and vector thus found
    must give the same outputs. All operations of all maps must obey superposition.

    Args:
        network, inputs: see `modeling.depth.audit`.
        tolerance: the largest relative error allowed.

    Raises:
        NotAffineError: an operation taken for affine is not.
        ValueError: an operation that no rule covers; see `modeling.graph.Graph`.
    """
    return check(trace(network, *inputs), tolerance)


@torch.no_grad()
def check(graph: Graph, tolerance: float = 1e-9) -> Proof:
    """The same as `prove`, for a network whose graph is at hand."""
    constants = evaluate(graph.constants, graph.values)
    superposition = _Superposition(graph, constants)
    errors = {node: superposition.error(node) for node in graph.nodes if node in graph.affine}
    maps = [end for end in _ends(graph) if any(node in graph.layers for node in _cone(graph, end))]
    matrices = {end: superposition.fusing_error(end) for end in maps if _is_small(graph, end)}
    for node, error in (*errors.items(), *matrices.items()):
        if not error <= tolerance:  # nor if it is no number
            raise NotAffineError(f"{node.target} ({node.name}) is off an affine map by {error:.1e} of its value")
    error = max((*errors.values(), *matrices.values()), default=0.0)
    return Proof(error, len(matrices), len(maps) - len(matrices))


class _Superposition:
    """All affine maps of a network at once, applied to nothing, to random values, and to a sum of these."""

    _FACTORS = (1.7, -0.6)  # α and β; of opposite sign, since max(0, x) is linear where signs agree

    def __init__(self, graph: Graph, constants: dict[Node, Any]) -> None:
        self.graph, self.constants = graph, constants
        self.nodes = [node for node in graph.nodes if node in graph.affine]
        generator = torch.Generator().manual_seed(0)
        starts = _starts(graph, self.nodes)
        one, other = (
            {node: torch.randn(_shape(node), generator=generator, dtype=torch.float64) for node in starts}
            for _ in range(2)
        )
        alpha, beta = self._FACTORS
        self.zero = self._apply({node: torch.zeros_like(one[node]) for node in starts})
        self.one, self.other = self._apply(one), self._apply(other)
        self.sum = self._apply({node: alpha * one[node] + beta * other[node] for node in starts})

    def _apply(self, values: dict[Node, Tensor]) -> dict[Node, Any]:
        return evaluate(self.nodes, self.constants | values)

    def error(self, node: Node) -> float:
        """How far a node is from obeying superposition; 0 if it has several values, which are nodes too."""
        if not isinstance(self.zero[node], Tensor):
            return 0.0
        zero, one, other, both = (values[node] for values in (self.zero, self.one, self.other, self.sum))
        alpha, beta = self._FACTORS
        wanted = zero + alpha * (one - zero) + beta * (other - zero)
        return _relative(both, torch.where(zero.isinf(), zero, wanted))  # a mask's -∞ stays what it is

    def fusing_error(self, end: Node) -> float:
        """How far a map is from the matrix and vector that it has on a basis."""
        cone = _cone(self.graph, end)
        starts = _starts(self.graph, cone)
        sizes, shapes = [_size(node) for node in starts], [_shape(node) for node in starts]

        def apply(x: Tensor) -> Tensor:
            parts = (part.view(shape) for part, shape in zip(x.split(sizes), shapes, strict=True))
            return evaluate(cone, self.constants | dict(zip(starts, parts, strict=True)))[end].flatten()

        vector = apply(torch.zeros(sum(sizes), dtype=torch.float64))
        basis = torch.eye(sum(sizes), dtype=torch.float64)
        columns = [torch.where(vector.isinf(), 0, apply(direction) - vector) for direction in basis]
        matrix = torch.stack(columns, dim=1)
        x = torch.cat([self.one[node].flatten() for node in starts])
        return _relative(self.one[end].flatten(), matrix @ x + vector)


def _relative(wanted: Tensor, got: Tensor) -> float:
    """The largest difference, relative to the largest finite value; the same infinity is no difference."""
    same = wanted == got
    if same.all():
        return 0.0
    return ((wanted - got)[~same].abs().max() / wanted.nan_to_num(0, 0, 0).abs().max()).item()


def _ends(graph: Graph) -> list[Node]:
    """Affine nodes whose value leaves the network or is read by something nonlinear."""
    read = {source for node in graph.nodes if node not in graph.affine for source in graph.sources(node)}
    return [node for node in graph.nodes if node in graph.affine and (node in read or node in graph.outputs)]


def _cone(graph: Graph, end: Node) -> list[Node]:
    """All affine nodes that a node depends on by affine nodes alone, in order, and itself."""
    cone, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node in graph.affine and node not in cone:
            cone.add(node)
            waiting += graph.sources(node)
    return [node for node in graph.nodes if node in cone]


def _starts(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """What affine nodes read that is not affine itself: inputs, and outputs of nonlinear operations."""
    read = (source for node in nodes for source in graph.sources(node))
    return list(dict.fromkeys(source for source in read if source not in graph.affine))


def _is_small(graph: Graph, end: Node) -> bool:
    """Whether a map can be fused literally."""
    inputs = sum(_size(node) for node in _starts(graph, _cone(graph, end)))
    return inputs <= _BASIS and inputs * _size(end) <= _MATRIX


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _size(node: Node) -> int:
    return node.meta["val"].numel()
