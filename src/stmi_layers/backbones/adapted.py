"""Mixin that adds to a library's block: an adapter parallel to its feed-forward network, and prompts.

An adapted class derives from the class of the block and changes only its forward pass: parameters keep their names and
their values. Prompts come before all other tokens. Between two blocks the carried prompts are the first tokens, so that
activation checkpointing handles them like all tokens.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stmi_layers.adapters import ParallelAdapter, ResidualPrompts


class Adapted(nn.Module):
    """Mixin of an adapted block: prompts before the attention, adapter and removal of prompts at the end."""

    unadapted: ClassVar[type[nn.Module]]

    adapter: ParallelAdapter | None
    prompts: ResidualPrompts | None
    last: bool  # the last block passes no prompts on

    def open(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Insert the prompts of this block before the tokens, and equally many True before a foreground mask."""
        if self.prompts is None:
            return tokens, mask
        modalities, carried = self.prompts.num_modalities, None
        # A compiler can evaluate this check, because it concerns sizes and no values.
        if tokens.shape[0] % modalities:
            rule = f"batch must hold all {modalities} modalities of every sample, one after the other"
            raise ValueError(f"{rule}; received {tokens.shape[0]} images")
        if self.prompts.carries:
            count = self.prompts.num_prompts
            carried, tokens = tokens[:, :count].unflatten(0, (-1, modalities)), tokens[:, count:]
        slots = self.prompts(carried).to(tokens.dtype)
        slots = slots.expand(tokens.shape[0] // modalities, -1, -1, -1).flatten(0, 1)
        return torch.cat([slots, tokens], dim=1), _extended(mask, slots)

    def close(self, tokens: Tensor, fed: Tensor) -> Tensor:
        """Add the output `fed` of the feed-forward network and the output of the adapter; remove the prompts.

        All blocks but the last keep the mean of the prompts over their slots, for the next block.
        """
        output = tokens + fed
        if self.adapter is not None:
            output = output + self.adapter(tokens)
        if self.prompts is None:
            return output
        modalities, count = self.prompts.num_modalities, self.prompts.num_prompts
        slots, output = output[:, : modalities * count], output[:, modalities * count :]
        if self.last:
            return output
        return torch.cat([slots.unflatten(1, (modalities, count)).mean(dim=1), output], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Keep adapter and prompts when a checkpoint holds this block without them."""
        if any(key.startswith(prefix) for key in state_dict):
            for name in ("adapter", "prompts"):
                part: nn.Module | None = getattr(self, name)
                if part is not None and not any(key.startswith(f"{prefix}{name}.") for key in state_dict):
                    state_dict.update({f"{prefix}{name}.{key}": value for key, value in part.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def added_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that adapters and prompts add to a model."""
    return {
        f"{prefix}.{part}.{name}".removeprefix(".")
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Adapted)
        for part in ("adapter", "prompts")
        if getattr(module, part) is not None
        for name, _ in getattr(module, part).named_parameters()
    }


def num_modalities(model: nn.Module) -> int | None:
    """Return the number of modalities that the prompts of a model are built for; None without prompts."""
    found = (module.prompts for module in model.modules() if isinstance(module, Adapted))
    return next((prompts.num_modalities for prompts in found if prompts is not None), None)


def _extended(mask: Tensor | None, slots: Tensor) -> Tensor | None:
    """Return the mask with True for the prompts, which are foreground like the class token."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.dim() != 2:
        rule = "the mask of a block with prompts must be a foreground mask, Bool (batch, tokens)"
        raise ValueError(f"{rule}; received {mask.dtype} with {mask.dim()} axes")
    return torch.cat([mask.new_ones(slots.shape[:2]), mask], dim=1)
