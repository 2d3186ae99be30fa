"""Supported vision transformers, recognised by the names of their classes without an import of their library."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Protocol, runtime_checkable

from torch import nn

from stmi_layers.backbones.tower import Tower

# Class of the model -> the file here that supports it, and the extra that installs its library.
KNOWN = {
    "open_clip.transformer.VisionTransformer": ("_open_clip", "clip"),
    "open_clip.timm_model.TimmModel": ("_timm", "clip"),
    "timm.models.vision_transformer.VisionTransformer": ("_timm", "timm"),
    "timm.models.eva.Eva": ("_timm", "timm"),
    "transformers.models.clip.modeling_clip.CLIPVisionModel": ("_transformers", "hf"),
    "transformers.models.clip.modeling_clip.CLIPVisionModelWithProjection": ("_transformers", "hf"),
    "transformers.models.dinov2.modeling_dinov2.Dinov2Model": ("_transformers", "hf"),
    "transformers.models.siglip.modeling_siglip.SiglipVisionModel": ("_transformers", "hf"),
}

LIBRARIES = ("open_clip", "timm", "torchvision", "transformers")

# Blocks that hold nn.MultiheadAttention and cannot pass a foreground mask to it.
CLOSED = {
    "torch.nn.modules.transformer.TransformerEncoderLayer",
    "torch.nn.modules.transformer.TransformerDecoderLayer",
    "torchvision.models.vision_transformer.EncoderBlock",
}


@runtime_checkable
class Family(Protocol):
    """Contents of a file that supports the models of one library."""

    ADAPTED: Mapping[type[nn.Module], type[nn.Module]]
    MODULATED: Mapping[type[nn.Module], type[nn.Module]]
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    attention: Callable[[nn.Module], nn.Module]
    tower: Callable[[nn.Module, bool], Tower]


def find_towers(model: nn.Module) -> list[nn.Module]:
    """Return the outermost supported vision transformers in `model`, which may be one itself, each transformer once."""
    return list(dict.fromkeys(_walk(model)))


def _walk(model: nn.Module) -> Iterator[nn.Module]:
    if _known(model) is not None:
        yield model
        return
    for child in model.children():
        yield from _walk(child)


def load_family(model: nn.Module) -> Family:
    """Import and return the file that supports `model`, one of the results of `find_towers`."""
    found = _known(model)
    if found is None:
        raise unknown_model(model, "load_family")
    name, extra = found
    try:
        return import_module(f"stmi_layers.backbones.{name}")  # pyright: ignore[reportReturnType]
    except ImportError as error:
        message = (
            f"{_qualified(type(model))} needs a library that cannot be imported, or another version of it: {error}"
        )
        raise ImportError(f"{message}. From a clone: pip install '.[{extra}]'") from error


def refuse_closed_blocks(model: nn.Module) -> None:
    """Refuse a model with blocks that cannot pass a mask to their attention, where modulation would have no effect."""
    closed = {_qualified(type(module)) for module in model.modules()} & CLOSED
    if closed:
        raise ValueError(
            f"model holds {', '.join(sorted(closed))}, which cannot pass a mask to its attention. Write the block "
            "around nn.MultiheadAttention yourself, and call the attention with foreground="
        )


def refuse_library_parts(model: nn.Module) -> None:
    """Refuse a model with nn.MultiheadAttention inside a module of a library: most likely a text tower or a pooler."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        parts = name.split(".")
        around = [modules[".".join(parts[:count])] for count in range(len(parts))]
        if type(module) is nn.MultiheadAttention and any(_is_of_library(outer) for outer in around):
            raise unknown_model(model, "modulate")


def unknown_model(model: nn.Module, purpose: str) -> TypeError:
    """Return the error for a model without a supported vision transformer."""
    supported = "; ".join(
        f"pip install '.[{extra}]' from a clone: {', '.join(sorted(_names(extra)))}" for extra in ("clip", "timm", "hf")
    )
    return TypeError(
        f"{purpose} knows no vision transformer in {_qualified(type(model))}. Known models, by the command that "
        f"installs their library: {supported}. For any other model write the attention of its block with "
        "stmi_layers.modulated_attention, or replace that attention by stmi_layers.SegmentationModulatedAttention"
    )


def _is_of_library(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in LIBRARIES


def _names(extra: str) -> list[str]:
    return [f"{name.split('.')[0]} {name.rsplit('.')[-1]}" for name, (_, needed) in KNOWN.items() if needed == extra]


def _known(model: nn.Module) -> tuple[str, str] | None:
    trunk = getattr(model, "trunk", None)  # of open_clip's TimmModel, whose trunk may also be a convolutional network
    if isinstance(trunk, nn.Module) and _known(trunk) is None:
        return None
    return next((KNOWN[name] for name in map(_qualified, type(model).__mro__) if name in KNOWN), None)


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
