"""Trained networks from the one file that they travel in: no recipe beside it, and nothing is unpickled."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from modeling.network import ChannelNet
from modeling.zoo import build_model

NETWORK = "network"  # in the file's metadata: the arguments of `build_model`, as JSON


def load_network(file: Path | str, body: str | None = None) -> ChannelNet:
    """The network of a run's `model.safetensors`, on the CPU in inference mode.

    Args:
        file: as training or `training.export` wrote it.
        body: which one it must have, see `modeling.zoo`; any if None.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, does not say which network its weights are for, or that has another body.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give the model.safetensors of a finished run")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
    if NETWORK not in metadata:
        raise ValueError(
            f"{file}: does not say which network it is for; python -m training.export RUN_DIR writes one that does"
        )
    arguments = json.loads(metadata[NETWORK])
    if body not in (None, arguments["body"]):
        raise ValueError(f"{file}: has the body {arguments['body']}, not {body}; load it as what it is")
    network = build_model(**arguments)
    network.load_state_dict(weights)
    return network.eval()
