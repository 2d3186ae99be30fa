"""Damaged and hostile weight files: each raises a ValueError that names the file, and the model stays unchanged."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from stmi_layers.backbones import load_weights, weight_files
from stmi_layers.backbones.weight_files import read_weight_file


def archive(path: Path, description: bytes, *, compression: int = zipfile.ZIP_STORED) -> Path:
    """A TorchScript archive around this pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", description)
        file.writestr("a/constants.pkl", pickle.dumps(()))
    return path


def test_a_pickle_cannot_write_into_the_reader(tmp_path: Path):
    """BUILD sets attributes of what GLOBAL returned."""
    crafted = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__K\x01\x85s\x86b."
    with pytest.raises(ValueError, match="holds no weights"):
        read_weight_file(archive(tmp_path / "crafted.pt", crafted), trust_pickle=False)
    assert weight_files._rebuild.__defaults__ is None


def test_objects_without_end_and_names_that_are_none(tmp_path: Path):
    itself = b"\x80\x02c__torch__\nA\n)\x81q\x00}U\x04selfh\x00sb."
    with pytest.raises(ValueError, match=r"loop.pt is damaged or of another kind: RecursionError"):
        read_weight_file(archive(tmp_path / "loop.pt", itself), trust_pickle=False)
    number = b"\x80\x02c__torch__\nA\n)\x81}K\x01K\x02sb."
    with pytest.raises(ValueError, match="holds no weights"):
        read_weight_file(archive(tmp_path / "number.pt", number), trust_pickle=False)


def tensors() -> dict[str, torch.Tensor]:
    return nn.Linear(3, 2).state_dict()


def originals(folder: Path) -> list[Path]:
    """A torch file in both formats, a safetensors file, a TorchScript archive."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    torch.save(tensors(), folder / "new.pt")
    torch.save(tensors(), folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(tensors(), folder / "model.safetensors")
    archive(folder / "script.pt", pickle.dumps({}, 2), compression=zipfile.ZIP_DEFLATED)
    return [folder / name for name in ("new.pt", "old.pt", "model.safetensors", "script.pt")]


def test_any_damage_is_a_value_error(tmp_path: Path):
    """Cut short anywhere, and bytes exchanged: it loads what fits the model, or says so."""
    generator, messages = torch.Generator().manual_seed(0), []
    for path in originals(tmp_path):
        whole = path.read_bytes()
        damaged = path.with_name("damaged").with_suffix(path.suffix)
        for _ in range(60):
            place, value = (int(torch.randint(most, (), generator=generator)) for most in (len(whole), 256))
            for content in (whole[:place], whole[:place] + bytes([value]) + whole[place + 1 :]):
                damaged.write_bytes(content)
                try:
                    load_weights(nn.Linear(3, 2), damaged)
                except ValueError as error:
                    messages.append(str(error))
    assert messages
    assert all(message.startswith(f"{tmp_path}/damaged.") for message in messages)


@pytest.mark.parametrize("error", [zipfile.BadZipFile, AssertionError, NotImplementedError, OSError, RecursionError])
def test_unforeseen_errors_of_the_readers_name_the_file(error: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stumble(*_: object) -> None:
        raise error("here")

    monkeypatch.setattr(weight_files, "_torchscript_root", stumble)
    torch.save(tensors(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"model.pt is damaged or of another kind: {error.__name__}, here"):
        read_weight_file(tmp_path / "model.pt", trust_pickle=False)
