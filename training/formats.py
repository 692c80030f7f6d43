"""A plain network as a file for other programs, ONNX or torch.export, and whether that computes the same.

Both take any number of images. ONNX takes any height and width too. torch.export does where nothing pools: its
arithmetic of shapes asks of a pooled map whether its sides divide by the stride, and one program holds for one
answer, so that such a network is exported for one size.

The body graph chooses neighbours, and where two are all but equally near, rounding decides: then an image gets
other logits in ONNX than in PyTorch, as it may on another machine, see `modeling.graph_conv`.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from modeling.rivals import DynamicConv2d
from training.config import ConfigError

Format = Literal["onnx", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # largest absolute difference of any logit, float32
_AXES = {0: "batch", 2: "height", 3: "width"}
_LEAST = 32  # pixels; a ResNet has one position left of them


class MismatchError(RuntimeError):
    """A file would compute something else than the network it was made from."""


@dataclass(frozen=True)
class Exported:
    """A network in a format, read back and found to compute the same.

    Attributes:
        data: the file's bytes.
        any_size: whether it takes images of any height and width.
        difference: largest absolute difference of its logits from the original's.
    """

    data: bytes
    any_size: bool
    difference: float


def check_installed(formats: tuple[Format, ...]) -> None:
    """Refuse what would fail later for want of a package.

    Raises:
        ConfigError: ONNX is wanted, and what writes and reads it is not there.
    """
    if "onnx" in formats:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"--formats onnx needs {error.name}: pip install -e '.[export]', or choose --formats torch-export"
            ) from None


def export(
    kind: Format,
    network: nn.Module,
    original: Callable[[Tensor], Tensor],
    planes: int,
    size: int,
    metadata: Mapping[str, str],
) -> Exported:
    """Write a plain network, read it back, and compare it with the network it comes from.

    Args:
        kind: of the file.
        network: plain, on the CPU, in inference mode: N×planes×H×W → N×classes.
        original: what it must compute, to a difference of `TOLERANCE`.
        planes: channels of the input.
        size: height and width that it was trained on.
        metadata: what the file says of itself; of ONNX in `metadata_props`, of torch.export in `metadata.json`.

    Raises:
        MismatchError: it computes something else.
        ConfigError: the format has no place for what the network does.
    """
    if kind == "onnx" and any(isinstance(part, DynamicConv2d) for part in network.modules()):
        raise ConfigError(
            "--formats onnx: the attention stem makes a kernel for each image, and a convolution of ONNX has the "
            "same for all; choose --formats torch-export"
        )
    write, read = (_write_onnx, _read_onnx) if kind == "onnx" else (_write_program, _read_program)
    any_size = kind == "onnx" or not _pools(network)
    sizes = [(1, size, size), (3, size, size)]
    sizes += [(2, size | 1, (size + size // 2) | 1), (1, _LEAST + 1, size + 6)] if any_size else []
    with _quiet():
        data = write(network, torch.randn(2, planes, size, size), any_size, metadata)
        difference = largest_difference(read(data), original, planes, sizes)
    if not difference <= TOLERANCE:  # not a number is no match either
        raise MismatchError(f"{kind} differs from the network by {difference:.2g}, above {TOLERANCE:g}")
    return Exported(data, any_size, difference)


@torch.no_grad()
def largest_difference(
    ours: Callable[[Tensor], Tensor],
    original: Callable[[Tensor], Tensor],
    planes: int,
    sizes: list[tuple[int, int, int]],
) -> float:
    """Largest absolute difference of logits on random images of some batch sizes, heights and widths."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(n, planes, height, width, generator=generator) for n, height, width in sizes]
    return torch.stack([(ours(x) - original(x)).abs().max() for x in images]).max().item()


def _write_onnx(network: nn.Module, example: Tensor, any_size: bool, metadata: Mapping[str, str]) -> bytes:
    import onnx

    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=(_AXES,),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props.update(metadata)
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto.SerializeToString()


def _read_onnx(data: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def _write_program(network: nn.Module, example: Tensor, any_size: bool, metadata: Mapping[str, str]) -> bytes:
    sides = {axis: Dim(_AXES[axis], min=_LEAST) for axis in (2, 3)} if any_size else {}
    program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch"), **sides},))
    out = io.BytesIO()
    torch.export.save(program, out, extra_files={"metadata.json": json.dumps(metadata, ensure_ascii=False)})
    return out.getvalue()


def _read_program(data: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(data)).module()


def _pools(network: nn.Module) -> bool:
    return any(isinstance(part, nn.MaxPool2d | nn.AvgPool2d) for part in network.modules())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own parts, and print how far they are."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
