"""Pretrained weights in every supported format: small files, written here and loaded by the library."""

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stmi_layers.backbones.positions import position_grids, resize_positions
from stmi_layers.backbones.weight_files import read_weight_file
from stmi_layers.backbones.weights import LoadReport, load_weights

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(GRIDS, GRIDS, st.integers(0, 2))
def test_resized_positions_are_those_of_torch_prefix_copied(old, new, prefix):
    positions = torch.randn(prefix + old[0] * old[1], 3)
    resized = resize_positions(positions, old, new, prefix_tokens=prefix)
    image = positions[prefix:].T.reshape(1, 3, *old)
    expected = F.interpolate(image, new, mode="bicubic", antialias=True) if old != new else image
    torch.testing.assert_close(resized[prefix:].T.reshape(1, 3, *new), expected)
    assert torch.equal(resized[:prefix], positions[:prefix])


def smooth_map(grid: tuple[int, int]) -> torch.Tensor:
    """Two channels over the unit square, sampled at the centres of the patches: one varies down, the other across."""
    rows, columns = ((torch.arange(count) + 0.5) / count for count in grid)
    down, across = torch.meshgrid(torch.sin(3 * rows), torch.cos(2 * columns), indexing="ij")
    return torch.stack([down, across], dim=-1).reshape(-1, 2)


def test_a_tall_map_becomes_the_wide_map_of_the_same_function():
    resized = resize_positions(smooth_map((16, 8)), (16, 8), (8, 16), prefix_tokens=0)
    inner = (slice(1, -1), slice(3, -3))  # nearer the edge the kernel leans out
    wide = smooth_map((8, 16)).reshape(8, 16, 2)
    torch.testing.assert_close(resized.reshape(8, 16, 2)[inner], wide[inner], rtol=0, atol=0.01)
    # Taken as it is, the same 128 rows are something else.
    assert (smooth_map((16, 8)).reshape(8, 16, 2) - wide)[inner].abs().max() > 0.5


@given(GRIDS, GRIDS)
def test_a_constant_map_stays_constant(old, new):
    positions = torch.full((old[0] * old[1], 2), 1.5)
    assert resize_positions(positions, old, new, prefix_tokens=0).sub(1.5).abs().max() < 1e-5


def test_half_precision_is_resized_in_float32_and_equal_grids_change_no_bit():
    positions = torch.randn(1 + 16 * 8, 4, dtype=torch.float16)
    assert resize_positions(positions, (16, 8), (16, 8), prefix_tokens=1) is positions
    wide = resize_positions(positions.float(), (16, 8), (7, 7), prefix_tokens=1)
    assert torch.equal(resize_positions(positions, (16, 8), (7, 7), prefix_tokens=1), wide.half())


def test_counts_of_positions_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"1 \+ 16 \* 8 = 129 tokens for old_grid=\(16, 8\); received 197"):
        resize_positions(torch.zeros(197, 2), (16, 8), (8, 16), prefix_tokens=1)
    with pytest.raises(ValueError, match=r"at least 1 x 1 and prefix_tokens at least 0; received \(4, 4\), \(0, 4\)"):
        resize_positions(torch.zeros(16, 2), (4, 4), (0, 4), prefix_tokens=0)


def tiny_clip(image_size: tuple[int, int] = (32, 32), *, quick_gelu: bool = True) -> nn.Module:
    """CLIP with two small towers; other random weights at every call."""
    vision = open_clip.CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=8, image_size=image_size)
    text = open_clip.CLIPTextCfg(context_length=7, vocab_size=30, width=16, heads=2, layers=2)
    return open_clip.CLIP(12, vision, text, quick_gelu=quick_gelu).eval()


class OpenAIArchive(nn.Module):
    """What OpenAI's archives are: both towers traced, with three settings as buffers."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        for name, module in clip.named_children():
            self.add_module(name, module)
        for name, parameter in clip.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, value in (("input_resolution", 32), ("context_length", 7), ("vocab_size", 30)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.transformer(self.token_embedding(tokens) + self.positional_embedding)
        return self.visual(images), self.ln_final(hidden) @ self.text_projection * self.logit_scale


def write_openai(clip: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; OpenAI's files stay what they are
        inputs = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 7, dtype=torch.int64))
        torch.jit.save(torch.jit.trace(OpenAIArchive(clip), inputs, check_trace=False), path)
    return path


def assert_same(model: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_an_openai_archive_is_what_torch_reads_from_it(tmp_path):
    path = write_openai(tiny_clip(), tmp_path / "ViT.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(path).state_dict()
    for name in ("input_resolution", "context_length", "vocab_size"):
        expected.pop(name)
    file = read_weight_file(path, trust_pickle=False)
    assert file.kind == "TorchScript archive"
    assert file.quick_gelu is True
    assert file.tensors.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in file.tensors.items())


def test_lists_and_flags_in_an_archive_are_passed_over(tmp_path):
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = [2, 3]
            self.names: dict[str, float] = {"scale": 0.5}
            self.tables: list[torch.Tensor] = [torch.zeros(2)]
            self.linear = nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)[:, : self.sizes[0]] * self.names["scale"] + self.tables[0]

    module = Scripted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), tmp_path / "scripted.pt")
    file = read_weight_file(tmp_path / "scripted.pt", trust_pickle=False)
    assert file.quick_gelu is None
    assert file.tensors.keys() == module.state_dict().keys()
    load_weights(other := Scripted(), tmp_path / "scripted.pt")
    assert_same(other, module)


def test_an_openai_archive_loads_into_clip_its_image_tower_and_its_text_tower(tmp_path):
    clip = tiny_clip()
    path = write_openai(clip, tmp_path / "ViT.pt")
    whole, part, text = tiny_clip(), tiny_clip(), tiny_clip()
    report = load_weights(whole, path)
    assert_same(whole, clip)
    assert (report.prefix, report.resized, report.missing, report.unexpected) == ("", {}, (), ())
    report = load_weights(part.visual, path)
    assert_same(part.visual, clip.visual)
    assert report.prefix == "visual."
    # Blocks of the text tower have the names of blocks of the image tower, but for the prefix.
    assert set(report.unexpected) == {name for name in clip.state_dict() if not name.startswith("visual.")}
    assert report.activation == "QuickGELU in the model, as the file was trained"
    del text.visual
    load_weights(text, path)
    tokens = torch.randint(30, (2, 7))
    assert torch.equal(text.encode_text(tokens), clip.encode_text(tokens))


def test_weights_for_a_modulated_tower_leave_its_strengths_alone(tmp_path):
    backbones = pytest.importorskip("stmi_layers.backbones")
    clip, visual = tiny_clip(), tiny_clip().visual
    modulated = backbones.modulate(visual, alpha=0.3, beta=0.2)
    report = load_weights(modulated, write_openai(clip, tmp_path / "ViT.pt"))
    assert len(report.missing) == 4
    assert all(name.endswith((".alpha", ".beta")) for name in report.missing)
    strengths = {name: value.item() for name, value in modulated.named_parameters() if name in report.missing}
    assert sorted(strengths.values()) == pytest.approx([0.2, 0.2, 0.3, 0.3])
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(modulated(images), clip.visual(images))


def as_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    safetensors.save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def as_torch(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def tiny_timm(size: tuple[int, int] = (32, 32)) -> nn.Module:
    options = {"img_size": size, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.models.VisionTransformer(num_classes=0, **options).eval()


def test_open_clip_and_timm_files_load_from_every_nesting(tmp_path):
    clip, vit = tiny_clip(), tiny_timm()
    named = clip.state_dict()
    ddp = {f"module.{name}": value for name, value in named.items()}
    training = {"epoch": 3, "name": "a run", "state_dict": ddp, "optimizer": {"state": {}}}
    compiled = {f"_orig_mod.{name}": value for name, value in vit.state_dict().items()}
    head = {**vit.state_dict(), "head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}
    cases = [
        (as_safetensors(named, tmp_path / "open_clip.safetensors"), clip.visual, "visual."),
        (as_torch(named, tmp_path / "open_clip.pt"), clip, ""),
        (as_torch(training, tmp_path / "epoch_3.pt"), clip, "module."),
        (as_torch(training, tmp_path / "again.pt"), clip.visual, "module.visual."),
        (as_safetensors(head, tmp_path / "timm.safetensors"), vit, ""),
        (as_torch({"model": vit.state_dict()}, tmp_path / "timm.pth"), vit, ""),
        (as_torch({"state_dict": compiled}, tmp_path / "compiled.pth.tar"), vit, "_orig_mod."),
    ]
    for path, source, prefix in cases:
        model = {id(clip): tiny_clip, id(clip.visual): lambda: tiny_clip().visual, id(vit): tiny_timm}[id(source)]()
        report = load_weights(model, path)
        assert_same(model, source)
        assert report.prefix == prefix
        assert set(report.loaded) == set(source.state_dict())
        if path.name == "timm.safetensors":
            assert set(report.unexpected) == {"head.bias", "head.weight"}


def test_the_report_says_what_became_of_every_tensor(tmp_path):
    path = as_safetensors({**tiny_timm().state_dict(), "head.bias": torch.zeros(5)}, tmp_path / "vit.safetensors")
    text = str(load_weights(tiny_timm((32, 16)), path)).replace(str(tmp_path), "")
    assert "/vit.safetensors (safetensors file): 30 tensors loaded" in text
    assert "resized: pos_embed from (4, 4) to (4, 2) patches" in text
    assert "not in the file, unchanged: none" in text
    assert "only in the file, not used: head.bias" in text
    assert "the model has no QuickGELU; the file does not say" in text
    names = tuple(f"block.{index}.alpha" for index in range(7))
    report = LoadReport(path, "torch file", "visual.", ("proj",), {}, names, (), "unknown")
    assert "1 tensors loaded, found under 'visual.'" in str(report)
    assert "block.3.alpha, block.4.alpha and 2 more" in str(report)


def test_positions_of_another_size_are_resized_from_the_square_or_the_named_grid(tmp_path):
    square = tiny_clip().visual
    path = as_torch(square.state_dict(), tmp_path / "square.pt")
    tall = tiny_clip((64, 32)).visual
    assert load_weights(tall, path).resized == {"positional_embedding": ((4, 4), (8, 4))}
    expected = resize_positions(square.positional_embedding, (4, 4), (8, 4), prefix_tokens=1)
    assert torch.equal(tall.positional_embedding, expected)
    path = as_torch(tall.state_dict(), tmp_path / "tall.pt")
    wide = tiny_clip((32, 64)).visual
    with pytest.raises(ValueError, match=r"positions of 32 patches \(and 1 prefix tokens\), which no square has; pass"):
        load_weights(wide, path)
    with pytest.raises(ValueError, match=r"old_grid=\(4, 4\) does not give; pass old_grid=\(rows, columns\)"):
        load_weights(wide, path, old_grid=(4, 4))
    # The trap: both hold 1 + 32 positions, and would load as they are, transposed.
    assert load_weights(wide, path, old_grid=(8, 4)).resized == {"positional_embedding": ((8, 4), (4, 8))}
    expected = resize_positions(tall.positional_embedding, (8, 4), (4, 8), prefix_tokens=1)
    assert torch.equal(wide.positional_embedding, expected)
    again = tiny_clip((64, 32)).visual
    assert load_weights(again, path, old_grid=(8, 4)).resized == {}
    assert_same(again, tall)


def test_timm_positions_keep_their_leading_axis(tmp_path):
    square, wide = tiny_timm(), tiny_timm((32, 64))
    load_weights(wide, as_safetensors(square.state_dict(), tmp_path / "vit.safetensors"))
    expected = resize_positions(square.pos_embed[0], (4, 4), (4, 8), prefix_tokens=1)
    assert torch.equal(wide.pos_embed, expected[None])


def test_position_grids_of_every_family():
    assert position_grids(tiny_clip((64, 32))) == {"visual.positional_embedding": (8, 4)}
    assert position_grids(nn.Sequential(tiny_timm((32, 16)))) == {"0.pos_embed": (4, 2)}
    for model in tiny_transformers():
        ((name, grid),) = position_grids(model).items()
        assert grid == (4, 4)
        assert model.get_parameter(name).shape[-2] in (16, 17)


def tiny_transformers() -> list[nn.Module]:
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options |= {"image_size": 32, "patch_size": 8}
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**options))
    dinov2 = transformers.Dinov2Model(transformers.Dinov2Config(**options))
    siglip = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**options))
    return [clip, dinov2, siglip]


def test_files_of_transformers_load_into_its_models(tmp_path):
    for model, other in zip(tiny_transformers(), tiny_transformers(), strict=True):
        named = {f"vision_model.{name}": value for name, value in other.state_dict().items()}
        report = load_weights(model, as_safetensors(named, tmp_path / "model.safetensors"))
        assert_same(model, other)
        assert (report.missing, report.unexpected) == ((), ())


def test_half_precision_files_load_into_a_float32_model(tmp_path):
    vit, other = tiny_timm().half(), tiny_timm()
    load_weights(other, as_torch(vit.state_dict(), tmp_path / "half.pt"))
    assert_same(other, vit.float())


def test_quick_gelu_must_be_that_of_the_training(tmp_path):
    path = write_openai(tiny_clip(), tmp_path / "ViT.pt")
    untouched = tiny_clip(quick_gelu=False)
    before = untouched.visual.proj.clone()
    with pytest.raises(ValueError, match=r"trained with QuickGELU and the model has no QuickGELU.*add '-quickgelu' to"):
        load_weights(untouched, path)
    assert torch.equal(untouched.visual.proj, before)
    exported = {**tiny_clip().state_dict(), **{n: torch.tensor(7) for n in ("input_resolution", "context_length")}}
    path = as_torch({**exported, "vocab_size": torch.tensor(30)}, tmp_path / "exported.pt")
    with pytest.raises(ValueError, match="trained with QuickGELU and the model has no QuickGELU"):
        load_weights(tiny_clip(quick_gelu=False), path)
    described = as_safetensors(tiny_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    assert "the file does not say" in load_weights(tiny_clip(), described).activation
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 12}}))
    with pytest.raises(ValueError, match=r"without QuickGELU and the model has QuickGELU.*leave '-quickgelu' out of"):
        load_weights(tiny_clip(), described)
    report = load_weights(tiny_clip(quick_gelu=False), described)
    assert report.activation == "no QuickGELU in the model, as the file was trained"
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"open_clip_config\.json must be JSON with an object 'model_cfg'"):
        load_weights(tiny_clip(), described)


def test_missing_and_misshapen_tensors_are_errors_that_name_them(tmp_path):
    weights = tiny_timm().state_dict()
    proj = weights.pop("blocks.1.attn.proj.weight")
    path = as_torch(weights, tmp_path / "incomplete.pt")
    with pytest.raises(ValueError, match=r"lacks 1 of the 30 tensors .*: blocks\.1\.attn\.proj\.weight; build"):
        load_weights(tiny_timm(), path)
    path = as_torch({**weights, "blocks.1.attn.proj.weight": proj[:8]}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"1 shapes differ: blocks.1.*proj.weight is \(8, 16\) in the file and \(16"):
        load_weights(tiny_timm(), path)
    path = as_torch({**weights, "blocks.1.attn.proj.weight": proj, "pos_embed": proj[0]}, tmp_path / "flat.pt")
    with pytest.raises(ValueError, match=r"pos_embed is \(16,\) in the file and \(1, 17, 16\) in the model"):
        load_weights(tiny_timm(), path)


class Malicious:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.proof),)


def test_a_malicious_torch_file_runs_only_when_trusted(tmp_path):
    proof = tmp_path / "ran"
    path = as_torch({"state_dict": tiny_timm().state_dict(), "args": Malicious(proof)}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"a pickle of more than tensors, which could run any code.*trust_pickle=True"):
        load_weights(tiny_timm(), path)
    assert not proof.exists()
    load_weights(tiny_timm(), path, trust_pickle=True)
    assert proof.exists()  # so the test would have noticed


def test_a_malicious_archive_never_runs(tmp_path):
    proof, path = tmp_path / "ran", tmp_path / "bad.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/data.pkl", pickle.dumps(Malicious(proof), protocol=2))
        archive.writestr("bad/constants.pkl", pickle.dumps(()))
    for trust in (False, True):
        with pytest.raises(ValueError, match=r"it asks for (posix|nt)\.mkdir, which is no part of a tensor"):
            load_weights(tiny_timm(), path, trust_pickle=trust)
    assert not proof.exists()


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent.pt; give the path of"):
        load_weights(tiny_timm(), tmp_path / "absent.pt")
    text = tmp_path / "text.pt"
    text.write_text("hello\n")
    for trust in (False, True):  # it is no pickle, so that trust is no cure
        with pytest.raises(ValueError, match=r"text.pt is damaged or no torch file: it begins with b'hello"):
            load_weights(tiny_timm(), text, trust_pickle=trust)
    text = text.rename(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"text.safetensors is damaged or no safetensors file"):
        load_weights(tiny_timm(), text)
    with pytest.raises(ValueError, match=r"empty.pt holds no weights: no tensor was found in this torch file"):
        load_weights(tiny_timm(), as_torch({"epoch": 3}, tmp_path / "empty.pt"))
    with pytest.raises(ValueError, match="must hold tensors by name; received a list"):
        load_weights(tiny_timm(), as_torch([1], tmp_path / "list.pt"))


def test_a_cut_or_foreign_endian_archive_is_named(tmp_path):
    path = write_openai(tiny_clip(), tmp_path / "ViT.pt")
    for change, message in (({"data/0": b"1"}, "storage 0 has 1 bytes"), ({"byteorder": b"big"}, "big-endian")):
        changed = tmp_path / "changed.pt"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
            for name in old.namelist():
                new.writestr(name, change.get(name.partition("/")[2], old.read(name)))
        with pytest.raises(ValueError, match=f"TorchScript archive that cannot be read: .*{message}"):
            load_weights(tiny_clip(), changed)
