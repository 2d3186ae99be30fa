r"""Insertion of adapters and prompts into a frozen vision transformer, and their removal.

All weights keep their names and values; each block gains a parallel adapter (PFA) and residual prompts (SRP).
Paper: "MambaPro: Multi-Modal Object Re-Identification with Mamba Aggregation and Synergistic Prompt",
<https://arxiv.org/abs/2412.10707>. The formulas follow its code, <https://github.com/924973292/MambaPro>.
"""

from typing import Any, TypeVar

from torch import nn

from stmi_layers._checks import check_positive
from stmi_layers.adapters import ParallelAdapter, ResidualPrompts
from stmi_layers.backbones.adapted import Adapted
from stmi_layers.backbones.known_models import find_towers, load_family, unknown_model
from stmi_layers.backbones.parameters import strengths_of

Model = TypeVar("Model", bound=nn.Module)


def adapt(
    model: Model,
    *,
    adapters: bool = True,
    hidden: int | None = None,
    zero_init: bool = True,
    num_modalities: int | None = None,
    num_prompts: int = 4,
    freeze: bool = True,
) -> Model:
    r"""Add trainable adapters and prompts to a pretrained vision transformer, and freeze its own weights.

    $$x \leftarrow x + \operatorname{Attn}(N(x)), \qquad
    x \leftarrow x + \operatorname{MLP}(N(x)) + \operatorname{adapter}(x)$$

    `model` is changed in place. It is a vision transformer of open_clip, timm or transformers, or a module that
    contains one, such as a CLIP model. All parameters keep their names. A checkpoint of the original model loads with
    `strict=True` and does not change adapters and prompts. `adapt` and [`modulate`][stmi_layers.backbones.modulate]
    can be combined in either order.

    With `num_modalities` every block also gets [`ResidualPrompts`][stmi_layers.adapters.ResidualPrompts]: further
    tokens at the front, which have no position and are not part of the output. A foreground mask treats prompts as
    foreground, like prefix tokens. The index of an image in the batch tells its modality: the images of a sample follow
    each other, first modality first, as in [`TokenBackbone`][stmi_layers.backbones.TokenBackbone].

    Args:
        model: a vision transformer, or a module that contains one.
        adapters: whether every block gets a [`ParallelAdapter`][stmi_layers.adapters.ParallelAdapter].
        hidden: width inside the adapters; twice the width of the tokens by default.
        zero_init: whether adapters start with output 0, so that `model` without prompts is unchanged at first.
        num_modalities: number of modalities that get prompts; None adds no prompts.
        num_prompts: number of prompts per modality.
        freeze: whether to freeze all parameters of the vision transformer except the additions of `adapt` and
            `modulate`.

    Returns:
        `model`.

    Raises:
        TypeError: when `model` contains no supported vision transformer; the message lists the supported models.
        ImportError: when the library of `model` is too old; the message names the extra to install.
        ValueError: when `model` is adapted already, or holds several vision transformers or blocks that cannot be
            adapted; when neither adapters nor prompts are to be added, or a size is below 1.

    Examples:
        >>> import torch
        >>> from open_clip.transformer import VisionTransformer
        >>> from stmi_layers.backbones import TokenBackbone
        >>> visual = VisionTransformer((64, 32), patch_size=16, width=32, layers=2, heads=2, mlp_ratio=4.0)
        >>> backbone = TokenBackbone(adapt(visual, num_modalities=3))
        >>> patches, global_tokens = backbone(torch.randn(2, 3, 3, 64, 32))
        >>> patches.shape, global_tokens.shape
        (torch.Size([2, 3, 8, 32]), torch.Size([2, 3, 32]))
        >>> sorted({name.split(".")[5] for name, p in backbone.named_parameters() if p.requires_grad})
        ['adapter', 'prompts']
    """
    check_positive(hidden=hidden, num_modalities=num_modalities, num_prompts=num_prompts)
    if not adapters and num_modalities is None:
        raise ValueError("adapters=False needs prompts; received num_modalities=None. Pass num_modalities")
    if any(isinstance(module, Adapted) for module in model.modules()):
        raise ValueError("model is adapted already; unadapt(model) first")
    tower, blocks, classes = _blocks(model)
    if freeze:
        _freeze(tower)
    sizes: dict[str, Any] = {"num_modalities": num_modalities, "num_prompts": num_prompts}
    for index, block in enumerate(blocks):
        factory = _factory(block)
        adapter = ParallelAdapter(**factory, hidden=hidden, zero_init=zero_init) if adapters else None
        prompts = None if num_modalities is None else ResidualPrompts(**factory, **sizes, carries=index > 0)
        block.adapter, block.prompts, block.last = adapter, prompts, index == len(blocks) - 1
        _shift_prefix(block, 0 if num_modalities is None else num_modalities * num_prompts)
        block.__class__ = classes[type(block)]
        block.train(block.training)
    return model


def unadapt(model: Model) -> Model:
    """Undo [`adapt`][stmi_layers.backbones.adapt.adapt]: restore the original classes, remove adapters and prompts.

    Frozen parameters stay frozen.

    Args:
        model: a model or a part of a model; a model that is not adapted stays unchanged.

    Returns:
        `model`, changed in place.

    Examples:
        >>> from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
        >>> visual = VisionTransformer((64, 32), patch_size=16, width=32, layers=2, heads=2, mlp_ratio=4.0)
        >>> type(unadapt(adapt(visual)).transformer.resblocks[0]) is ResidualAttentionBlock
        True
    """
    for module in model.modules():
        if isinstance(module, Adapted):
            if module.prompts is not None:
                _shift_prefix(module, -module.prompts.num_modalities * module.prompts.num_prompts)
            module.__class__ = type(module).unadapted  # pyright: ignore[reportAttributeAccessIssue]
            del module.adapter, module.prompts, module.last
    return model


def _blocks(model: nn.Module) -> tuple[nn.Module, list[Any], Any]:
    """Return the vision transformer in `model`, its blocks, and the adapted class of each class of blocks."""
    towers = find_towers(model)
    if not towers:
        raise unknown_model(model, "adapt")
    if len(towers) > 1:
        kinds = [type(tower).__name__ for tower in towers]
        raise ValueError(f"model must hold one vision transformer; received {kinds}: adapt each of them")
    family = load_family(towers[0])
    blocks: list[Any] = list(family.blocks(towers[0]))
    for index, block in enumerate(blocks):
        if type(block) not in family.ADAPTED:
            known = ", ".join(sorted(cls.__name__ for cls in family.ADAPTED))
            raise ValueError(f"block {index} is a {type(block).__name__}; adapt knows {known}")
    return towers[0], blocks, family.ADAPTED


def _factory(block: Any) -> dict[str, Any]:
    """Return width, device and dtype of a block, from the first linear map of its feed-forward network."""
    first = next(module for module in block.mlp.modules() if isinstance(module, nn.Linear))
    return {"dim": first.in_features, "device": first.weight.device, "dtype": first.weight.dtype}


def _freeze(tower: nn.Module) -> None:
    strengths = {id(strength) for strength in strengths_of(tower).values()}
    for parameter in tower.parameters():
        parameter.requires_grad_(id(parameter) in strengths and parameter.requires_grad)


def _shift_prefix(block: nn.Module, count: int) -> None:
    """Add `count` to the number of first tokens to which a block applies no rotary embedding."""
    for module in block.modules():
        if hasattr(module, "num_prefix_tokens"):
            module.num_prefix_tokens += count  # pyright: ignore
