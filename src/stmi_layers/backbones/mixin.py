"""Mixin that modulates a library's attention module, by two strengths and a foreground mask.

Every modulated class derives from the class that it replaces. Without a mask the code of the original class runs, and
results are equal bit for bit. An instance changes only its class: parameters keep their names and their values.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._strengths import keep_strengths
from stmi_layers.attention import modulate_logits, modulated_attention
from stmi_layers.foreground import MaskPerturbation
from stmi_layers.kernels.dispatch import Implementation


class Modulated(nn.Module):
    """Mixin of an attention class: the strengths, and the modulated attention between the projections."""

    unmodulated: ClassVar[type[nn.Module]]

    alpha: nn.Parameter | None  # None in a block that modulate(layers=...) left out
    beta: nn.Parameter | None
    perturbation: MaskPerturbation
    follows: bool  # an earlier block of the model holds the same two parameters
    implementation: Implementation = "auto"  # form of the attention

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        """Names that `save_pretrained` of transformers may leave out, because an earlier block saves their values."""
        return {"alpha": "alpha", "beta": "beta"} if getattr(self, "follows", False) else {}

    def route(self, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Tell a foreground mask, boolean with two axes, from an attention mask: (foreground, attention mask).

        A block without strengths ignores the foreground mask, so that all blocks can get the same mask.
        """
        if mask is None or mask.dtype != torch.bool or mask.dim() != 2:
            return None, mask
        return (None if self.alpha is None else mask), None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, scale: float) -> Tensor:
        """Return modulated attention of (batch heads tokens head_dim), heads merged, with the mask perturbed."""
        return self.attend_to(query, key, value, self.perturbation(foreground), scale)

    def attend_to(self, query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, scale: float) -> Tensor:
        """Return modulated attention of (batch heads tokens head_dim), heads merged, with the mask unchanged."""
        if foreground.shape != (query.shape[0], query.shape[2]):
            expected = f"(batch, tokens) = ({query.shape[0]}, {query.shape[2]}), the tokens that attend"
            raise ValueError(
                f"foreground must have shape {expected}; received {tuple(foreground.shape)}. "
                "Patch dropout leaves tokens out: switch patch dropout off"
            )
        alpha, beta = self.strengths()
        # Under autocast a norm gives queries and keys in float32, while values are in half precision.
        query, key = query.to(value.dtype), key.to(value.dtype)
        attended = modulated_attention(
            query, key, value, foreground, alpha, beta, scale=scale, implementation=self.implementation
        )
        return attended.transpose(1, 2).flatten(2)

    def strengths(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return both strengths; refuse a block without strengths."""
        if self.alpha is None or self.beta is None:
            raise ValueError(f"{type(self).__name__} has no strengths: modulate(layers=...) left its block out")
        return self.alpha, self.beta

    def weights(self, query: Tensor, key: Tensor, foreground: Tensor, scale: float) -> Tensor:
        """Return the weights of modulated attention, (batch heads tokens tokens), in the dtype of `query`."""
        with without_autocast(query):
            logits = at_least_float32(query) * scale @ at_least_float32(key).transpose(-2, -1)
            return modulate_logits(logits, foreground, *self.strengths()).softmax(dim=-1).to(query.dtype)

    def refuse_dropout(self, p: float) -> None:
        """Refuse dropout of attention weights in training, which modulated attention does not have."""
        if self.training and p > 0:
            raise ValueError(
                f"attention dropout must be 0 to train with a foreground mask; received {p} in "
                f"{type(self).unmodulated.__name__}"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Keep the strengths when a checkpoint of this attention lacks them; refuse two values of a shared strength."""
        keep_strengths(self, state_dict, prefix)
        for name in ("alpha", "beta"):
            strength, stored = getattr(self, name), state_dict.get(f"{prefix}{name}")
            if self.follows and strength is not None and stored is not None and _differ(stored, strength):
                args[-1].append(  # load_state_dict raises these messages at the end
                    f"{prefix}{name} has another value than in the blocks before, and all of them share one "
                    'parameter: build the model with modulate(..., share="layer") for this state dict'
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _differ(stored: Tensor, strength: Tensor) -> bool:
    """Tell whether two tensors of equal shape differ in value; tensors on the meta device have no values."""
    if stored.is_meta or strength.is_meta or stored.shape != strength.shape:
        return False
    return not torch.equal(stored.to(strength), strength)


# Views instead of einops, because every block calls them: einops takes a hundredth of the network's time for one image.
def split_heads(projected: Tensor, heads: int) -> Tensor:
    """Rearrange (batch tokens (heads dim)) to (batch heads tokens dim)."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def split_projections(projected: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Split (batch tokens (three heads dim)) into queries, keys and values, each (batch heads tokens dim)."""
    return projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class ModulatedMultiheadAttention(Modulated, nn.MultiheadAttention):
    """`nn.MultiheadAttention` that takes `foreground` as a further keyword argument."""

    unmodulated = nn.MultiheadAttention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        foreground: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the original attention; with `foreground` (Bool, batch tokens), run modulated self-attention.

        `need_weights=True`, the default, also returns the attention weights, which stores tokens x tokens numbers.
        """
        if foreground is None or self.alpha is None:
            options = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return nn.MultiheadAttention.forward(self, query, key, value, *options)
        if not (query is key is value) or query.dim() != 3:
            raise ValueError("foreground needs self-attention: query, key and value must be one batch of tokens")
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ValueError("foreground cannot be combined with key_padding_mask, attn_mask or is_causal")
        self.refuse_dropout(self.dropout)
        tokens = query if self.batch_first else query.transpose(0, 1)
        projected = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = split_projections(projected, self.num_heads)
        mask, scale = self.perturbation(foreground), self.head_dim**-0.5
        output = self.out_proj(self.attend_to(query, key, value, mask, scale))
        weights = self.weights(query, key, mask, scale) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        return output if self.batch_first else output.transpose(0, 1), weights


def refuse_multihead(attention: nn.MultiheadAttention) -> None:
    """Refuse the options of `nn.MultiheadAttention` that add keys or change their width."""
    if attention.bias_k is not None or attention.add_zero_attn or not attention._qkv_same_embed_dim:
        raise ValueError("modulate takes nn.MultiheadAttention without kdim, vdim, add_bias_kv and add_zero_attn")
