r"""Token permutation (TPM): the global token of every modality reads the patches of all modalities in turn.

Paper: "TOP-ReID: Multi-spectral Object Re-Identification with Token Permutation", AAAI 2024,
<https://arxiv.org/abs/2312.09612>.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_heads, check_hidden, check_positive
from stmi_layers._precision import at_least_float32, call_wide, is_plain, layer_norm, without_autocast
from stmi_layers._typing import typed
from stmi_layers.cross_attention import read_by_keys
from stmi_layers.kernels.normalised_reading import ReadNormalised, ShareTokens, normalise


@typed
def cyclic_readout(
    queries: Float[Tensor, "batch modalities dim"],
    patches: Float[Tensor, "batch modalities patches dim"],
    query_weight: Float[Tensor, "dim dim"],
    key_weight: Float[Tensor, "dim dim"],
    value_weight: Float[Tensor, "dim dim"],
    num_heads: int,
    *,
    shift: int = 1,
) -> Float[Tensor, "batch modalities dim"]:
    r"""Let the query of every modality read the patches of the modality `shift` steps later in the cycle.

    $$\text{result}_m = \operatorname{concat}_h\Big( \operatorname{softmax}\big( (q_{m,h} W_{k,h})\,
    N(P_{m + \text{shift}})^\top \big)\, P_{m + \text{shift}}\, W_{v,h}^\top \Big), \qquad
    q_m = \text{queries}_m W_q^\top \big/ \sqrt{\text{dim} / \text{num\_heads}}$$

    $P$ are the `patches`, $N$ a layer norm without parameters; modalities are counted modulo their number. This is
    multi-head attention in another order: $W_k$ multiplies the single query of a modality, and $W_v$ multiplies the
    weighted sum, so that no patch is projected. Logits and softmax are computed in at least float32. The gradient of
    the patches has no second derivative.

    Args:
        queries: one token per modality.
        patches: keys and values, at least one per modality. Keys are normalised, and values are not.
        query_weight: projection of the queries; the $h$-th block of its rows belongs to head $h$.
        key_weight: projection of the keys, with the same blocks; to give $N$ a scale, multiply the columns by it.
        value_weight: projection of the values, with the same blocks.
        num_heads: number of heads; divides `dim`.
        shift: distance, in modalities, to the patches that are read; 0 for a modality's own patches.

    Returns:
        One convex combination of projected patches per modality and head, the heads concatenated.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or there are no patches.

    Examples:
        >>> queries = torch.zeros(1, 2, 2)  # zero queries attend evenly: the mean of the patches
        >>> patches = torch.tensor([[[[1.0, 0.0], [3.0, 0.0]], [[0.0, 5.0], [0.0, 7.0]]]])  # of two modalities
        >>> identity = torch.eye(2)
        >>> cyclic_readout(queries, patches, identity, identity, identity, num_heads=1)
        tensor([[[0., 6.],
                 [2., 0.]]])
    """
    check_heads(queries.shape[-1], num_heads)
    (reader,) = _readers(patches, num_heads, 1)
    return _cyclic_readout(F.linear(queries, query_weight), reader, key_weight, None, value_weight, shift)


class _Reader(NamedTuple):
    """Inputs of one readout of the patches: `slip` carries the gradient of the patches; None leaves it to autograd."""

    patches: Tensor
    keys: Tensor
    scale: Tensor
    slip: Tensor | None
    heads: int


def _readers(patches: Tensor, heads: int, count: int, *, shared: bool = True) -> list[_Reader]:
    """Normalise the patches once for `count` readouts, whose gradients are added up in one place if `shared`."""
    if patches.shape[2] == 0:
        raise ValueError(f"patches must hold at least one token; received shape {tuple(patches.shape)}")
    # A compiler needs plain operations; for patches without a gradient, autograd is as good.
    eager = shared and torch.is_grad_enabled() and patches.requires_grad and not torch.compiler.is_compiling()
    wide = patches.dtype in (torch.float32, torch.float64)
    if eager and wide and not torch.is_autocast_enabled(patches.device.type):
        fixed = patches.detach()
        keys, scale = normalise(fixed)
        slips = ShareTokens.apply(patches, keys, heads, count)
        return [_Reader(fixed, keys, scale, slip, heads) for slip in slips]
    return [_Reader(patches, *normalise(patches), None, heads)] * count


def _cyclic_readout(
    query: Tensor, reader: _Reader, key_weight: Tensor, key_scale: Tensor | None, value_weight: Tensor, shift: int
) -> Tensor:
    """Compute `cyclic_readout` from projected queries."""
    heads, modalities = reader.heads, query.shape[1]
    # The queries are rolled instead of the patches, because queries are fewer. The products need the heads first.
    query = rearrange(query.roll(shift, dims=1), "b m (h d) -> h (b m) d", h=heads)
    with without_autocast(query):
        query = at_least_float32(query) * query.shape[-1] ** -0.5
        rows = torch.bmm(query, at_least_float32(key_weight).unflatten(0, (heads, -1)))
        rows = rows if key_scale is None else rows * key_scale
    read = _read(rearrange(rows, "h (b m) c -> b m h c", m=modalities), reader)
    mixed = torch.bmm(value_weight.unflatten(0, (heads, -1)), rearrange(read, "b m h c -> h c (b m)"))
    return rearrange(mixed, "h d (b m) -> b m (h d)", m=modalities).roll(-shift, dims=1)


def _read(rows: Tensor, reader: _Reader) -> Tensor:
    """Return weighted means of the patches, (batch modalities heads dim)."""
    if reader.slip is not None:
        return ReadNormalised.apply(rows, reader.slip, reader.patches, reader.keys, reader.scale)[0]
    with without_autocast(rows):
        weights = (rows @ reader.keys.transpose(-2, -1)).softmax(dim=-1)
    return weights.to(reader.patches.dtype) @ reader.patches


class TokenPermutation(nn.Module):
    r"""Lets each global token read the patches of all other modalities in turn, then the patches of its own (TPM).

    For $M$ modalities there are $M$ stages, each with its own weights. In stage $s = 1 \ldots M - 1$ a global token
    reads the patches $s$ modalities later in the cycle; in the last stage it reads the patches of its own modality:

    $$c_m \leftarrow c_m + W_p\, \operatorname{CrossAttn}_s\big(N_1(c_m), N_P(P_{m + s}), P_{m + s}\big) + b_p
    \qquad c_m \leftarrow c_m + \operatorname{FFN}\big(N_2(c_m)\big)$$

    $c$ are the `globals`, $P$ the `patches`, $N$ layer norms, and CrossAttn is
    [`cyclic_readout`][stmi_layers.token_permutation.cyclic_readout]. All global tokens of a stage come from the
    previous stage, and the patches never change. A model concatenates the results to one descriptor,
    `result.flatten(1)`. The order of the modalities matters; the order of the patches does not matter. The number of
    parameters grows as $M$, and the number of readouts as $M^2$.

    Differences from the paper and the research code:

    - The layer takes any number of modalities. Three give the stages of the paper; one reads its own patches alone.
    - Modalities may be absent. If the patches to read are absent, a global token skips the whole stage, including the
      feed-forward network. The result of an absent modality is zero. The research code feeds black images instead.
    - The norm $N_P$ of the keys has no bias, because a bias adds the same to all logits of a query and cancels in the
      softmax.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities and of stages.
        num_heads: heads of the attention; divides `dim`.
        mlp_ratio: hidden width of the feed-forward networks, in units of `dim`.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or `num_modalities` or the hidden width is below 1.
            `forward` also raises ValueError for inputs of the wrong size.

    Reference: Wang et al., "TOP-ReID", AAAI 2024, section "Token Permutation Module".

    Examples:
        >>> permutation = TokenPermutation(dim=8, num_modalities=3, num_heads=2)
        >>> permutation(torch.randn(2, 3, 8), torch.randn(2, 3, 128, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(num_modalities=num_modalities)
        hidden = check_hidden(dim, mlp_ratio)
        self.dim, self.num_modalities, self.num_heads, self.mlp_ratio = dim, num_modalities, num_heads, mlp_ratio
        self.stages = nn.ModuleList(_Stage(dim, hidden, device=device, dtype=dtype) for _ in range(num_modalities))

    def reset_parameters(self) -> None:
        """Set the initial values of every stage: those of `nn.LayerNorm` and `nn.Linear`."""
        for stage in self.modules():
            if isinstance(stage, _Stage):
                stage.reset_parameters()

    @typed
    def forward(
        self,
        globals: Float[Tensor, "batch modalities dim"],
        patches: Float[Tensor, "batch modalities patches dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities dim"]:
        """Return the global tokens after all stages; zero for modalities that are not `present`."""
        if globals.shape[1:] != (self.num_modalities, self.dim):
            rule = f"globals must have width dim={self.dim} and num_modalities={self.num_modalities}"
            raise ValueError(f"{rule}; received shape {tuple(globals.shape)}")
        if present is not None:
            # Before the norms, because 0 * NaN is NaN in their gradients.
            globals = torch.where(present[..., None], globals, 0.0)
            patches = torch.where(present[..., None, None], patches, 0.0)
        # Plain layers need no projected patches; layers with adapters or hooks are called as modules.
        plain = all(is_plain(getattr(stage, name)) for stage in self.stages for name in ("key", "value"))
        tokens, readers = globals, _readers(patches, self.num_heads, self.num_modalities, shared=plain)
        for number, (stage, reader) in enumerate(zip(self.stages, readers, strict=True), start=1):
            moved = stage(tokens, reader, number % self.num_modalities, plain)
            if present is not None:
                moved = torch.where(present.roll(-number, dims=1)[..., None], moved, tokens)
            tokens = moved
        return (tokens if present is None else torch.where(present[..., None], tokens, 0.0)).to(globals.dtype)

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_modalities={self.num_modalities}"
        return f"{sizes}, num_heads={self.num_heads}, mlp_ratio={self.mlp_ratio}"


class _Stage(nn.Module):
    """One stage for all global tokens: readout and feed-forward network, both with residual."""

    def __init__(self, dim: int, hidden: int, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm_globals = nn.LayerNorm(dim, **factory)
        self.query = nn.Linear(dim, dim, bias=False, **factory)
        self.key = nn.Linear(dim, dim, bias=False, **factory)
        self.key_scale = nn.Parameter(torch.empty(dim, **factory))
        self.value = nn.Linear(dim, dim, bias=False, **factory)
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.norm_ffn = nn.LayerNorm(dim, **factory)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden, **factory), nn.GELU(), nn.Linear(hidden, dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.key_scale)
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm | nn.Linear):
                layer.reset_parameters()

    def forward(self, tokens: Tensor, reader: _Reader, shift: int, plain: bool) -> Tensor:
        query = self.query(layer_norm(self.norm_globals, tokens))
        if plain:
            read = _cyclic_readout(query, reader, self.key.weight, self.key_scale, self.value.weight, shift)
        else:
            keys, values = call_wide(self.key, reader.keys * self.key_scale), self.value(reader.patches)
            read = read_by_keys(query.roll(shift, dims=1), keys, values, reader.heads).roll(-shift, dims=1)
        tokens = tokens + self.out_proj(read)
        return tokens + self.ffn(layer_norm(self.norm_ffn, tokens))
