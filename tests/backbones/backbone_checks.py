"""Tiny vision transformers of every family, and a function for each promise of `stmi_layers.backbones`.

`tests/backbones/test_backbones.py` runs them as tests, `python -m tests.backbones.backbone_table` writes their results
into the docs.
"""

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from examples.optional import import_torchvision
from stmi_layers import modulate_logits, token_foreground
from stmi_layers.backbones import TokenBackbone, modulate, unmodulate
from stmi_layers.backbones.mixin import Modulated

HEIGHT, WIDTH = 32, 16
TIMM = {"img_size": (HEIGHT, WIDTH), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
TRANSFORMERS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
CUSTOM = {"block_type": "custom"} | dict.fromkeys(
    ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True
)


def import_library(name: str):
    """A library, torchvision made importable beside a CPU build of torch."""
    import_torchvision()
    return __import__(name, fromlist=["_"])


def open_clip_vit(**options) -> nn.Module:
    transformer = import_library("open_clip.transformer")
    return transformer.VisionTransformer((HEIGHT, WIDTH), 8, 32, 2, 2, 4.0, output_dim=16, **options)


def open_clip_timm(**options) -> nn.Module:
    """The smallest model that timm offers; its size is fixed."""
    return import_library("open_clip.timm_model").TimmModel("test_vit", embed_dim=16, image_size=160, **options)


def timm_vit(name: str, **options) -> nn.Module:
    return import_library("timm").create_model(name, pretrained=False, **(TIMM | options))


def transformers_vit(name: str, config: str, **options) -> nn.Module:
    library = import_library("transformers")
    return getattr(library, name)(getattr(library, config)(**(TRANSFORMERS | options)))


class OwnBlock(nn.Module):
    """A block as people write it, with one word more: `foreground`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(32), nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, tokens: Tensor, **mask: Tensor) -> Tensor:
        normed = self.norm(tokens)
        return tokens + self.attention(normed, normed, normed, need_weights=False, **mask)[0]


class OwnViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.grad_checkpointing = nn.Conv2d(3, 32, 8, 8), False
        self.blocks = nn.ModuleList(OwnBlock() for _ in range(2))

    def set_grad_checkpointing(self) -> None:
        self.grad_checkpointing = True

    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        modalities = images.shape[1]
        tokens = self.patches(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        mask = {}
        if masks is not None:
            mask["foreground"] = token_foreground(masks.flatten(0, 1), (4, 2), prefix_tokens=0)
        for block in self.blocks:
            if self.grad_checkpointing:
                tokens = checkpoint(block, tokens, use_reentrant=False, **mask)
            else:
                tokens = block(tokens, **mask)
        patches = tokens.unflatten(0, (-1, modalities))
        return patches, patches.mean(dim=2)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "open_clip `VisionTransformer`": open_clip_vit,
    "open_clip `VisionTransformer`, custom blocks": lambda: open_clip_vit(**CUSTOM),
    "open_clip `TimmModel`": open_clip_timm,
    "timm `VisionTransformer`": lambda: timm_vit("vit_tiny_patch16_224"),
    "timm `VisionTransformer`, 4 registers": lambda: timm_vit("vit_small_patch14_reg4_dinov2"),
    "timm SigLIP": lambda: timm_vit("vit_base_patch16_siglip_224"),
    "timm EVA-02": lambda: timm_vit("eva02_base_patch14_224"),
    "timm DINOv3": lambda: timm_vit("vit_small_patch16_dinov3"),
    "timm ViT with mixed rotary embeddings": lambda: timm_vit("vit_base_patch16_rope_mixed_224"),
    "transformers `CLIPVisionModel`": lambda: transformers_vit("CLIPVisionModel", "CLIPVisionConfig"),
    "transformers `Dinov2Model`": lambda: transformers_vit("Dinov2Model", "Dinov2Config"),
    "transformers `SiglipVisionModel`": lambda: transformers_vit("SiglipVisionModel", "SiglipVisionConfig"),
    "`nn.MultiheadAttention` in your own blocks": OwnViT,
}


def build(family: str) -> nn.Module:
    """In evaluation mode; random weights large enough for every part to show in the output."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def tokens_of(model: nn.Module) -> nn.Module:
    """Two modalities and their masks in, tokens out."""
    return model if isinstance(model, OwnViT) else TokenBackbone(model)


def example(model: nn.Module, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Images and masks of two modalities; half of the patches are foreground, others in each modality."""
    size = getattr(tokens_of(model), "image_size", (HEIGHT, WIDTH))
    generator = torch.Generator().manual_seed(batch)
    patches = torch.rand(batch, 2, 4, 2, generator=generator) > 0.5
    masks = patches.repeat_interleave(size[0] // 4, dim=2).repeat_interleave(size[1] // 2, dim=3)
    return torch.randn(batch, 2, 3, *size, generator=generator), masks


def strengths(model: nn.Module) -> list[nn.Parameter]:
    modulated = (module for module in model.modules() if isinstance(module, Modulated))
    found = {id(p): p for module in modulated for p in (module.alpha, module.beta) if p is not None}
    return list(found.values())


def scalar(outputs: tuple[Tensor, ...]) -> Tensor:
    """A sum in which every entry counts differently."""
    return torch.stack([(x.flatten() * torch.linspace(-1, 2, x.numel(), dtype=x.dtype)).sum() for x in outputs]).sum()


def gradients(model: nn.Module, outputs: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    model.zero_grad()
    scalar(outputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def without_mask(family: str) -> None:
    """The original code runs: equal bits, of the model itself and of its tokens."""
    model = build(family)
    images, masks = example(model)
    alone = images if isinstance(model, OwnViT) else images[:, 0]
    before = (_tensors(model(alone)), tokens_of(model)(images))
    modulate(model)
    after = (_tensors(model(alone)), tokens_of(model)(images))
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(*pair) for pair in zip(old, new, strict=True)), "other bits"
    for strength in strengths(model):
        nn.init.zeros_(strength)
    torch.testing.assert_close(tokens_of(model)(images, masks), before[1], rtol=1e-4, atol=1e-4)


def strict_load(family: str) -> None:
    """The original checkpoint loads before, during and after; strengths stay, names stay, nothing is left behind."""
    model, original = build(family), build(family)
    classes, weights = [type(module) for module in model.modules()], original.state_dict()
    modulate(model, alpha=0.3, beta=0.2, share="head")
    added = set(model.state_dict()) - set(weights)
    assert added
    assert all(name.rsplit(".")[-1] in ("alpha", "beta") for name in added)
    model.load_state_dict(weights, strict=True)
    assert sorted({value for p in strengths(model) for value in p.tolist()}) == sorted(
        {*torch.tensor([0.3, 0.2]).tolist()}
    )
    twin = modulate(build(family), share="head")
    twin.load_state_dict(model.state_dict(), strict=True)
    assert all(torch.equal(*pair) for pair in zip(strengths(twin), strengths(model), strict=True))
    unmodulate(model)
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == list(weights)
    assert not any(hasattr(module, "perturbation") for module in model.modules())
    model.load_state_dict(weights, strict=True)


def with_mask(family: str) -> None:
    """The original code with its softmax attention exchanged for that of eq. 3-8, written plainly, gives the same."""
    model = modulate(build(family), share="head")
    images, masks = example(model)
    with torch.no_grad():
        for strength in strengths(model):
            strength.uniform_(0.1, 0.9)
    actual = tokens_of(model)(images, masks)
    pairs = [(m.alpha.detach(), m.beta.detach()) for m in model.modules() if isinstance(m, Modulated)]
    prefix = getattr(tokens_of(model), "prefix_tokens", 0)
    grid = getattr(tokens_of(model), "grid", (4, 2))
    foreground = token_foreground(masks.flatten(0, 1), grid, prefix_tokens=prefix)
    with _attention_by_equations(foreground, pairs):
        expected = tokens_of(unmodulate(model))(images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not pairs, "a block was left out"


def gradients_reach(family: str) -> None:
    """Every strength gets a gradient that is finite and not zero, also when the model is frozen."""
    model = build(family).requires_grad_(False)
    modulate(model, share="head")
    outputs = gradients(model, tokens_of(model)(*example(model)))
    reached = {name: grad for name, grad in outputs.items() if name.rsplit(".")[-1] in ("alpha", "beta")}
    assert len(reached) == len(strengths(model))
    assert all(grad is not None and grad.isfinite().all() and grad.all() for grad in reached.values()), "no gradient"
    assert all(grad is None for name, grad in outputs.items() if name not in reached)


def checkpointing(family: str) -> None:
    """The same gradients with activation checkpointing: around the whole, and by the switch of the library.

    The modalities go through the backbone one after the other, so that a mask kept anywhere but in the arguments would
    be that of the wrong one when a block is recomputed.
    """
    model = modulate(build(family), share="head", perturbation=0.3).train()
    backbone, (images, masks) = tokens_of(model), example(model)

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> dict[str, Tensor | None]:
        torch.manual_seed(1)
        rgb, thermal = (function(images[:, [index]], masks[:, [index]]) for index in range(2))
        return gradients(model, (*rgb, *thermal))

    expected = run(backbone)
    torch.testing.assert_close(run(partial(checkpoint, backbone, use_reentrant=False)), expected)
    if hasattr(model, "activation_checkpointing_enable"):
        switches = [{"activation_checkpointing_kwargs": {"use_reentrant": reentrant}} for reentrant in (False, True)]
        switch = model.activation_checkpointing_enable
    else:
        switches, switch = [{}], model.set_grad_checkpointing
    attention = next(module for module in model.modules() if isinstance(module, Modulated))
    for options in switches:
        switch(**options)
        runs: list[int] = []
        handle = attention.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        torch.testing.assert_close(run(backbone), expected)
        handle.remove()
        assert len(runs) == 4, "the block was not recomputed"


def compiling(family: str) -> None:
    """`torch.compile(fullgraph=True)`: the same tokens and gradients."""
    model = modulate(build(family))
    backbone, inputs = tokens_of(model), example(model)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), backbone(*inputs))
    expected = gradients(model, backbone(*inputs))
    torch.testing.assert_close(gradients(model, compiled(*inputs)), expected, rtol=1e-4, atol=1e-4)


def exporting(family: str) -> None:
    """`torch.export` with a dynamic batch: the same tokens at another batch size."""
    backbone = tokens_of(modulate(build(family)))
    inputs, others = example(build(family)), example(build(family), batch=3)
    shapes = tuple({0: torch.export.Dim("batch", min=2, max=4096)} for _ in inputs)
    program = torch.export.export(backbone, inputs, dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(*others), backbone(*others))


def onnx(family: str) -> None:
    """The dynamo exporter, a dynamic batch, run by the reference evaluator of onnx."""
    from onnx.reference import ReferenceEvaluator

    backbone = tokens_of(modulate(build(family)))
    inputs, others = example(build(family)), example(build(family), batch=3)
    shapes = tuple({0: torch.export.Dim("batch", min=2, max=4096)} for _ in inputs)
    program = torch.onnx.export(backbone, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = ReferenceEvaluator(program.model_proto)
    outputs = session.run(None, {name: x.numpy() for name, x in zip(session.input_names, others, strict=True)})
    expected = backbone(*others)
    torch.testing.assert_close(tuple(map(torch.from_numpy, outputs)), expected, rtol=1e-4, atol=1e-4)


COLUMNS: dict[str, Callable[[str], None]] = {
    "bit-equal without mask": without_mask,
    "with mask eq. 3-8": with_mask,
    "strict load": strict_load,
    "gradients": gradients_reach,
    "checkpointing": checkpointing,
    "compile": compiling,
    "export": exporting,
    "ONNX": onnx,
}


def outcome(family: str, column: str) -> str:
    """A cell of the table: "yes", or "no" and the first words of the reason."""
    try:
        COLUMNS[column](family)
    except Exception as error:
        reason = str(error).strip().split("\n")[0].replace("|", "/")
        return f"no: {type(error).__name__}, {reason[:80]}"
    return "yes"


def _tensors(output) -> list[Tensor]:
    """What a model returns, as a list: tensors, tuples or the outputs of transformers."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, Tensor)]


@contextmanager
def _attention_by_equations(foreground: Tensor, pairs: list[tuple[Tensor, Tensor]]):
    """Exchange torch's fused attention, which all families call, for modulated logits and a softmax."""
    original, signature = F.scaled_dot_product_attention, inspect.signature(_fused)

    def modulated(*args, **kwargs) -> Tensor:
        call = signature.bind(*args, **kwargs).arguments
        query, key, value = call["query"], call["key"], call["value"]
        if query.shape[-2] != key.shape[-2]:  # a pooling head
            return original(*args, **kwargs)
        alpha, beta = pairs.pop(0)
        logits = query @ key.transpose(-2, -1) * (call.get("scale") or query.shape[-1] ** -0.5)
        return modulate_logits(logits, foreground, alpha, beta).softmax(dim=-1) @ value

    with mock.patch.object(F, "scaled_dot_product_attention", modulated):
        yield


def _fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """The signature of the fused attention, which is a builtin without one."""
