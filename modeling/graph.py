"""A network as a graph of operations, and what each is: affine or not, a layer or not.

The graph is what `torch.export` records of one call in inference mode, without side effects, in ATen's operations.
Attention and recurrent cells are taken apart into products, linear maps and activations; convolutions and linear
maps stay whole. What does not depend on the network's input, such as kernels made from parameters, is constant.
"""

import copy
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Multiplications that sum over what they multiply, and the arguments they multiply; a bias is no such argument.
_CONTRACTIONS = (
    dict.fromkeys(_words("linear matmul mm bmm mv dot inner convolution conv1d conv2d conv3d"), (0, 1))
    | dict.fromkeys(_words("conv_transpose1d conv_transpose2d conv_transpose3d"), (0, 1))
    | dict.fromkeys(_words("addmm addmv addbmm baddbmm"), (1, 2))
    | {"einsum": (1,), "bilinear": (0, 1, 2)}
)
_FACTORS = _CONTRACTIONS | {"mul": (0, 1), "addcmul": (1, 2)}

# Affine in all floating-point values they read together, as long as masks and indices are constant.
_AFFINE = _words(
    """add sub rsub neg sum mean cumsum
    clone alias detach contiguous copy lift_fresh_copy _to_copy to
    view _unsafe_view reshape flatten unflatten expand repeat permute transpose t numpy_T squeeze unsqueeze
    movedim select slice narrow split split_with_sizes chunk unbind unfold index index_select gather
    diagonal tril triu cat stack flip roll where masked_fill index_put index_add index_copy
    scatter scatter_add slice_scatter select_scatter
    pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im"""
)
# Affine in the first argument, as long as the others are constant.
_AFFINE_IN_FIRST = _words("div true_divide _native_batch_norm_legit_no_training")
# Nonlinear, though not elementwise; the parameters they read are a gain and a shift of single features.
_NORMS = _words(
    """layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm
    batch_norm _native_batch_norm_legit prelu"""
)
# Of their first argument they read the shape and no value.
_OF_SHAPE = _words(
    """zeros_like ones_like full_like empty_like rand_like randn_like zero fill
    new_zeros new_ones new_full new_empty"""
)
# Put out the elements that they read, as they are but for sign and precision, and in other places.
_COPIES = _words("clone alias detach contiguous _to_copy to neg")
_MOVES = _words(
    """view _unsafe_view reshape flatten unflatten expand permute transpose t numpy_T squeeze unsqueeze
    movedim select slice narrow flip roll"""
)
_TAKEN_APART = _words(
    """aten::gru aten::lstm aten::rnn_tanh aten::rnn_relu
    aten::scaled_dot_product_attention aten::_scaled_dot_product_attention_math"""
)


@dataclass(frozen=True)
class Layer:
    """A contraction with a learnable weight, or of activations with one another.

    Attributes:
        kind: the operation's name.
        parameters: qualified names of those that the weight is made from; none if it multiplies activations.
        weight: the weight's shape, None if there is none.
        identity: equal for two layers whose weight is one tensor, or made from parameters in the same way.
    """

    kind: str
    parameters: tuple[str, ...]
    weight: tuple[int, ...] | None
    identity: str


class Graph:
    """What a network computes from its input, operation by operation.

    Attributes:
        inputs: nodes of the tensors given to the network.
        nodes: operations that depend on them, in the order of computation.
        outputs: operations whose values the network returns.
        affine: those nodes that are affine in all they read of other nodes, together.
        layers: those nodes that are layers.

    Raises:
        ValueError: an operation reads a parameter and no rule says in which way, or holds a graph of its own, or
            makes complex numbers; no output depends on the input.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.values: dict[Node, Any] = {}  # of parameters, buffers and constants
        self.constants: list[Node] = []  # operations that do not depend on the input
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []
        self.affine: set[Node] = set()
        self.layers: dict[Node, Layer] = {}
        self._parameters: dict[Node, tuple[str, ...]] = {}  # that a constant is made from
        self._identities: dict[Node, str] = {}  # of constants, short
        self._expressions: dict[str, str] = {}  # how a constant is made → its identity
        self._live: set[Node] = set()  # inputs and nodes
        self._placeholders(program)
        for node in program.graph.nodes:
            if node.op not in ("placeholder", "output") and node.users:  # an assertion has none
                self._operation(node)
        self.outputs = [node for node in _returned(program) if node in self._live]
        if not self.outputs:
            raise ValueError("no output of the network depends on its input")

    def sources(self, node: Node) -> list[Node]:
        """Inputs and nodes whose values a node reads."""
        return [source for source in _reads(node) if source in self._live]

    def _placeholders(self, program: ExportedProgram) -> None:
        nodes = (node for node in program.graph.nodes if node.op == "placeholder")
        for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
            self._identities[node] = node.name
            if spec.kind is InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), Tensor):
                    self.inputs.append(node)
            elif spec.target in program.state_dict:
                self.values[node] = program.state_dict[spec.target]
            else:
                self.values[node] = program.constants[spec.target]
            if spec.kind is InputKind.PARAMETER:
                self._parameters[node] = (spec.target,)
        self._live.update(self.inputs)

    def _operation(self, node: Node) -> None:
        if not (isinstance(node.target, OpOverload) or node.target is operator.getitem):
            raise ValueError(f"{node.target} holds a graph of its own, which depth cannot be measured in")
        if not self.sources(node):
            self.constants.append(node)
            names = (name for source in node.all_input_nodes for name in self._parameters.get(source, ()))
            self._parameters[node] = tuple(dict.fromkeys(names))
            known = {source: self._identities.get(source, source.name) for source in node.all_input_nodes}
            expression = repr((str(node.target), _filled(node, known)))
            self._identities[node] = self._expressions.setdefault(expression, node.name)
            return
        if any(value.is_complex() for value in _tensors(node)):
            raise ValueError(f"{node.target} makes complex numbers, and the rules are for real ones")
        self._live.add(node)
        self.nodes.append(node)
        if self._is_affine(node):
            self.affine.add(node)
        if layer := self._layer(node):
            self.layers[node] = layer
        elif self._learned(_reads(node)) and not _takes_parameters(node):
            raise ValueError(f"{node.target} reads a parameter, and no rule says whether that makes it a layer")

    def _learned(self, nodes: Iterable[Node]) -> list[Node]:
        return [node for node in nodes if self._parameters.get(node)]

    def _is_affine(self, node: Node) -> bool:
        name, sources = operation(node), self.sources(node)
        if not all(_is_floating(value) for value in (node, *sources)):
            return False
        if name == "getitem":
            return sources[0] in self.affine
        if "reduce" in node.kwargs:  # of scatter, by products for instance
            return False
        if name in _FACTORS:
            return sum(factor in self._live for factor in _factors(node)) <= 1
        if name in _AFFINE_IN_FIRST:
            return sources == [node.args[0]] and "rounding_mode" not in node.kwargs
        return name in _AFFINE

    def _layer(self, node: Node) -> Layer | None:
        if operation(node) not in _CONTRACTIONS and not _is_contracted(node):
            return None
        factors = _factors(node)
        learned = self._learned(factors)
        if not learned:
            live = sum(factor in self._live for factor in factors)
            return Layer(operation(node), (), None, node.name) if live > 1 else None
        return Layer(
            operation(node),
            tuple(name for factor in learned for name in self._parameters[factor]),
            tuple(learned[0].meta["val"].shape),
            " ".join(self._identities[factor] for factor in learned),
        )


def trace(network: nn.Module, *inputs: Any) -> Graph:
    """The graph of one call of a network in inference mode; the network itself stays as it is.

    Args:
        network: any module that `torch.export` takes.
        inputs: as the network takes them. Graphs are made for these shapes alone.

    Raises:
        ValueError: see `Graph`. Whatever the network raises on these inputs is passed on.
    """
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), _without_fused_attention():
        warnings.simplefilter("ignore")  # of export, about modules that rename their own weights
        program = export(copy.deepcopy(network).eval(), inputs)
        return Graph(program.run_decompositions(_decompositions()))


@cache
def _decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """How to take apart what is taken apart."""
    table = default_decompositions()
    return {operation: table[operation] for operation in list(table) if operation._schema.name in _TAKEN_APART}


@torch.no_grad()
def evaluate(nodes: Iterable[Node], values: Mapping[Node, Any]) -> dict[Node, Any]:
    """Values of nodes in float64, whatever precision the network computes in.

    Args:
        nodes: in the order of computation.
        values: of whatever else they read.
    """
    known = {node: _double(value) for node, value in values.items()}
    for node in nodes:
        args, kwargs = _filled(node, known)
        known[node] = _double(_target(node)(*args, **kwargs))
    return known


def operation(node: Node) -> str:
    """Name of a node's operation without its overload, as "conv2d"."""
    return node.target.__name__.partition(".")[0]


def _reads(node: Node) -> list[Node]:
    """Nodes whose values, not shapes, a node reads."""
    return node.all_input_nodes[1 if operation(node) in _OF_SHAPE else 0 :]


def _factors(node: Node) -> list[Node]:
    """What a product multiplies, twice if it is a square."""
    arguments = (node.args[i] for i in _FACTORS[operation(node)] if i < len(node.args))
    return [factor for factor in _flattened(arguments) if isinstance(factor, Node)]


def _is_contracted(node: Node) -> bool:
    """Whether a product is summed over elements in which both its factors differ, as a matrix product is.

    The sum of a square is none: it is a variance or a length, and those are what norms are made of.
    """
    if operation(node) != "mul":
        return False
    factors = [factor.meta["val"].shape for factor in _factors(node)]
    if len(factors) < 2 or len(set(_factors(node))) < 2:
        return False
    numbered = (torch.arange(shape.numel()).reshape(shape) for shape in factors)
    return _adds_up(node, [numbers.expand(node.meta["val"].shape) for numbers in numbered])


def _adds_up(node: Node, numbers: list[Tensor]) -> bool:
    """Whether a sum that reads a value, however its elements were moved, adds up different ones of both factors.

    Args:
        node: the product, or the product moved.
        numbers: for each of its elements which one of the first factor it is made of, and which of the second.
    """
    for user in (user for user in node.users if user.op == "call_function"):
        name = operation(user)
        if name in _COPIES and _adds_up(user, numbers):
            return True
        if name in _MOVES and _adds_up(user, [_moved(user, node, which) for which in numbers]):
            return True
        if name in ("sum", "mean"):
            named = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim")
            axes = tuple(named) if isinstance(named, list | tuple) else () if named is None else (named,)
            if torch.stack([which.amax(axes) != which.amin(axes) for which in numbers]).all(0).any():
                return True
    return False


def _moved(node: Node, source: Node, numbers: Tensor) -> Tensor:
    args, kwargs = _filled(node, {source: numbers})
    return _target(node)(*args, **kwargs)


def _returned(program: ExportedProgram) -> Iterator[Node]:
    """What a network returns; what it writes into buffers is none of it."""
    (returned,) = program.graph.output_node().args
    for node, spec in zip(returned, program.graph_signature.output_specs, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, Node):
            yield node


def _flattened(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        yield from argument if isinstance(argument, list | tuple) else (argument,)


def _tensors(node: Node) -> list[Tensor]:
    """What a node puts out, without values."""
    return [value for value in _flattened([node.meta["val"]]) if isinstance(value, Tensor)]


def _is_floating(node: Node) -> bool:
    return all(value.is_floating_point() for value in _tensors(node))


def _takes_parameters(node: Node) -> bool:
    """Whether what a node does with parameters cannot be a hidden layer."""
    name = operation(node)
    if name in _NORMS | _AFFINE | _AFFINE_IN_FIRST | {"getitem"}:
        return True
    return torch.Tag.pointwise in node.target.tags


def _filled(node: Node, known: Mapping[Node, Any]) -> tuple[Any, Any]:
    """A node's arguments, with values in the places of nodes and float64 in that of lower precisions.

    Where a constant reads the shape of an activation, which has no value yet, a tensor of that shape stands in.
    """

    def fill(argument: Any) -> Any:
        if isinstance(argument, Node):
            return known[argument] if argument in known else torch.empty(argument.meta["val"].shape)
        return torch.float64 if argument in (torch.float32, torch.float16, torch.bfloat16) else argument

    return map_aggregate((node.args, node.kwargs), fill)


def _target(node: Node) -> Any:
    """A node's function. Values may lie in memory otherwise than when the graph was made, so no view is a must."""
    views = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
    return torch.ops.aten.reshape.default if node.target in views else node.target


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """`nn.MultiheadAttention` becomes one opaque operation at inference if it is let."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
