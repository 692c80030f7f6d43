"""What `torch.hub` finds here: networks that take any set of channels, with fresh or trained weights.

torch.hub.list(DIR, source="local")
torch.hub.help(DIR, "anychannel_resnet34", source="local")
net = torch.hub.load(DIR, "anychannel_resnet34", source="local", vocabulary="RGB", classes=100)
net = torch.hub.load(DIR, "anychannel", source="local", weights="runs/quickstart/model.safetensors")
logits = net(images, "RG")  # N×2×H×W, normalised
"""

from collections.abc import Callable as _Callable
from typing import Any as _Any

from modeling.network import ChannelNet as _ChannelNet
from modeling.weights import load_network as _load_network
from modeling.zoo import BODIES as _BODIES
from modeling.zoo import build_model as _build_model

dependencies = ["torch", "torchvision", "safetensors"]


def anychannel(weights: str) -> _ChannelNet:
    """A trained network, whatever it is.

    Args:
        weights: path of the `model.safetensors` that a run or `training.export` left; nothing is unpickled.

    Returns:
        A network in inference mode. `net(x, "RG")` gives logits for N×2×H×W images of these two channels,
        `net.materialize("RG")` an ordinary network for them alone, `net.stem.vocabulary` the channels it knows.
    """
    return _load_network(weights)


def _entry(body: str, what: str) -> _Callable[..., _ChannelNet]:
    """The function that `torch.hub` calls for a body."""

    def load(
        vocabulary: str | None = None,
        classes: int | None = None,
        weights: str | None = None,
        **options: _Any,
    ) -> _ChannelNet:
        if weights is None:
            stem = options.pop("stem", "any-channel")
            return _build_model(body, stem, vocabulary or "RGB", 100 if classes is None else classes, **options)
        if vocabulary is not None or classes is not None or options:
            raise ValueError("weights know their vocabulary, classes and options; give weights alone")
        return _load_network(weights, body)

    load.__name__ = load.__qualname__ = f"anychannel_{body.replace('-', '_')}"
    load.__doc__ = f"""{what} that takes any set of channels of a vocabulary, at any image size.

    Args:
        vocabulary: names of all channels, e.g. "RGB" or "red+green+nir"; RGB by default.
        classes: number of logits; 100 by default.
        weights: path of a run's `model.safetensors`, which says vocabulary, classes and options itself; nothing
            is unpickled. Fresh weights by default.
        options: `stem` ("any-channel" by default) and what `modeling.zoo` lists as options of stems and bodies:
            {", ".join(_BODIES[body].options) or "this body has none"}.

    Returns:
        A network, in training mode with fresh weights, in inference mode with trained ones. `net(x, "RG")` gives
        logits for N×2×H×W images of these two channels, `net.materialize("RG")` an ordinary network for them.
    """
    return load


anychannel_resnet10 = _entry("resnet10", "A ResNet-10")
anychannel_resnet18 = _entry("resnet18", "A ResNet-18")
anychannel_resnet34 = _entry("resnet34", "A ResNet-34")
anychannel_strict = _entry("strict", "A two-layer network of two convolutions")
anychannel_matched = _entry("matched", "A two-layer network as costly as a ResNet-34")
anychannel_rrdb = _entry("rrdb", "A two-layer network of residual-in-residual dense blocks")
anychannel_attention = _entry("attention", "A two-layer network of self-attention")
anychannel_graph = _entry("graph", "A two-layer network of graph convolutions")
anychannel_rrdb_attention = _entry("rrdb-attention", "A two-layer network of a dense block and self-attention")
anychannel_recurrent = _entry("recurrent", "A two-layer network of recurrent convolutions")
