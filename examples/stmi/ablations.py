"""Replacements of the hypergraph in the paper's Table 4: self-attention and an MLP over the tokens.

Both have the arguments and results of `CrossModalHypergraph`.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn


class SelfAttentionInteraction(nn.Module):
    """Every semantic token attends to the semantic tokens of all modalities, with a residual."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        modalities, semantic = tokens.shape[1:3]
        nodes = rearrange(self.norm(tokens), "b m s d -> b (m s) d")
        absent = None if present is None else repeat(~present, "b m -> b (m s)", s=semantic)
        mixed, _ = self.attention(nodes, nodes, nodes, key_padding_mask=absent, need_weights=False)
        return tokens + _of_present(rearrange(mixed, "b (m s) d -> b m s d", m=modalities), present)


class TokenMixing(nn.Module):
    """A two-layer perceptron across all semantic tokens of a sample, the same for every feature, with a residual."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(num_nodes, 4 * num_nodes), nn.GELU(), nn.Linear(4 * num_nodes, num_nodes))

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        modalities = tokens.shape[1]
        nodes = rearrange(_of_present(tokens, present), "b m s d -> b d (m s)")
        return tokens + _of_present(rearrange(self.mlp(nodes), "b d (m s) -> b m s d", m=modalities), present)


def _of_present(tokens: Tensor, present: Tensor | None) -> Tensor:
    return tokens if present is None else torch.where(present[:, :, None, None], tokens, 0.0)
