"""Checks that the tensors of a weights file fit a model; errors name the tensors that do not."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from stmi_layers.backbones.weight_names import part_that_fits


def refuse_missing(names: set[str], own: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file that lacks tensors of the model, with the cure."""
    if names:
        raise ValueError(
            f"{path} lacks {len(names)} of the {len(own)} tensors of the model: {shorten(sorted(names))}; "
            f"{_cure(own, stored, path)}"
        )


def _cure(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> str:
    if re.search("-[0-9]+-of-[0-9]+[.]", path.name):
        return "the file is one of several shards: pass the .index.json in its folder"
    if any(".lora_" in name or ".base_layer." in name for name in stored):
        return "the file holds LoRA weights that are not merged: call merge_and_unload() of peft before saving"
    if part := part_that_fits(own, stored):
        return f"the file fits the part {part!r} of the model: pass model.get_submodule({part!r})"
    return "build the model of this file, without modules that the file does not have"


def refuse_other_tensors(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], parameters: Mapping[str, Tensor], path: Path
) -> None:
    """Refuse tensors of another shape or kind of numbers, values that are not finite, and two values of a parameter.

    Args:
        weights: tensors of the file by their names in the model.
        own: tensors of the model.
        parameters: parameters of the model by all their names. Buffers may hold infinities, as masks do, but not NaN.
        path: path of the file, for messages.

    Raises:
        ValueError: when a tensor does not fit; the message names the tensors.
    """
    _refuse(path, "is of another model, {} shapes differ", _other_shapes(weights, own))
    _refuse(path, "holds other kinds of numbers in {} tensors", _other_kinds(weights, own))
    not_finite = [
        f"{name} ({int(wrong.sum())} of {wrong.numel()})"
        for name, tensor in weights.items()
        if tensor.is_floating_point()
        if (wrong := tensor.isfinite().logical_not() if name in parameters else tensor.isnan()).any()
    ]
    _refuse(path, "holds values that are not finite in {} tensors", not_finite)
    first: dict[int, str] = {}
    for name, parameter in parameters.items():
        other = first.setdefault(id(parameter), name)
        if name in weights and other in weights and not torch.equal(weights[name], weights[other]):
            raise ValueError(
                f"{path} has two values for {other} and {name}, which are one parameter of the model. Build the model "
                'without sharing; for strengths by modulate(..., share="layer")'
            )


def _refuse(path: Path, what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"{path} {what.format(len(names))}: {shorten(names)}")


def _other_shapes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in the model"
        for name, tensor in weights.items()
        if tensor.shape != own[name].shape
    ]


def _other_kinds(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {_kind(tensor)} in the file and {_kind(own[name])} in the model"
        for name, tensor in weights.items()
        if _kind(tensor) != _kind(own[name])
    ]


def _kind(tensor: Tensor) -> str:
    """Return the kind of numbers; converting one kind to another loses digits or needs a scale from elsewhere."""
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() == 1):
        return f"quantised ({tensor.dtype})"
    if tensor.is_complex() or tensor.is_floating_point():
        return "complex" if tensor.is_complex() else "floating"
    return "bool" if tensor.dtype == torch.bool else "whole"


def shorten(names: Iterable[str]) -> str:
    """Return the first five names, and the number of further names."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
