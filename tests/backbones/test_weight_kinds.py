"""Weight files of every kind: recognised by content, then read correctly or refused with their name and the cure."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stmi_layers.backbones import load_weights

save_file = pytest.importorskip("safetensors.torch").save_file
Weights = dict[str, Tensor]


def small() -> nn.Module:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(2)])
    return nn.ModuleDict({"stem": nn.Linear(2, 3), "blocks": blocks})


@pytest.fixture
def weights() -> Weights:
    return {name: torch.randn_like(value) for name, value in small().state_dict().items()}


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def assert_loads(path: Path, expected: Weights, **options: Any) -> None:
    model = small()
    load_weights(model, path, **options)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("inner", ["module", "_orig_mod.module", "_forward_module", "_fsdp_wrapped_module"])
def test_what_wraps_a_part_of_a_model_is_dropped_from_its_names(weights: Weights, tmp_path: Path, inner: str):
    renamed = {name.replace("blocks.1.", f"blocks.1.{inner}."): value for name, value in weights.items()}
    assert_loads(save(under("net.", renamed), tmp_path / "w.pt"), weights)


@pytest.mark.parametrize(
    ("nest", "prefixes"),
    [
        (lambda raw, ema: {**raw, "ema": ema}, ("", "ema.")),
        (
            lambda raw, ema: {
                "state_dict": under("model.", raw),
                "callbacks": {"EMA": {"weights": under("model.", ema)}},
            },
            ("state_dict.model.", "callbacks.EMA.weights.model."),
        ),
        (lambda raw, ema: {"params": raw, "params_ema": ema}, ("params.", "params_ema.")),
        (
            lambda raw, ema: {"state_dict": under("m.encoder_q.", raw) | under("m.encoder_k.", ema)},
            ("m.encoder_q.", "m.encoder_k."),
        ),
    ],
    ids=["beside the raw ones", "of a callback", "by two names", "momentum"],
)
def test_raw_and_averaged_weights_are_the_callers_choice(weights: Weights, tmp_path: Path, nest: Any, prefixes: Any):
    averaged = {name: value + 1 for name, value in weights.items()}
    path = save({"epoch": 3, **nest(weights, averaged)}, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"holds 10 of the tensors under each of .*: choose one of them by prefix="
    ) as said:
        load_weights(small(), path)
    for prefix, expected in zip(prefixes, (weights, averaged), strict=True):
        assert repr(prefix) in str(said.value)
        assert_loads(path, expected, prefix=prefix)


def test_what_an_optimizer_keeps_is_no_set_of_weights(tmp_path: Path):
    model = small()
    optimizer = torch.optim.Adam(model.parameters())
    model["stem"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": {"base": torch.ones(1)}}
    assert_loads(save(content, tmp_path / "w.pt"), model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.complex64), "stem.weight is complex in the file and floating in the model"),
        (lambda t: (10 * t).to(torch.int8), "stem.weight is whole in the file and floating in the model"),
        (lambda t: t > 0, "stem.weight is bool in the file"),
        (lambda t: t.to(torch.float8_e4m3fn), r"stem.weight is quantised \(torch.float8_e4m3fn\) in the file"),
        pytest.param(
            lambda t: t.to_sparse(),
            "stem.weight is sparse in the file",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants"),  # torch 2.15
        ),
        (lambda t: (1e6 * t.abs() + 1e6).half(), r"values that are not finite in 1 tensors: stem.weight \(6 of 6\)"),
        (lambda t: t.fill_(torch.nan), r"stem.weight \(6 of 6\)"),
    ],
)
def test_numbers_that_would_become_others_are_refused(weights: Weights, tmp_path: Path, change: Any, message: str):
    path = save({**weights, "stem.weight": change(weights["stem.weight"])}, tmp_path / "w.pt")
    model = small()
    before = model["stem"].bias.clone()
    with pytest.raises(ValueError, match=message):
        load_weights(model, path)
    assert torch.equal(model["stem"].bias, before)


def test_the_content_tells_the_kind_whatever_the_name(weights: Weights, tmp_path: Path):
    save_file(weights, tmp_path / "w.pt")
    assert_loads(tmp_path / "w.pt", weights)
    assert_loads(save(weights, tmp_path / "w.safetensors"), weights)
    torch.save(weights, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "old.bin", weights)


def test_a_damaged_archive_is_refused_by_its_checksum(weights: Weights, tmp_path: Path):
    path = save(weights, tmp_path / "w.pt")
    data = bytearray(path.read_bytes())
    data[data.find(weights["stem.weight"].numpy().tobytes())] ^= 64
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.pt is damaged: the checksum of its record w/data/0 is wrong"):
        load_weights(small(), path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"w\.pt is cut short: the end of the archive is missing"):
        load_weights(small(), path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_pointer_of_git_lfs_is_told_and_nobody_is_asked_for_trust(tmp_path: Path, name: str):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    with pytest.raises(ValueError, match=r"is a pointer of Git LFS .*: fetch the file itself, by git lfs pull"):
        load_weights(small(), tmp_path / name)


def test_lora_beside_the_layers_is_told_with_its_cure(weights: Weights, tmp_path: Path):
    renamed = {name.replace("blocks.0.0.", "blocks.0.0.base_layer."): value for name, value in weights.items()}
    path = save({**renamed, "blocks.0.0.lora_A.default.weight": torch.ones(1, 3)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"the file holds LoRA weights that are not merged: call merge_and_unload"):
        load_weights(small(), path)


def write_shards(weights: Weights, folder: Path) -> tuple[Path, dict[str, str]]:
    names = sorted(weights)
    places = {name: f"model-{1 + (number > 3):05}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index, places


def test_shards_are_read_by_their_index(weights: Weights, tmp_path: Path):
    index, places = write_shards(weights, tmp_path)
    assert_loads(index, weights)
    with pytest.raises(ValueError, match=r"the file is one of several shards: pass the \.index\.json in its folder"):
        load_weights(small(), tmp_path / places["stem.weight"])
    for wrong, message in (
        ({"stem.bias": "../elsewhere.safetensors"}, r"must name existing files in its own folder; received '\.\./else"),
        ({"stem.bias": index.name}, "must name existing files in its own folder"),
        ({"other": places["stem.bias"]}, r"lacks 1 tensors that model\.safetensors\.index\.json names, such as other"),
    ):
        index.write_text(json.dumps({"weight_map": {**places, **wrong}}))
        with pytest.raises(ValueError, match=message):
            load_weights(small(), index)
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"is no index of shards, JSON with an object 'weight_map'"):
        load_weights(small(), index)
