r"""Insertion of SFM into the attention of a vision transformer, and its removal.

All parameters keep their names and values; each block gains $\alpha$ and $\beta$ (eq. 3-8, Table 5).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from stmi_layers._checks import check_choice
from stmi_layers.backbones.known_models import (
    find_towers,
    load_family,
    refuse_closed_blocks,
    refuse_library_parts,
    unknown_model,
)
from stmi_layers.backbones.mixin import Modulated, ModulatedMultiheadAttention, refuse_multihead
from stmi_layers.backbones.parameters import strengths_of
from stmi_layers.foreground import MaskPerturbation
from stmi_layers.kernels.dispatch import Implementation, check_implementation

Layers = Literal["all", "early", "late"] | Sequence[int]
Share = Literal["layer", "head", "model"]
Model = TypeVar("Model", bound=nn.Module)
Classes = Mapping[type[nn.Module], type[nn.Module]]


def modulate(
    model: Model,
    *,
    alpha: float = 0.1,
    beta: float = 0.1,
    layers: Layers = "all",
    share: Share = "layer",
    perturbation: float = 0.0,
    implementation: Implementation = "auto",
) -> Model:
    r"""Let the self-attention of every block take a foreground mask.

    `model` is changed in place. It is a vision transformer of open_clip, timm or transformers, or a module that
    contains one, such as a CLIP model. In a module of your own without such a transformer, every
    `nn.MultiheadAttention` is modulated. Poolers and text towers stay unchanged.

    All parameters keep their names, and each attention gains `alpha` and `beta`. Without a mask the original code runs.
    A checkpoint of the original model loads with `strict=True` and does not change the strengths. A checkpoint with
    only some strengths, such as a file that stores a shared pair once, has missing keys; `safetensors.torch.load_model`
    reads such a file into a model that shares the pair, too. `save_pretrained` of transformers writes the strengths,
    but `from_pretrained` loses them, because it builds the original model: call `modulate` on the loaded model, then
    `load_weights(model, folder / "model.safetensors")`.

    The mask, Bool "batch tokens" with the prefix tokens first
    (see [`token_foreground`][stmi_layers.foreground.token_foreground]), is an argument of every block:

    - [`TokenBackbone`][stmi_layers.backbones.TokenBackbone] passes the mask to the blocks of every library;
    - blocks of open_clip and timm take `attn_mask=foreground`: a boolean attention mask with two axes is foreground;
    - the models of transformers and `nn.MultiheadAttention` take `foreground=foreground`; your own block must pass
      the mask on.

    Args:
        model: a vision transformer, or a module that contains one.
        alpha: initial strength on pairs of foreground tokens; usually 0 to 1, not enforced. With `alpha` and `beta` 0
            the model starts unchanged, and still learns both.
        beta: initial strength on all other pairs, with the same range.
        layers: modulated blocks: "all", the "early" half, the "late" half, or their indices from 0. All other blocks
            accept a mask and ignore it.
        share: extent of one pair of strengths: one "layer", one "head", or all layers of the "model". Table 5 of the
            paper has A `share="model"`, B `layers="early"`, C `layers="late"`, D `share="head"`, and E, the default.
        perturbation: probability, in training, that a background token is treated as foreground; drawn separately in
            every block.
        implementation: form of [`modulated_attention`][stmi_layers.attention.modulated_attention] in every block.

    Returns:
        `model`.

    Raises:
        TypeError: when `model` contains no supported vision transformer, or only a part of another model of these
            libraries, such as a text tower; the message lists the supported models.
        ImportError: when the library of `model` is too old; the message names the extra to install.
        ValueError: when `model` is modulated already, holds several vision transformers, an attention that cannot be
            modulated or blocks that pass no mask on, such as `nn.TransformerEncoderLayer`, or an option is out of
            range.

    Examples:
        >>> block = modulate(nn.MultiheadAttention(8, 2, batch_first=True))
        >>> tokens, foreground = torch.randn(1, 3, 8), torch.tensor([[True, True, False]])
        >>> block(tokens, tokens, tokens, foreground=foreground)[0].shape
        torch.Size([1, 3, 8])
        >>> [name for name, _ in block.named_parameters()]
        ['in_proj_weight', 'in_proj_bias', 'alpha', 'beta', 'out_proj.weight', 'out_proj.bias']
    """
    if any(isinstance(module, Modulated) for module in model.modules()):
        raise ValueError("model is modulated already; unmodulate(model) first")
    check_choice("share", share, get_args(Share))
    check_implementation(implementation)
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        raise ValueError(f"alpha and beta must be finite numbers; received alpha={alpha}, beta={beta}")
    blocks, attentions, classes = _attentions(model)
    chosen = choose_layers(layers, len(attentions))
    perturbations = [MaskPerturbation(perturbation) for _ in attentions]
    shared = _strengths(attentions[0], alpha, beta, heads=1) if share == "model" else None
    for index, (block, attention) in enumerate(zip(blocks, attentions, strict=True)):
        heads = _num_heads(attention) if share == "head" else 1
        strengths = (shared or _strengths(attention, alpha, beta, heads)) if index in chosen else (None, None)
        for name, strength in zip(("alpha", "beta"), strengths, strict=True):
            attention.register_parameter(name, strength)
        attention.follows = shared is not None and index > min(chosen)  # pyright: ignore[reportArgumentType]
        attention.perturbation = perturbations[index].train(attention.training)
        attention.implementation = implementation  # pyright: ignore[reportArgumentType]
        for module in {block, attention}:
            module.__class__ = classes.get(type(module), type(module))
    model.register_load_state_dict_pre_hook(_report_partial_strengths)
    return model


def unmodulate(model: Model) -> Model:
    """Undo [`modulate`][stmi_layers.backbones.modulate]: restore the original classes, remove the strengths.

    Args:
        model: a model or a part of a model; a model that is not modulated stays unchanged.

    Returns:
        `model`, changed in place.

    Examples:
        >>> attention = unmodulate(modulate(nn.MultiheadAttention(8, 2)))
        >>> type(attention) is nn.MultiheadAttention, hasattr(attention, "alpha")
        (True, False)
    """
    for module in model.modules():
        if isinstance(module, Modulated):
            del module.alpha, module.beta, module.perturbation, module.follows, module.implementation
        hooks = module._load_state_dict_pre_hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _report_partial_strengths]:
            del hooks[key]
        module.__class__ = getattr(type(module), "unmodulated", type(module))  # pyright: ignore[reportAttributeAccessIssue]
    return model


def _report_partial_strengths(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    *_: object,
) -> None:
    """Report missing strengths of a checkpoint that holds some strengths: a file may store a shared pair once.

    A checkpoint without any strength belongs to the original model and does not change the strengths.
    """
    names = [f"{prefix}{name}" for name in strengths_of(model)]
    absent = [name for name in names if name not in state_dict]
    if len(absent) < len(names):
        missing_keys.extend(absent)


def choose_layers(layers: Layers, depth: int) -> set[int]:
    """Return the indices of the blocks that `layers` names (Table 5 B and C).

    Args:
        layers: "all", the "early" half, the "late" half, or indices from 0.
        depth: number of blocks.

    Returns:
        Indices from 0 to `depth - 1`, at least one.

    Raises:
        ValueError: when `layers` names no block, or a block that does not exist.

    Examples:
        >>> choose_layers("late", depth=5)
        {2, 3, 4}
    """
    if isinstance(layers, str):
        halves = {"all": range(depth), "early": range(depth // 2), "late": range(depth // 2, depth)}
        if layers not in halves:
            raise ValueError(f'layers must be "all", "early", "late" or indices; received {layers!r}')
        if not halves[layers]:
            raise ValueError(f"layers={layers!r} chooses none of the {depth} blocks; choose other layers")
        return set(halves[layers])
    chosen = set(layers)
    if not chosen or not chosen <= set(range(depth)):
        raise ValueError(f"layers must be indices of the {depth} blocks, 0 to {depth - 1}; received {layers}")
    return chosen


def _attentions(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module], Classes]:
    """Return the blocks of `model`, their attentions, and the modulated class of each class."""
    towers = find_towers(model)
    if len(towers) > 1:
        kinds = [type(tower).__name__ for tower in towers]
        raise ValueError(f"model must hold one vision transformer; received {kinds}: modulate each of them")
    if not towers:
        found = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
        if not found:
            raise unknown_model(model, "modulate")
        refuse_closed_blocks(model)
        refuse_library_parts(model)
        for attention in found:
            refuse_multihead(attention)
        return list(found), list(found), {nn.MultiheadAttention: ModulatedMultiheadAttention}
    family = load_family(towers[0])
    blocks = list(family.blocks(towers[0]))
    attentions = [family.attention(block) for block in blocks]
    for index, attention in enumerate(attentions):
        if type(attention) not in family.MODULATED:
            known = ", ".join(sorted(cls.__name__ for cls in family.MODULATED))
            raise ValueError(f"block {index} has an attention of {type(attention)}; modulate knows {known}")
    return blocks, attentions, family.MODULATED


def _strengths(attention: nn.Module, alpha: float, beta: float, heads: int) -> tuple[nn.Parameter, nn.Parameter]:
    like = next(attention.parameters())
    first, second = (torch.full((heads,), value, device=like.device, dtype=like.dtype) for value in (alpha, beta))
    return nn.Parameter(first), nn.Parameter(second)


def _num_heads(attention: Any) -> int:
    return getattr(attention, "num_heads", None) or attention.num_attention_heads
