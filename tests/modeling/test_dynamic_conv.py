import copy
import socket
import subprocess
import sys
from random import Random
from shutil import which

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modeling import ChannelConv2d, ChannelSet
from modeling.norms import SubsetBatchNorm2d

RGB = ("R", "G", "B")
WAVELENGTHS = {"R": 0.665, "G": 0.56, "B": 0.49}
SETS = [str(chosen) for chosen in ChannelSet.all_of(RGB)]


def conv(vocabulary="RGB", out=16, kernel=3, trained=True, seed=0, **options) -> ChannelConv2d:
    """A module; `trained` moves its zero-initialised parts away from zero, as training would."""
    torch.manual_seed(seed)
    module = ChannelConv2d(vocabulary, out, kernel, **options)
    if trained:
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def bands(count: int) -> dict[str, float]:
    """A vocabulary of evenly spaced bands."""
    return {name: 0.4 + 0.05 * i for i, name in enumerate("abcdefghijklmnop"[:count])}


@settings(deadline=None)
@given(data=st.data(), count=st.integers(1, 16), described=st.booleans(), seed=st.integers(0, 99))
def test_permuting_channels_with_their_names_changes_nothing(data, count, described, seed):
    vocabulary = tuple(bands(count))
    module = conv(vocabulary, seed=seed, padding=1, descriptors=bands(count) if described else None)
    names = data.draw(st.lists(st.sampled_from(vocabulary), min_size=1, unique=True))
    order = data.draw(st.permutations(range(len(names))))
    height, width = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    x = torch.randn(2, len(names), height, width, generator=torch.Generator().manual_seed(seed))
    y = module(x, names)
    shuffled = module(x[:, order], [names[i] for i in order])
    assert (y - shuffled).abs().max() <= 1e-5
    if len(names) > 1:  # and the names do matter
        assert (module(x, [*names[1:], names[0]]) - y).abs().max() > 1e-3


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
@pytest.mark.parametrize("kernel", [3, 7])
def test_variance_is_that_of_he_for_every_set_at_initialisation(kernel, descriptors):
    module = conv(out=256, kernel=kernel, trained=False, bias=False, descriptors=descriptors)
    for chosen in ChannelSet.all_of(RGB):
        x = torch.randn(4, len(chosen), 24, 24)
        assert 1.6 < module(x, chosen).var().item() < 2.4, str(chosen)  # He: 2 for inputs of variance 1


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("count", range(1, 17))
def test_variance_is_that_of_he_for_every_size_of_vocabulary(count, described):
    names = tuple(bands(count))
    module = conv(names, 256, 5, trained=False, bias=False, descriptors=bands(count) if described else None)
    known = module.vocabulary
    if described:
        module.describe("between", 0.43)
        module.describe("far", 11.0)
        known = module.known
    for seed in range(4):
        chosen = ChannelSet.sample(known, Random(seed))
        white = torch.randn(4, len(chosen), 20, 20)
        assert 1.6 < module(white, chosen).var().item() < 2.4, str(chosen)
        within = ChannelSet.sample(module.vocabulary, Random(seed))
        gray = white[:, :1].expand(-1, len(within), -1, -1)  # adds up if kernels are alike, as CHAMMI's are
        assert 1.4 < module(gray, within).var().item() < 2.7, str(within)


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
def test_kernels_of_different_channels_start_uncorrelated(descriptors):
    kernel = conv(out=256, kernel=7, trained=False, descriptors=descriptors).kernel()
    correlation = torch.corrcoef(kernel.detach().transpose(0, 1).flatten(1))
    assert (correlation - torch.eye(3)).abs().max() < (0.3 if descriptors else 0.1)


def test_a_described_channel_is_like_its_neighbours_in_wavelength():
    module = conv(out=64, kernel=5, trained=False, descriptors=WAVELENGTHS)
    for name, wavelength in {"red": 0.665, "reddish": 0.655, "green": 0.561, "nir": 0.84}.items():
        module.describe(name, wavelength)
    kernel = module.kernel(["R", "G", "B", "red", "reddish", "green", "nir"]).detach()
    correlation = torch.corrcoef(kernel.transpose(0, 1).flatten(1))
    assert torch.allclose(kernel[:, 3], kernel[:, 0], atol=1e-6)
    assert correlation[4, 0] > 0.95 and correlation[5, 1] > 0.99
    assert correlation[6, :3].abs().max() < 0.4


def test_described_channels_work_like_known_ones():
    module = conv(descriptors=WAVELENGTHS, padding=1)
    module.describe("nir", 0.84)
    x = torch.randn(2, 4, 9, 9)
    y = module(x, ["nir", "R", "G", "B"])
    assert (module(x[:, [1, 2, 3, 0]], ["R", "G", "B", "nir"]) - y).abs().max() <= 1e-5
    assert (module.materialize(["nir", "R", "G", "B"])(x) - y).abs().max() <= 1e-5
    assert torch.equal(copy.deepcopy(module)(x[:, :1], "nir"), module(x[:, :1], ("nir",)))
    fresh = conv(descriptors=WAVELENGTHS, padding=1, seed=1)
    fresh.load_state_dict(module.state_dict())
    fresh.describe("nir", 0.84)
    assert torch.equal(fresh(x, ["nir", "R", "G", "B"]), y)


def test_channels_are_described_once_and_only_by_descriptors():
    module = conv(descriptors=WAVELENGTHS)
    with pytest.raises(ValueError, match=r"unknown channel 'nir'.*describe"):
        module(torch.randn(1, 2, 8, 8), ["R", "nir"])
    with pytest.raises(ValueError, match="'R' is known already"):
        module.describe("R", 0.7)
    with pytest.raises(ValueError, match="length 2, not 1"):
        module.describe("nir", (0.84, 0.1))
    assert module.known == RGB
    with pytest.raises(ValueError, match=r"learned ids.*'nir' has none"):
        conv().describe("nir", 0.84)


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 0},
        {"kernel_size": (3, 3, 3)},
        {"padding": "bogus"},
        {"padding": "same", "stride": 2},
        {"out_channels": 0},
        {"templates": 0},
    ],
)
def test_impossible_geometry_is_refused(geometry):
    with pytest.raises(ValueError):
        ChannelConv2d("RGB", **{"out_channels": 4, "kernel_size": 3, **geometry})


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
def test_starts_anew_as_it_started(descriptors):
    """Also where memory was empty before, and each layer is told to start by itself, as loaders do."""
    with torch.device("meta"):
        module = ChannelConv2d("RGB", 256, 5, descriptors=descriptors)
        assert module(torch.randn(1, 2, 8, 8), "RG").shape == (1, 256, 4, 4)
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.fill_(float("nan"))
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert not any(parameter.isnan().any() for parameter in module.parameters())
    for name in SETS:
        assert 1.6 < module(torch.randn(4, len(name), 24, 24), name).var().item() < 2.4, name


def test_the_length_of_an_embedding_means_nothing():
    module = conv()
    wanted = module.kernel("RG")
    module.embedding.data *= 3
    assert torch.allclose(module.kernel("RG"), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_materialized_conv_is_in_the_same_precision_and_mode(dtype, training):
    module = conv().to(dtype).train(training)
    plain, x = module.materialize("RG"), torch.randn(1, 2, 8, 8, dtype=dtype)
    assert plain.weight.dtype == dtype
    assert plain.training == training
    assert torch.allclose(plain(x), module(x, "RG"))


@pytest.mark.parametrize("by_size", [False, True])
def test_materialized_conv_takes_in_the_norm_behind_it(by_size):
    module, norm = conv(), SubsetBatchNorm2d("RGB", 16, by_size=by_size)
    for name in ("RG", "R"):
        for _ in range(3):
            norm(2 + 5 * torch.randn(4, 16, 5, 5), name)
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.uniform_(-1, 1)
    norm.eval()
    x = torch.randn(2, 2, 8, 8)
    assert torch.allclose(module.materialize("GR", norm)(x), norm(module(x, "GR"), "GR"), atol=1e-5)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 3, "bias": False}, {"dilation": 2, "padding": 1}]
)
@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 16, 11), (2, 13, 40)])
def test_materialized_conv_computes_the_same(name, options, shape):
    kernel = 3 if "dilation" in options else 7
    module = conv(kernel=kernel, **options)
    batch, height, width = shape
    x = torch.randn(batch, len(name), height, width)
    plain = module.materialize(name)
    assert type(plain) is torch.nn.Conv2d
    assert (plain(x) - module(x, name)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (3, 5), "stride": (2, 1), "padding": (0, 3), "dilation": (1, 2)},
        {"kernel": 4, "padding": "same", "dilation": 3},
        {"kernel": 1, "stride": 4, "padding": "valid"},
        {"kernel": (1, 2), "bias": False},
    ],
)
def test_geometry_is_that_of_conv2d(options):
    module, x = conv(**options), torch.randn(2, 2, 11, 13)
    reference = nn.Conv2d(2, 16, options.pop("kernel"), **options)
    reference.weight.data = module.kernel("GB").detach()
    if module.bias is not None:
        reference.bias.data = module.bias.detach()
    assert torch.allclose(module(x, "GB"), reference(x), atol=1e-6)
    assert (module.materialize("GB")(x) - reference(x)).abs().max() <= 1e-5


def test_kernel_depends_on_the_other_channels_present():
    module = conv()
    alone, among = module.kernel("R")[:, 0], module.kernel("RGB")[:, 0] / module.kernel("R").shape[1]
    ratio = alone / among
    assert ratio.std() > 0.1  # more than the common gain √(C0/|S|)


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
def test_every_parameter_gets_a_gradient_from_any_set(descriptors):
    """A parameter without one would make DDP wait for it for ever."""
    module = conv(descriptors=descriptors)
    for name in SETS:
        module.zero_grad()
        module(torch.randn(2, len(name), 8, 8), name).square().sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
def test_kernel_is_made_in_float32_under_autocast(descriptors):
    module, x = conv(descriptors=descriptors), torch.randn(2, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.kernel("RG").dtype == torch.float32
        assert module(x, "RG").dtype == torch.bfloat16


def test_half_precision_input_under_autocast_keeps_small_gradients():
    """Loaders hand out float16 on GPUs; gradients must not pass through it, where they would vanish."""
    module, x = conv(), torch.randn(2, 2, 8, 8).half()
    with torch.autocast("cpu", torch.bfloat16):
        loss = 1e-9 * module(x, "RG").float().mean()
    loss.backward()
    assert (module.templates.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
def test_compiled_once_for_each_number_of_channels(descriptors):
    module, graphs = conv(descriptors=descriptors), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=False)
    for name in [*SETS, *SETS]:
        x = torch.randn(2, len(name), 8, 8)
        assert torch.allclose(compiled(x, module.encode(name)), module(x, name), atol=1e-6)
    assert len(graphs) == 3
    assert torch.allclose(compiled(x, "B"), module(x, "B"), atol=1e-6)  # names work too, with a graph for each
    torch.compiler.reset()


@pytest.mark.slow  # half a minute of g++
@pytest.mark.skipif(
    which("g++") is None or " " in torch.__file__, reason="inductor wants g++, and a path without a space"
)
def test_code_that_inductor_makes_for_inference():
    module, x = conv(out=64, kernel=7), torch.randn(2, 2, 8, 8)  # large enough for vectors
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x, "RB"), module(x, "RB"), atol=1e-5)
    torch.compiler.reset()


@torch._dynamo.config.patch(recompile_limit=16)
def test_compiled_for_more_sizes_than_compilers_expect():
    module, graphs = conv(tuple(bands(12))), []
    torch.compiler.reset()
    compiled = torch.compile(
        module, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True, dynamic=False
    )
    for seed in range(40):
        chosen = ChannelSet.sample(module.vocabulary, Random(seed))
        x = torch.randn(1, len(chosen), 4, 4)
        assert torch.allclose(compiled(x, module.encode(chosen)), module(x, chosen), atol=1e-6)
    assert 8 < len(graphs) <= 12
    torch.compiler.reset()


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
def test_compiled_gradients_are_those_of_eager_mode(descriptors):
    module = conv(descriptors=descriptors)
    compiled, x = torch.compile(module, backend="aot_eager", fullgraph=True), torch.randn(2, 2, 8, 8)
    for run in (module, compiled):
        run(x, module.encode("RB")).square().sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        module.zero_grad()
        if run is module:
            wanted = gradients
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(gradients, wanted, strict=True))
    torch.compiler.reset()


@pytest.mark.parametrize("descriptors", [None, WAVELENGTHS])
def test_exports_for_a_channel_set(descriptors):
    module, x = conv(descriptors=descriptors), torch.randn(2, 2, 8, 8)
    exported = torch.export.export(module, (x, "GB")).module()
    assert torch.allclose(exported(x, "GB"), module(x, "GB"), atol=1e-6)
    plain = module.materialize("GB")
    assert torch.allclose(torch.export.export(plain, (x,)).module()(x), module(x, "GB"), atol=1e-5)


def train_on_changing_sets(rank: int, port: int, folder: str) -> None:
    """One of two ranks; the ranks even have different sets in one step."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = conv(out=4, descriptors=WAVELENGTHS).train()
    parallel = DistributedDataParallel(module, find_unused_parameters=False)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for step in range(len(SETS)):
        name = SETS[(step + rank) % len(SETS)]
        optimizer.zero_grad()
        parallel(torch.randn(2, len(name), 6, 6), name).square().mean().backward()
        optimizer.step()
    torch.save(module.state_dict(), f"{folder}/{rank}.pt")
    del parallel  # before its process group, see `Runtime.close`
    torch.distributed.destroy_process_group()


def test_distributed_training_on_changing_sets(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_on_changing_sets, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])
    assert not torch.equal(ranks[0]["templates"], conv(out=4, descriptors=WAVELENGTHS).templates)


def test_gradients_are_right():
    module = conv(out=2, kernel=3, templates=2, embedding=3, hidden=4).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, t: torch.func.functional_call(module, {"templates": t}, (x, "RB")),
        (x, module.templates.detach().requires_grad_()),
    )


def test_state_dict_and_copies():
    module = conv()
    twin = copy.deepcopy(module)
    other = conv(seed=1)
    other.load_state_dict(module.state_dict())
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(twin(x, "GB"), module(x, "GB"))
    assert torch.equal(other(x, "GB"), module(x, "GB"))


@pytest.mark.parametrize(
    ("channels", "planes", "reason"),
    [
        ("RX", 2, "unknown channel 'X'.*RGB"),
        ("RR", 2, "given twice"),
        ("", 0, "empty"),
        ("RG", 3, "input has 3 channels, but the channel set RG has 2"),
        (None, 2, "input has 2 channels, but the channel set RGB has 3"),
        ({"R", "G"}, 2, "names in the order"),
        ([0, 1], 2, r"names in the order.*\[0, 1\]"),
        (2, 2, "names in the order.*2"),
    ],
)
def test_bad_input_is_one_clear_error(channels, planes, reason):
    with pytest.raises(ValueError, match=reason):
        conv()(torch.randn(1, planes, 8, 8), channels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_images_of_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=f"images are {dtype}; normalise"):
        conv()(torch.ones(1, 2, 8, 8, dtype=dtype), "RG")


def test_a_single_image_is_refused():
    with pytest.raises(ValueError, match=r"N×C×H×W, not in the shape \(2, 8, 8\)"):
        conv()(torch.randn(2, 8, 8), "RG")


def test_a_vocabulary_is_names():
    with pytest.raises(ValueError, match=r"names in the order.*3"):
        ChannelConv2d(3, 64, 7)


def test_importing_modeling_needs_torch_alone():
    every = "modeling, modeling.stems, modeling.rivals, modeling.two_layer, modeling.network"
    code = f"""
import sys, torch, torch.func, torch.nn.utils.fusion, torch.utils.checkpoint
before = {{name.partition(".")[0] for name in sys.modules}}
import {every}
print(sorted({{name.partition(".")[0] for name in sys.modules}} - before - set(sys.stdlib_module_names)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['modeling']"
