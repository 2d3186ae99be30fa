"""Checkpoints: complete or absent, and refused with their name when damaged, incomplete or of another kind."""

import pickle
import random
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from stmi_layers.training import Checkpoint, load_weights, read_checkpoint, save_checkpoint
from stmi_layers.training.checkpoint import FORMAT, check_room

ENTRY = {"epoch": 1, "loss": 1.0, "learning_rate": 1e-3, "cpu_seconds": 2, "losses": {}, "watch": {"alpha": 0.1}}


def checkpoint(layers: int = 8) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    model = {f"layer{index}.weight": torch.randn(64, 64, generator=generator) for index in range(layers)}
    return Checkpoint({"schedule": {"epochs": 3}}, model, {"head": torch.ones(3)}, {"state": {}}, 2, [ENTRY])


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    assert one._replace(model={}, objective={}) == other._replace(model={}, objective={})
    for first, second in ((one.model, other.model), (one.objective, other.objective)):
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_is_saved_comes_back(tmp_path: Path):
    save_checkpoint(tmp_path / "new" / "checkpoint.pt", checkpoint())
    assert_equal(read_checkpoint(tmp_path / "new" / "checkpoint.pt"), checkpoint())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["checkpoint.pt"]


def test_a_flipped_bit_or_a_page_of_zeros_is_refused_or_changes_nothing(tmp_path: Path):
    path, draw = tmp_path / "checkpoint.pt", random.Random(0)
    save_checkpoint(path, checkpoint())
    raw, refused = path.read_bytes(), 0
    for trial in range(60):
        damaged = bytearray(raw)
        if trial % 2:
            damaged[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        else:
            start = draw.randrange(len(raw) - 4096)
            damaged[start : start + 4096] = bytes(4096)
        path.write_bytes(bytes(damaged))
        try:
            assert_equal(read_checkpoint(path), checkpoint())
        except ValueError:
            refused += 1
    assert refused > 40


def test_the_damaged_record_is_named(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint())
    raw = bytearray(path.read_bytes())
    raw[raw.find(checkpoint().model["layer3.weight"].numpy().tobytes()) + 100] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*checksum of its record archive/data/3 is wrong"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_refused(share: float, tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint())
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged, or is not a checkpoint of this trainer"):
        read_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*; train first"):
        read_checkpoint(path)
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match=rf"is not a checkpoint of this trainer \(no format '{FORMAT}'\)"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Path("/")))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint: damaged, or not written by this trainer"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": None}, "lacks 'epoch'"),
        ({"model": None, "history": None}, "lacks 'model'; it lacks 'history'"),
        ({"extra": 1}, "has an unknown entry 'extra'"),
        ({"epoch": "2"}, "must hold 'epoch' as int, and holds str"),
        ({"epoch": True}, "must hold 'epoch' as int, and holds bool"),
        ({"epoch": -1}, "must hold 'epoch' of at least 0, and holds -1"),
        ({"history": {}}, "must hold 'history' as list, and holds dict"),
        ({"history": [3]}, r"must hold a dict as history\[0\], and holds int"),
        ({"history": [{**ENTRY, "loss": "1"}]}, r"must hold history\[0\] as numbers; its 'loss' is a str"),
        ({"history": [ENTRY, {"loss": 1.0}]}, r"must hold history\[1\] as numbers; its 'epoch' is missing"),
        ({"history": [{**ENTRY, "watch": {"alpha": []}}]}, r"must hold history\[0\] as numbers; its 'watch' is a dict"),
        ({"history": [{**ENTRY, "mAP": 0.5}]}, r"must hold history\[0\] as numbers; its 'mAP' is a float"),
        ({"model": [1]}, "must hold 'model' as dict, and holds list"),
        ({"model": {"a": 1.0}}, r"must hold a Tensor as model\['a'\], and holds float"),
        ({"records": {"schedule": 3}}, r"must hold a dict as records\['schedule'\], and holds int"),
        ({"optimizer": torch.ones(2)}, "must hold 'optimizer' as dict, and holds Tensor"),
    ],
)
def test_entries_that_are_missing_unknown_or_of_another_type_are_named(changes: dict, message: str, tmp_path: Path):
    content = {"format": FORMAT, **checkpoint()._asdict(), **changes}
    torch.save({name: value for name, value in content.items() if value is not None}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"checkpoint\.pt is not a complete checkpoint: it {message}"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_a_disk_that_fills_up_gives_one_line_and_leaves_the_previous_checkpoint(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint(layers=1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be written: ") as caught:
            save_checkpoint(path, checkpoint())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert_equal(read_checkpoint(path), checkpoint(layers=1))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_disk_without_room_is_refused_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = nn.Linear(1024, 1024)  # 4 MB, and 8 MB for the two moments of the optimizer
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=11 * 2**20))
    with pytest.raises(ValueError, match=r"must have room for a checkpoint of 12\.0 MB; its disk has 11\.0 MB left"):
        check_room(tmp_path, module)
    module.requires_grad_(False)
    check_room(tmp_path, module)


def test_weights_that_do_not_fit_are_named():
    module = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="does not fit the head; 3 differences") as caught:
        load_weights(module, {"weight": torch.zeros(3, 4), "scale": torch.zeros(1)}, "head")
    for line in (
        "bias is missing in the checkpoint",
        "scale is unknown to the model",
        "weight is (3, 4) in the checkpoint and (3, 2) in the model",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), "torch.int64"),
        (torch.zeros(3, 2, dtype=torch.complex64), "complex"),
        (torch.zeros(3, 2, dtype=torch.bool), "torch.bool"),
        (torch.eye(3, 2).to_sparse(), r"floating, torch\.sparse_coo"),
    ],
)
def test_weights_of_another_kind_are_named_and_another_precision_is_cast(value: torch.Tensor, kind: str):
    module = nn.Linear(2, 3, bias=False)
    with pytest.raises(ValueError, match=f"weight is {kind} in the checkpoint and floating in the model"):
        load_weights(module, {"weight": value}, "head")
    load_weights(module, {"weight": torch.full((3, 2), 0.5, dtype=torch.float64)}, "head")
    assert torch.equal(module.weight, torch.full((3, 2), 0.5))
