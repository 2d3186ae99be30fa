r"""Put SFM into the attention of a vision transformer that exists, and take it out again.

The parameters stay where they are and keep their names; each block gains $\alpha$ and $\beta$ (eq. 3-8, Table 5).
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
) -> Model:
    r"""Let the self-attention of every block take a foreground mask.

    Changes `model` in place. Knows the vision transformers of open_clip, timm and transformers, also inside another
    module, as the vision tower of a CLIP model is; a module of your own without any of these gets every
    `nn.MultiheadAttention` in it modulated. Poolers and text towers stay as they are.

    All parameters keep their names and `alpha` and `beta` join them at each attention. A checkpoint of the original
    model loads with `strict=True` and leaves them alone. A checkpoint with some of them, such as a file that stores a
    shared pair once, has missing keys: `safetensors.torch.load_model` reads it into a model that shares the pair, too.
    `save_pretrained` of transformers writes the strengths, but `from_pretrained` loses them, because it builds the
    original model: call `modulate` on it, then `load_weights(model, folder / "model.safetensors")`. Without a mask the
    original code runs.

    The mask, Bool "batch tokens" with the prefix tokens first
    (see [`token_foreground`][stmi_layers.foreground.token_foreground]), is an argument of every block:

    - [`TokenBackbone`][stmi_layers.backbones.TokenBackbone] passes it on in every library;
    - open_clip and timm take it where an attention mask goes, `attn_mask=foreground`: a boolean mask with two axes is
      foreground;
    - the models of transformers and `nn.MultiheadAttention` take `foreground=foreground`; your own block must hand it
      on.

    Args:
        model: a vision transformer, or a module that holds one.
        alpha: initial strength on pairs of foreground tokens; 0 to 1, not enforced. At 0 the model starts as it was,
            yet learns.
        beta: initial strength on all other pairs, likewise.
        layers: which blocks: "all", the "early" half, the "late" half, or their indices from 0. The other blocks take
            a mask too, and leave it out.
        share: what shares one pair of strengths: each "layer", each "head" alone, or all layers of the "model".
            Table 5 of the paper has A `share="model"`, B `layers="early"`, C `layers="late"`, D `share="head"`, and
            E, the default.
        perturbation: probability, in training, that a background token is treated as foreground; drawn in every block
            anew.

    Returns:
        `model`.

    Raises:
        TypeError: when nothing in `model` is known, or only a part of another model of these libraries, such as a text
            tower; the message lists what is.
        ImportError: when the library of `model` is too old; the message names the extra to install.
        ValueError: when `model` is modulated already, holds several vision transformers, has an attention that cannot
            be modulated or blocks that pass it no mask, as `nn.TransformerEncoderLayer`, or an option is out of range.

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
        for module in {block, attention}:
            module.__class__ = classes.get(type(module), type(module))
    model.register_load_state_dict_pre_hook(_report_partial_strengths)
    return model


def unmodulate(model: Model) -> Model:
    """Undo [`modulate`][stmi_layers.backbones.modulate]: the original classes, no strengths; the weights as they are.

    Args:
        model: a model or a part of it; one that is not modulated stays as it is.

    Returns:
        `model`, changed in place.

    Examples:
        >>> attention = unmodulate(modulate(nn.MultiheadAttention(8, 2)))
        >>> type(attention) is nn.MultiheadAttention, hasattr(attention, "alpha")
        (True, False)
    """
    for module in model.modules():
        if isinstance(module, Modulated):
            del module.alpha, module.beta, module.perturbation, module.follows
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
    """Report the strengths that a checkpoint with some of them lacks: a file may hold a shared pair once.

    A checkpoint without any is that of the original model, and leaves them alone.
    """
    names = [f"{prefix}{name}" for name in strengths_of(model)]
    absent = [name for name in names if name not in state_dict]
    if len(absent) < len(names):
        missing_keys.extend(absent)


def choose_layers(layers: Layers, depth: int) -> set[int]:
    """Indices of the blocks that `layers` names (Table 5 B and C).

    Args:
        layers: "all", the "early" half, the "late" half, or indices from 0.
        depth: number of blocks.

    Raises:
        ValueError: when `layers` names no block, or one that does not exist.

    Examples:
        >>> choose_layers("late", depth=5)
        {2, 3, 4}
    """
    if isinstance(layers, str):
        halves = {"all": range(depth), "early": range(depth // 2), "late": range(depth // 2, depth)}
        if layers not in halves:
            raise ValueError(f'layers must be "all", "early", "late" or indices; received {layers!r}')
        if not halves[layers]:
            raise ValueError(f"layers={layers!r} chooses none of the {depth} blocks; choose others")
        return set(halves[layers])
    chosen = set(layers)
    if not chosen or not chosen <= set(range(depth)):
        raise ValueError(f"layers must be indices of the {depth} blocks, 0 to {depth - 1}; received {layers}")
    return chosen


def _attentions(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module], Classes]:
    """The blocks of `model`, the attention of each, and the class that each class becomes."""
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
