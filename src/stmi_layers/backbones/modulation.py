r"""Put SFM into the attention of a vision transformer that exists, and take it out again.

The parameters stay where they are and keep their names; each block gains $\alpha$ and $\beta$ (eq. 3-8, Table 5).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from stmi_layers.attention import SegmentationModulatedAttention
from stmi_layers.backbones.families import (
    find_towers,
    load_family,
    refuse_closed_blocks,
    refuse_library_parts,
    unknown_model,
)
from stmi_layers.backbones.modulated import Modulated, ModulatedMultiheadAttention, refuse_multihead
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

    `model` is changed in place. Known are the vision transformers of open_clip, timm and transformers, also inside
    another module, as the vision tower of a CLIP model is; a module of your own without any of these gets every
    `nn.MultiheadAttention` in it modulated. Poolers and text towers stay as they are.

    All parameters keep their names and `alpha` and `beta` join them at each attention. A checkpoint of the original
    model loads with `strict=True` and leaves them alone. Without a mask the original code runs.

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
            be modulated or blocks that hand it no mask, as `nn.TransformerEncoderLayer`, or an option is out of range.

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
    if share not in ("layer", "head", "model"):
        raise ValueError(f'share must be "layer", "head" or "model"; received {share!r}')
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
        module.__class__ = getattr(type(module), "unmodulated", type(module))  # pyright: ignore[reportAttributeAccessIssue]
    return model


def parameter_groups(model: nn.Module, *, backbone: nn.Module | None = None) -> dict[str, list[nn.Parameter]]:
    """Split the parameters for an optimiser: pretrained weights, modulation strengths, everything new.

    Args:
        model: a modulated model, or a whole system around one.
        backbone: the module whose parameters are pretrained; by default the known vision transformers in `model`, or
            `model` itself when it holds none.

    Returns:
        Lists under "backbone", "strengths" and "rest". Each parameter of `model` is in exactly one of them, also when
        modules share it; a list may be empty.

    Examples:
        >>> system = nn.Sequential(modulate(nn.MultiheadAttention(8, 2)), nn.Linear(8, 4))
        >>> groups = parameter_groups(system, backbone=system[0])
        >>> {name: len(parameters) for name, parameters in groups.items()}
        {'backbone': 4, 'strengths': 2, 'rest': 2}
        >>> rates = {"backbone": 5e-6, "strengths": 1e-3, "rest": 3.5e-4}
        >>> optimizer = torch.optim.Adam([{"params": groups[name], "lr": rates[name]} for name in groups])
    """
    strengths = {
        id(strength)
        for module in model.modules()
        if isinstance(module, Modulated | SegmentationModulatedAttention)
        for strength in (module.alpha, module.beta)
        if strength is not None
    }
    towers = [backbone] if backbone is not None else _pretrained(model)
    pretrained = {id(parameter) for tower in towers for parameter in tower.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"backbone": [], "strengths": [], "rest": []}
    for parameter in model.parameters():
        known = "backbone" if id(parameter) in pretrained else "rest"
        groups["strengths" if id(parameter) in strengths else known].append(parameter)
    return groups


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


def _pretrained(model: nn.Module) -> list[nn.Module]:
    return find_towers(model) or [model]


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
