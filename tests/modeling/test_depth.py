from functools import partial

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from modeling import graph
from modeling.affine import NotAffineError, check, prove
from modeling.depth import audit, main, measure
from modeling.rrdb import RRDB
from modeling.two_layer import TwoLayerBody
from modeling.zoo import build_model

IMAGE = torch.zeros(1, 3, 32, 32)
VECTOR = torch.zeros(1, 4)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Rounding depends on the weights drawn; one draw in five of a long chain passes the bound of proofs."""
    torch.manual_seed(0)


def numbers(network, *inputs):
    depth = audit(network, *inputs)
    return depth.d1, depth.d2, depth.d3


class Function(nn.Module):
    """A network whose forward is a function of its parts and the input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def linear():
    return nn.Linear(4, 4)


@pytest.mark.parametrize("layers", [34, 50])
def test_resnets_of_torchvision(layers):
    network = torchvision.models.get_model(f"resnet{layers}")
    depth = audit(network, IMAGE)
    assert (depth.d0, depth.d1, depth.d2, depth.d3) == (6, layers, layers, layers)
    assert not any("downsample" in name for step in depth.path for name in step.parameters)


@pytest.mark.parametrize(("body", "layers"), [("resnet10", 10), ("resnet18", 18), ("resnet34", 34)])
def test_resnets_of_ours(body, layers):
    network = build_model(body, "any-channel", "RGB", 5)
    depth = audit(network.materialize("RG"), IMAGE[:, :2])
    assert (depth.d0, depth.d1, depth.d2, depth.d3) == (6, layers, layers, layers)
    assert depth.path[0].parameters == ("stem.weight",)
    assert depth.path[-1].parameters == ("body.fc.weight",)


def test_generated_kernel_is_one_layer_and_its_making_none():
    depth = audit(build_model("resnet10", "any-channel", "RGB", 5), IMAGE[:, :2], "RG")
    assert (depth.d0, depth.d1, depth.d2, depth.d3) == (6, 10, 10, 10)
    first = depth.path[0]
    assert (first.kind, first.weight, first.region) == ("conv2d", (64, 2, 7, 7), 1)
    assert {"stem.conv.templates", "stem.conv.mixing", "stem.conv.context.weight"} < set(first.parameters)


def test_kernel_made_from_the_image_lies_on_the_path():
    depth = audit(build_model("resnet10", "attention", "RGB", 5), IMAGE)
    assert [step.kind for step in depth.path[:5]] == ["linear", "linear", "matmul", "conv2d", "conv2d"]
    assert depth.path[3].region is None
    assert (depth.d1, depth.d2, depth.d3, depth.products) == (13, 12, 12, 1)


def test_path_is_told_layer_by_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    first, second = audit(network, IMAGE[..., :4, :4]).path
    assert (first.kind, first.parameters, first.weight) == ("conv2d", ("0.weight",), (4, 3, 3, 3))
    assert (first.output, first.region) == ((1, 4, 4, 4), 1)
    assert (second.kind, second.parameters, second.weight) == ("linear", ("3.weight",), (5, 64))
    assert (second.output, second.region) == ((1, 5), 2)


@pytest.mark.parametrize("trainable", [True, False])  # without gradients PyTorch would fuse the whole block
def test_transformer_block(trainable):
    block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True, batch_first=True)
    depth = audit(block.requires_grad_(trainable), torch.zeros(1, 3, 8))
    assert [step.kind for step in depth.path] == ["linear", "matmul", "matmul", "linear", "linear", "linear"]
    assert (depth.d1, depth.d2, depth.d3, depth.products) == (6, 4, 4, 2)


def test_vision_transformer():
    network = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)
    traced = graph.trace(network, IMAGE[..., :16, :16])
    depth = measure(network, traced)
    assert (depth.d0, depth.d1, depth.d2, depth.d3) == (3, 1 + 2 * 6 + 1, 1 + 2 * 4 + 1, 1 + 2 * 4 + 1)
    assert check(traced).error < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_two_products_and_its_values_pass_one(causal):
    attend = partial(F.scaled_dot_product_attention, is_causal=causal)
    deep = Function(lambda self, x: attend(self.a(x), x, x), a=linear())
    values = Function(lambda self, x: attend(x.detach(), x.detach(), self.a(x)) - x, a=linear())
    x = torch.zeros(1, 1, 3, 4)
    assert numbers(deep, x) == (3, 1, 1)
    assert numbers(values, x) == (2, 1, 1)
    assert prove(deep, x).error < 1e-12


def test_learned_queries_are_a_weight():
    network = Function(
        lambda self, x: F.scaled_dot_product_attention(self.q, x, x), q=nn.Parameter(torch.randn(1, 1, 2, 4))
    )
    depth = audit(network, torch.zeros(1, 1, 3, 4))
    assert [step.parameters for step in depth.path] == [("q",), ()]
    assert (depth.d1, depth.d2) == (2, 1)


def dense_block(features, growth):
    """As in ESRGAN, written anew: x + 0.2·f(x), five convolutions that see all before."""
    convs = nn.ModuleList(nn.Conv2d(features + i * growth, growth, 3, padding=1) for i in range(4))
    convs.append(nn.Conv2d(features + 4 * growth, features, 3, padding=1))

    def forward(self, x):
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu_(conv(torch.cat(seen, 1)), 0.2))
        return x + self.convs[-1](torch.cat(seen, 1)).mul_(0.2)

    return Function(forward, convs=convs)


def test_products_that_are_summed_are_layers():
    """A linear map in other words: seven of them, with activations in between."""

    def forward(self, x):
        x = self.a(x).relu()
        for weight in self.weights:
            x = (x.unsqueeze(1) * weight).sum(-1).relu()
        return self.b(x)

    weights = nn.ParameterList(nn.Parameter(torch.randn(4, 4)) for _ in range(5))
    network = Function(forward, a=linear(), b=linear(), weights=weights)
    assert numbers(network, VECTOR) == (7, 7, 7)
    assert prove(network, VECTOR).error < 1e-12
    pooled = Function(lambda self, x: (x * self.w).mean(), w=nn.Parameter(torch.randn(1, 4)))
    assert numbers(pooled, VECTOR) == (1, 1, 1)


@pytest.mark.parametrize(
    ("moved", "layers"),
    [
        (lambda y: y.permute(2, 0, 1).sum(0), 1),  # over what was the last axis
        (lambda y: -y.bfloat16().mT.flatten(1)[:, :4].mean(1), 0),  # of one column of weights, of one input
        (lambda y: y.flatten(1).sum(1), 1),
        (lambda y: y.unflatten(2, (2, 2)).sum((1, 3)), 1),
        (lambda y: y.sum(1), 0),  # over an axis that the input does not have
    ],
)
def test_products_are_followed_to_the_sum_however_they_are_moved(moved, layers):
    weight = nn.Parameter(torch.randn(4, 4))
    network = Function(lambda self, x: moved(x.unsqueeze(1) * self.weight), weight=weight)
    assert audit(network, VECTOR).d1 == layers


def test_products_of_activations_that_are_summed_are_layers():
    pair = Function(lambda self, x: (self.a(x)[:, None] * self.b(x)[:, :, None]).sum(1), a=linear(), b=linear())
    depth = audit(Function(lambda self, x: (self.a(x) * self.b(x)).sum(-1), a=linear(), b=linear()), VECTOR)
    assert (depth.d1, depth.d2, depth.products) == (2, 1, 1)
    assert numbers(pair, VECTOR) == (1, 1, 1)  # each is summed along an axis that the other does not have


@pytest.mark.parametrize(
    "gate",
    [
        lambda self, x: (x * self.gain).mean((2, 3)),  # as of a LayerScale, before pooling
        lambda self, x: (x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)),  # squeeze and excitation
        lambda self, x: (x * x).mean((2, 3)),  # what a variance is made of
    ],
)
def test_gains_gates_and_squares_are_none(gate):
    network = Function(
        lambda self, x: gate(self, self.conv(x)),
        conv=nn.Conv2d(3, 4, 3),
        gain=nn.Parameter(torch.ones(1, 4, 1, 1)),
    )
    assert audit(network, IMAGE).d1 == 1


def test_what_is_written_into_buffers_is_no_output():
    def forward(self, x):
        y = self.a(x)
        self.kept.copy_(self.b(y.relu()))
        return y

    network = Function(forward, a=linear(), b=linear())
    network.register_buffer("kept", torch.zeros(1, 4))
    assert numbers(network, VECTOR) == (1, 1, 1)


def test_products_by_scattering_are_not_affine():
    def forward(self, x):
        y = self.a(x)
        return self.b(y.scatter(1, torch.tensor([[1, 0, 3, 2]]), y, reduce="multiply"))

    network = Function(forward, a=linear(), b=linear())
    assert numbers(network, VECTOR) == (2, 2, 2)
    assert prove(network, VECTOR).error < 1e-12


def test_residual_in_residual_dense_block():
    by_hand = Function(
        lambda self, x: x + 0.2 * self.f(x), f=nn.Sequential(*(dense_block(4, 2) for _ in range(3)))
    )
    x = torch.zeros(1, 4, 3, 3)
    for block in (by_hand, RRDB(4, 2)):
        traced = graph.trace(block, x)
        depth = measure(block, traced)
        # The last convolution of a dense block and the first of the next are one affine map.
        assert (depth.d1, depth.d2, depth.d3) == (15, 13, 15)
        proof = check(traced)
        assert proof.error < 1e-12
        assert (proof.fused, proof.superposed) == (13, 0)


@pytest.mark.parametrize("steps", [1, 4])
def test_recurrence_counts_its_weight_once(steps):
    def forward(self, x):
        state = x
        for _ in range(steps):
            state = torch.tanh(self.cell(state) + x)
        return self.out(state)

    network = Function(forward, cell=linear(), out=linear())
    assert numbers(network, VECTOR) == (steps + 1, steps + 1, 2)


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_modules_are_unrolled(cell):
    network = Function(lambda self, x: self.cell(x)[0], cell=cell(4, 4))
    assert numbers(network, torch.zeros(5, 1, 4)) == (5, 5, 2)  # the first state is no activation


def test_weight_made_anew_at_every_step_is_one_weight_and_slices_of_a_parameter_are_several():
    tied = Function(lambda self, x: self.a(self.a(x).relu()), a=nn.utils.parametrizations.weight_norm(linear()))
    assert numbers(tied, VECTOR) == (2, 2, 1)
    stacked = Function(
        lambda self, x: F.linear(F.linear(x, self.w[0]).relu(), self.w[1]), w=nn.Parameter(torch.randn(2, 4, 4))
    )
    assert numbers(stacked, VECTOR) == (2, 2, 2)


def test_modules_that_share_a_parameter_share_a_weight():
    a, b = linear(), linear()
    b.weight = a.weight
    assert numbers(nn.Sequential(a, nn.ReLU(), b), VECTOR) == (2, 2, 1)


IMAGES = torch.zeros(1, 4, 6, 6)
conv = partial(nn.Conv2d, 4, 4, 3, padding=1)
AFFINE = {
    "nothing": nn.Identity(),
    "dropout": nn.Dropout(0.5),
    "norm": nn.BatchNorm2d(4),
    "depthwise": conv(groups=4),
    "pooling": nn.AvgPool2d(2),
    "adaptive pooling": nn.AdaptiveAvgPool2d(3),
    "padding": nn.ReflectionPad2d(1),
    "upsampling": nn.Upsample(scale_factor=2, mode="bilinear"),
    "shuffle": nn.PixelShuffle(2),
    "mean": Function(lambda self, x: x - x.mean((2, 3), keepdim=True)),
    "reshape": Function(lambda self, x: x.flatten(2).mT.unflatten(1, (6, 6)).permute(0, 3, 1, 2).flip(2)),
    "split": Function(lambda self, x: torch.cat([x.chunk(2, 1)[1], x[:, :2].roll(1, 2)], 1)),
    "residual": Function(lambda self, x: x + self.a(x) - self.b(x) / 2, a=conv(), b=nn.Conv2d(4, 4, 1)),
    "gain": Function(
        lambda self, x: self.gain * x + self.gain.exp(), gain=nn.Parameter(torch.arange(1.0, 5)[:, None, None])
    ),
    "mask": Function(lambda self, x: torch.where(torch.eye(6) > 0, x, 1.0).masked_fill(torch.eye(6) > 0, 2.0)),
    "in place": Function(lambda self, x: torch.zeros_like(x).index_add_(1, torch.tensor([0]), x[:, :1])),
    "assignment": Function(lambda self, x: assigned(x)),
    "half precision": Function(lambda self, x: x.bfloat16().float()),
    "a filter": Function(lambda self, x: F.conv2d(x, torch.ones(4, 1, 3, 3), groups=4)),
}
NONLINEAR = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(inplace=True),
    "softmax": nn.Softmax(1),
    "max pooling": nn.MaxPool2d(2, return_indices=False),
    "layer norm": nn.LayerNorm(6),
    "group norm": nn.GroupNorm(2, 4),
    "instance norm": nn.InstanceNorm2d(4, affine=True),
    "norm of the batch": Function(lambda self, x: F.batch_norm(x, None, None, training=True)),
    "deviation": Function(lambda self, x: x + x.std((2, 3), keepdim=True)),
    "square": Function(lambda self, x: x * x),
    "gate": Function(lambda self, x: x * x.mean((2, 3), keepdim=True)),
    "quotient": Function(lambda self, x: x / (1 + x.abs())),
    "rounding": Function(lambda self, x: torch.div(x, 2.0, rounding_mode="floor")),
    "choice": Function(lambda self, x: x.gather(1, x.argsort(1))),
    "condition": Function(lambda self, x: torch.where(x > 0, x, 0.1 * x)),
    "prelu": nn.PReLU(4),
    "integers": Function(lambda self, x: x + x.long()),
}


def assigned(x):
    full = torch.zeros(1, 4, 6, 6)
    full[:, [0, 2]] = x[:, [1, 0]]
    full[:, 1].copy_(x[:, 3])
    return full


def chain(parts):
    """A convolution, then each part and behind it one more, which takes whatever shape comes."""
    network = nn.Sequential(conv())
    for part in parts:
        network.extend([part, nn.LazyConv2d(4, 1), nn.AdaptiveAvgPool2d(6)])
    network.eval()(IMAGES)
    for module in network.modules():  # whose weights were drawn when this file was read
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def test_affine_operations_between_layers_leave_one_map():
    """Regions are compared, since they tell which operation separates layers."""
    network = chain(AFFINE.values())
    traced = graph.trace(network, IMAGES)
    depth = measure(network, traced)
    assert {step.parameters[0]: step.region for step in depth.path if step.region != 1} == {}
    layers_inside = sum(name in ("depthwise", "residual") for name in AFFINE)
    assert (depth.d1, depth.d2) == (1 + len(AFFINE) + layers_inside, 1)
    proof = check(traced)
    assert (proof.fused, proof.superposed) == (1, 0)
    assert proof.error < 1e-12


def test_nonlinear_operations_between_layers_separate_maps():
    network = chain(NONLINEAR.values())
    traced = graph.trace(network, IMAGES)
    depth = measure(network, traced)
    assert [step.region for step in depth.path] == list(range(1, len(NONLINEAR) + 2))
    assert depth.d1 == depth.d2 == len(NONLINEAR) + 1
    assert check(traced).error < 1e-12


@pytest.mark.parametrize(
    ("taken", "part"), [("relu", nn.ReLU()), ("max_pool2d", nn.MaxPool2d(2)), ("layer_norm", nn.LayerNorm(6))]
)
def test_wrong_claim_is_caught(monkeypatch, taken, part):
    network = chain([part])
    monkeypatch.setattr(graph, "_AFFINE", graph._AFFINE | {taken})
    traced = graph.trace(network, IMAGES)
    assert measure(network, traced).d2 == 1
    with pytest.raises(NotAffineError, match=taken):
        check(traced)


def test_fusing_alone_catches_a_wrong_claim(monkeypatch):
    network = chain([nn.ReLU()])
    monkeypatch.setattr(graph, "_AFFINE", graph._AFFINE | {"relu"})
    monkeypatch.setattr("modeling.affine._Superposition.error", lambda self, node: 0.0)
    with pytest.raises(NotAffineError):
        prove(network, IMAGES)


def test_large_maps_are_superposed():
    proof = prove(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), IMAGE)
    assert (proof.fused, proof.superposed) == (0, 2)
    assert proof.error < 1e-12


def test_separate_branches_are_one_map():
    network = Function(lambda self, x: self.a(x) + self.b(self.c(x)), a=linear(), b=linear(), c=linear())
    assert numbers(network, VECTOR) == (2, 1, 2)


def test_graph_computes_what_the_network_does():
    torch.manual_seed(0)
    network = build_model("resnet10", "any-channel", "RGB", 5).eval()
    x = torch.randn(1, 2, 32, 32)
    found = graph.trace(network, x, "RG")
    values = graph.evaluate(found.constants + found.nodes, found.values | {found.inputs[0]: x})
    with torch.no_grad():
        assert torch.allclose(values[found.outputs[0]].float(), network(x, "RG"), rtol=1e-3, atol=1e-4)


def test_network_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    audit(network, IMAGE)
    prove(network, IMAGE)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_blocks_are_those_that_a_network_names():
    parts = {"a": linear(), "b": nn.Sequential(linear(), nn.ReLU(), linear()), "norm": nn.BatchNorm1d(4)}
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)
    assert audit(network, VECTOR).d0 == 2  # a norm has no layer
    network.blocks = ["a", "b.0", "b.2"]
    assert audit(network, VECTOR).d0 == 3
    network.blocks = [network.b[0], network.b[2]]
    assert audit(network, VECTOR).d0 == 3  # and a
    stem_and_body = nn.Sequential()
    stem_and_body.add_module("stem", linear())
    stem_and_body.add_module("body", network)
    assert audit(stem_and_body, VECTOR).d0 == 4


def test_two_layer_network_has_four_blocks():
    body = TwoLayerBody(nn.Conv2d(64, 8, 3), nn.Conv2d(8, 8, 3), nn.Sequential(nn.Flatten(), nn.Linear(1152, 2)))
    network = build_model("resnet10", "plain", "RGB", 5)
    network.body = body
    depth = audit(network.materialize(), IMAGE)
    assert (depth.d0, depth.d1, depth.d2, depth.d3) == (4, 4, 2, 4)


@pytest.mark.parametrize(
    ("function", "parameter", "message"),
    [
        (lambda self, x: torch.cdist(x, self.p), torch.randn(3, 4), "_cdist|cdist"),
        (lambda self, x: self.p[:, :1] + 1, torch.randn(3, 4), "no output"),
        (lambda self, x: torch.fft.fft(x @ self.p).real, torch.randn(4, 4), "complex"),
    ],
)
def test_what_no_rule_covers_is_refused(function, parameter, message):
    with pytest.raises(ValueError, match=message):
        audit(Function(function, p=nn.Parameter(parameter)), VECTOR)


# Random networks: each operation reads values made before it, which are counted from the input, number 0.
OPERATIONS = {"linear": 1, "tied": 1, "relu": 1, "double": 1, "add": 2, "multiply": 2, "matmul": 2}


@st.composite
def programs(draw):
    program = []
    for i in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(sorted(OPERATIONS)))
        program.append((name, *(draw(st.integers(max(0, i - 3), i)) for _ in range(OPERATIONS[name]))))
    return program


class Program(nn.Module):
    """A random network on 1×4×4."""

    def __init__(self, program):
        super().__init__()
        self.program, self.layers, self.shared = program, nn.ModuleList(linear() for _ in program), linear()

    def forward(self, x):
        values = [x]
        compute = {
            "tied": self.shared,
            "relu": F.relu,
            "double": lambda a: 2 * a,
            "add": torch.add,
            "multiply": torch.mul,
            "matmul": torch.matmul,
        }
        for layer, (name, *sources) in zip(self.layers, self.program, strict=True):
            values.append((compute | {"linear": layer})[name](*(values[i] for i in sources)))
        return values[-1]


def all_paths(program, end):
    """Every path from the input to a value, as the names of its operations."""
    if end == 0:
        return [[]]
    name, *sources = program[end - 1]
    return [[*path, name] for source in sources for path in all_paths(program, source)]


def maps_on(path):
    """Affine maps with layers, found as a text is split: at everything nonlinear."""
    letters = {"linear": "L", "tied": "L", "relu": " ", "multiply": " ", "matmul": " ", "add": "", "double": ""}
    return len("".join(letters[name] for name in path).split())


@settings(max_examples=10)
@given(programs())
def test_longest_path_of_random_networks(program):
    network = Program(program)
    traced = graph.trace(network, torch.zeros(1, 4, 4))
    depth = measure(network, traced)
    paths = all_paths(program, len(program))
    layers = [sum(name in ("linear", "tied", "matmul") for name in path) for path in paths]
    assert depth.d1 == max(layers) == len(depth.path)
    assert depth.d2 == max(map(maps_on, paths))
    longest = [path for path, count in zip(paths, layers, strict=True) if count == depth.d1]
    assert max((step.region or 0 for step in depth.path), default=0) == max(map(maps_on, longest))
    assert depth.d2 <= depth.d1
    assert depth.d3 <= depth.d1 - depth.products
    assert check(traced).error < 1e-9


@settings(max_examples=5)
@given(programs(), st.data())
def test_a_relu_more_makes_no_network_shallower(program, data):
    place = data.draw(st.integers(1, len(program)))
    later = [(name, *(i + (i >= place) for i in sources)) for name, *sources in program[place:]]
    more = [*program[:place], ("relu", place), *later]  # all that read this value read the ReLU's now
    x = torch.zeros(1, 4, 4)
    before, after = audit(Program(program), x), audit(Program(more), x)
    assert after.d1 == before.d1
    assert after.d2 >= before.d2


def test_program_prints_path_and_numbers(capsys):
    main(["resnet10", "--size", "64", "--channels", "RG", "--classes", "7"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["operation", "weight", "its", "shape", "output", "affine", "map"]
    assert lines[1].split() == ["1", "conv2d", "stem.weight", "64×2×7×7", "1×64×32×32", "1"]
    assert lines[10].split() == ["10", "linear", "body.fc.weight", "7×512", "1×7", "10"]
    assert [line.split()[:2] for line in lines[12:]] == [["D0", "6"], ["D1", "10"], ["D2", "10"], ["D3", "10"]]


@pytest.mark.parametrize(("options", "depth"), [([], 4), (["--deep"], 6), (["--pooling", "covariance"], 15)])
def test_program_takes_what_our_bodies_are_built_with(options, depth, capsys):
    main(["strict", "--size", "32", "--width", "0.1", *options])
    assert f"\nD1 {depth:3} " in capsys.readouterr().out


def test_program_knows_ours_and_theirs_apart(capsys):
    main(["torchvision/resnet18", "--size", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "conv2d", "conv1.weight", "64×3×7×7", "1×64×32×32", "1"]
    assert [line.split()[:2] for line in lines[20:]] == [["D0", "6"], ["D1", "18"], ["D2", "18"], ["D3", "18"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["squeezenet1_1"],
            "'squeezenet1_1'; did you mean torchvision/squeezenet1_1? There are",
        ),
        (["resnet43"], "did you mean resnet34?"),
        (["nothing"], "no network is called 'nothing'. There are resnet10, "),
        (["resnet10", "--deep"], "resnet10 has no --deep; it belongs to strict, matched"),
        (["torchvision/resnet18", "--width", "0.5"], "torchvision/resnet18 has no --width"),
        (["strict", "--classes", "-1"], "strict does not take"),
        (["torchvision/resnet10"], "no network is called 'torchvision/resnet10'"),
        (["resnet10", "--channels", "RR"], "channel given twice"),
        (["torchvision/squeezenet1_1", "--channels", "RG"], "does not take 2 channels of 64 px"),
    ],
)
def test_program_refuses_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
