import json
import shutil

import pytest
import torch

from pipelines.errors import DataError
from pipelines.files import write_atomically
from training.checkpoint import Checkpoints, load_weights, save_weights


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value), "b": torch.full((3,), value).to(torch.bfloat16)}


def filled(folder, steps=(1, 2, 3), keep=3) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, weights(step), {"step": step, "optimizer": {"m": torch.tensor([float(step)])}})
    return checkpoints


def test_round_trip_and_keep(tmp_path):
    checkpoints = filled(tmp_path, steps=(10, 20, 30), keep=2)
    loaded, state = checkpoints.load()
    assert torch.equal(loaded["w"], weights(30)["w"])
    assert loaded["b"].dtype == torch.bfloat16
    assert (state["step"], state["optimizer"]["m"].item()) == (30, 30.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LAST", "step-00000020", "step-00000030"]


def test_nothing_there(tmp_path):
    assert Checkpoints(tmp_path / "none").load() is None


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_bit(folder / "model.safetensors"),
        lambda folder: flip_a_bit(folder / "state.pt"),
        lambda folder: (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-7]),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "digest.json").write_text("{"),
        lambda folder: (folder / "digest.json").unlink(),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_damaged_newest_falls_back_loudly(tmp_path, damage, capfd):
    checkpoints = filled(tmp_path)
    damage(tmp_path / "step-00000003")
    loaded, state = checkpoints.load()
    assert state["step"] == 2
    assert torch.equal(loaded["w"], weights(2)["w"])
    assert "damaged" in capfd.readouterr().err or not (tmp_path / "step-00000003").exists()


def test_all_damaged_is_not_a_fresh_start(tmp_path):
    checkpoints = filled(tmp_path)
    for folder in tmp_path.glob("step-*"):
        flip_a_bit(folder / "model.safetensors")
    with pytest.raises(DataError, match="every checkpoint is damaged"):
        checkpoints.load()


def test_damaged_later_steps_do_not_push_out_sound_ones(tmp_path):
    checkpoints = filled(tmp_path, steps=(1, 2, 3), keep=2)
    flip_a_bit(tmp_path / "step-00000003" / "state.pt")
    assert checkpoints.load()[1]["step"] == 2
    checkpoints.save(2, weights(2), {"step": 2})
    assert [folder.name for folder in sorted(tmp_path.glob("step-*"))] == ["step-00000002"]


def test_lost_pointer_and_half_written_checkpoint(tmp_path):
    checkpoints = filled(tmp_path)
    (tmp_path / "LAST").unlink()
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000009.tmp")
    assert checkpoints.load()[1]["step"] == 3


@pytest.mark.parametrize("moment", ["save_file", "torch.save", "flush", "Path.rename", "write_atomically"])
def test_death_at_any_moment_of_a_save_leaves_the_last_one(tmp_path, monkeypatch, moment):
    checkpoints = filled(tmp_path)

    def die(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"training.checkpoint.{moment}", die)
    with pytest.raises(DataError, match=r"step-00000004 could not be written \(.*No space.*--resume"):
        checkpoints.save(4, weights(4), {"step": 4})
    monkeypatch.undo()
    assert checkpoints.load()[1]["step"] == 3
    assert not list(tmp_path.glob(".step-*"))  # nor does it go on filling the disk
    checkpoints.save(4, weights(4), {"step": 4})
    assert checkpoints.load()[1]["step"] == 4


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    checkpoints = filled(tmp_path)
    folder = tmp_path / "step-00000003"
    torch.save({"step": Evil()}, folder / "state.pt")
    digests = json.loads((folder / "digest.json").read_text())
    import hashlib

    digests["state.pt"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
    (folder / "digest.json").write_text(json.dumps(digests))
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoints.load()


def test_weights_travel_with_metadata(tmp_path):
    save_weights(tmp_path / "model.safetensors", weights(1), {"vocabulary": "RGB"})
    loaded, metadata = load_weights(tmp_path / "model.safetensors")
    assert torch.equal(loaded["w"], weights(1)["w"])
    assert metadata == {"vocabulary": "RGB"}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match="finish the training first"):
        load_weights(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")
    with pytest.raises(DataError, match="damaged"):
        load_weights(tmp_path / "model.safetensors")


def test_channels_last_weights_keep_their_values(tmp_path):
    w = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "m.safetensors", {"w": w}, {})
    assert torch.equal(load_weights(tmp_path / "m.safetensors")[0]["w"], w)


def test_text_is_never_half_written(tmp_path, monkeypatch):
    file = tmp_path / "note"
    write_atomically(file, "old")
    monkeypatch.setattr("os.fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(file, "new")
    assert file.read_text() == "old"
