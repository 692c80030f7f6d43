"""`torch.hub.load(DIR, NAME, source="local")`: names, help, and trained weights without unpickling."""

import ast
import json
from pathlib import Path

import pytest
import torch

from modeling.weights import NETWORK, load_network
from modeling.zoo import BODIES
from training.build import network_arguments, new_model
from training.checkpoint import save_weights
from training.config import Model

ROOT = str(Path(__file__).parent.parent)


def hub(name: str, **arguments):
    return torch.hub.load(ROOT, name, source="local", **arguments)


@pytest.fixture
def trained(tmp_path) -> Path:
    """Weights as a run leaves them, of a network whose settings are not the defaults."""
    torch.manual_seed(0)
    settings = Model(body="strict", width=0.0625, templates=3, norm="per-size", vocabulary="R+G+650")
    model = new_model(settings, 4)
    file = tmp_path / "model.safetensors"
    save_weights(file, model.state_dict(), {NETWORK: json.dumps(network_arguments(settings, 4))})
    return file


def test_every_body_has_a_name_and_a_text():
    """What `torch.hub.list` and `torch.hub.help` show of a repository on GitHub; of a folder they cannot."""
    conf = torch.hub._import_module("hubconf", str(Path(ROOT, "hubconf.py")))
    found = {name: entry for name, entry in vars(conf).items() if callable(entry) and not name.startswith("_")}
    assert set(found) == {f"anychannel_{body.replace('-', '_')}" for body in BODIES} | {"anychannel"}
    for name, entry in found.items():
        assert entry.__name__ == name
        assert "weights" in entry.__doc__
        assert "Returns" in entry.__doc__
    assert "kernel_size" in found["anychannel_strict"].__doc__


def test_fresh_networks_take_any_channel_set():
    net = hub("anychannel_resnet10", vocabulary="red+nir+R", classes=7, norm="per-size")
    assert net(torch.randn(2, 2, 40, 33), "nir+R").shape == (2, 7)
    assert hub("anychannel_matched", stem="zero-fill", width=0.1).stem.vocabulary == ("R", "G", "B")


def test_trained_networks_come_from_the_file_alone(trained):
    torch.manual_seed(0)
    expected = new_model(Model(body="strict", width=0.0625, templates=3, norm="per-size", vocabulary="R+G+650"), 4)
    x = torch.randn(2, 2, 40, 33)
    with torch.no_grad():
        for net in (hub("anychannel", weights=str(trained)), hub("anychannel_strict", weights=str(trained))):
            assert not net.training
            assert torch.equal(net(x, "R+650"), expected.eval()(x, "R+650"))


def test_wrong_files_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="has the body strict, not resnet34"):
        hub("anychannel_resnet34", weights=str(trained))
    with pytest.raises(ValueError, match="weights alone"):
        hub("anychannel_strict", weights=str(trained), classes=4)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of a finished run"):
        hub("anychannel", weights=str(tmp_path / "none"))
    save_weights(tmp_path / "old", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="does not say which network"):
        load_network(tmp_path / "old")
    whole = trained.read_bytes()
    trained.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_network(trained)


class Mine:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_nothing_is_unpickled(tmp_path):
    torch.save(Mine(tmp_path / "ran"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        hub("anychannel", weights=str(tmp_path / "model.pt"))
    assert not (tmp_path / "ran").exists()


def test_it_needs_modeling_alone():
    """So that a user of torch.hub needs no more than its `dependencies`."""
    tree = ast.parse(Path(ROOT, "hubconf.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in modules} == {"collections", "typing", "modeling"}
