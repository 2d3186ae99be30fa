r"""Self-attention steered by a segmentation mask: Segmentation-Guided Feature Modulation (SFM).

Foreground tokens attend to each other more, all other pairs attend less, and no token is dropped (eq. 3-8).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_heads, check_probability
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._strengths import keep_strengths
from stmi_layers._typing import typed
from stmi_layers.foreground import perturb_background
from stmi_layers.kernels.dispatch import Implementation, check_implementation, implementation_for


@typed
def modulate_logits(
    logits: Float[Tensor, "batch heads tokens tokens"],
    foreground: Bool[Tensor, "batch tokens"],
    alpha: Float[Tensor, "#heads"],
    beta: Float[Tensor, "#heads"],
) -> Float[Tensor, "batch heads tokens tokens"]:
    r"""Add the modulation of eq. 4-7 to attention logits: the readable specification of this file.

    $$A + \alpha\, R \odot (\max_j A - A) - \beta\,(1 - R) \odot (A - \min_j A), \qquad R = m^\top m$$

    Args:
        logits: $A$, queries in the rows and keys in the columns, before the softmax.
        foreground: $m$, True for foreground tokens.
        alpha: $\alpha$, strength on pairs of foreground tokens: 0 keeps a logit, 1 raises it to the maximum of its
            row. Not restricted to [0, 1]; above 1 the order of the foreground columns is reversed.
        beta: $\beta$, strength on all other pairs: 0 keeps a logit, 1 lowers it to the minimum of its row.

    Returns:
        The modulated logits, in the dtype of `logits`. Minimum and maximum of a row run over all of its columns.

    Examples:
        >>> logits = torch.tensor([[[[4.0, 0.0], [2.0, 6.0]]]])
        >>> foreground = torch.tensor([[True, False]])
        >>> modulate_logits(logits, foreground, torch.tensor([0.5]), torch.tensor([0.5]))
        tensor([[[[4., 0.],
                  [2., 4.]]]])
    """
    alpha, beta = alpha[:, None, None], beta[:, None, None]
    pair = foreground[:, None, :, None] & foreground[:, None, None, :]
    wide = at_least_float32(logits)
    towards_maximum = wide.amax(dim=-1, keepdim=True) - wide
    towards_minimum = wide - wide.amin(dim=-1, keepdim=True)
    return (wide + alpha * pair * towards_maximum - beta * ~pair * towards_minimum).to(logits.dtype)


@typed
def modulated_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    foreground: Bool[Tensor, "batch tokens"] | None,
    alpha: Float[Tensor, "#heads"],
    beta: Float[Tensor, "#heads"],
    *,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Float[Tensor, "batch heads tokens head_dim"]:
    r"""Attend with foreground-modulated logits (eq. 3-8).

    $$\operatorname{softmax}\big(\text{scale} \cdot (A + S)\big)\,\text{value},
    \qquad A = \text{query}\,\text{key}^\top$$

    $A + S$ are the logits of [`modulate_logits`][stmi_layers.attention.modulate_logits] in closed form: a pair keeps
    the slope $1-\alpha$ (both foreground) or $1-\beta$ (otherwise) of its logit, and only the background columns of a
    foreground row need a constant, $\beta \min_j A - \alpha \max_j A$. A background row is therefore plain attention at
    another temperature. Logits and softmax are computed in at least float32.

    | `implementation` | device | form | second derivatives |
    | --- | --- | --- | --- |
    | `"dense"` | any | the readable one: stores tokens x tokens logits | yes |
    | `"tiled"` | CPU | stores a few tiles of the logits at a time | no |
    | `"widened"` | any | one `scaled_dot_product_attention` over heads of twice the width | those of this function |
    | `"native"` | CPU | C++ kernel, built once by a command; stores logits of 48 rows per thread | no |
    | `"triton"` | NVIDIA GPU | own kernels, never run on a GPU so far; needs triton, heads of 32, 64, 128 | no |

    `"auto"` is dense while a graph is exported or traced, inside `torch.func` and for forward-mode derivatives;
    otherwise it is tiled on a CPU and widened elsewhere. Where extrema of a row are tied, dense and tiled spread the
    gradient evenly, while widened, native and triton give it to one of the tied keys. On a CPU with bfloat16 products
    (AVX512-BF16 or AMX), tiled attends in bfloat16 as plain attention does, above $2^{19}$ logits per sample; below,
    and on any other CPU, it computes half precision in float32. The page on benchmarks has figures.

    `"auto"` never takes native. The command `python -m stmi_layers.kernels.native` builds it in seconds, once per
    version of torch: on Linux, with a C++20 compiler (GCC 11, Clang 14 or newer), for a processor with AVX2. Native
    computes half precision in float32, and its gradients are the same in every run with as many threads. It runs under
    `torch.compile` from torch 2.7 on, and is refused in exported and traced graphs and inside `torch.func`.

    Args:
        query: queries per head.
        key: keys per head.
        value: values per head.
        foreground: True for foreground tokens; None gives plain attention, without modulation.
        alpha: strength on pairs of foreground tokens, one for all heads or one per head; usually 0 to 1, not enforced.
        beta: strength on all other pairs, with the same shape and range.
        scale: factor of the logits, above 0; `head_dim ** -0.5` by default.
        implementation: name of the form, or "auto".

    Returns:
        The attended values, in the dtype of `value`; with `alpha == beta == 0` those of plain attention.

    Raises:
        ValueError: when `scale` is not positive, the dtypes of `query`, `key` and `value` differ, or the
            implementation does not exist or cannot run on these tensors.
        RuntimeError: when `implementation` is "native" and its kernel is not built.

    Examples:
        >>> query = key = torch.tensor([[[[1.0], [0.0]]]])
        >>> value = torch.tensor([[[[1.0], [0.0]]]])
        >>> foreground = torch.tensor([[True, False]])
        >>> strength = torch.tensor([1.0])  # logits (1, 0) become (1, 0) in the first row and (0, 0) in the second
        >>> modulated_attention(query, key, value, foreground, strength, strength)
        tensor([[[[0.7311],
                  [0.5000]]]])
    """
    if not query.dtype == key.dtype == value.dtype:
        received = f"query {query.dtype}, key {key.dtype}, value {value.dtype}"
        raise ValueError(f"query, key and value must share one dtype; received {received}")
    if scale is not None and not scale > 0:
        rule = "scale must be above 0, because a negative factor swaps maximum and minimum of a row"
        raise ValueError(f"{rule}; received {scale}")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    attend = implementation_for(implementation, query, key, value, alpha, beta)
    with without_autocast(query):
        if foreground is None:
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
        return attend(query, key, value, foreground, alpha, beta, scale)


class SegmentationModulatedAttention(nn.Module):
    r"""Multi-head self-attention around [`modulated_attention`][stmi_layers.attention.modulated_attention].

    Put it where a vision transformer has its self-attention. It learns the four projections and the strengths $\alpha$
    and $\beta$. The projections have the names and shapes of `nn.MultiheadAttention`, whose state dict loads with
    `strict=True`; `alpha` and `beta` then keep their values.

    Differences from the paper:

    - The logits are those of each head, scaled by `head_dim ** -0.5`; the paper writes one head of the full width.
    - `per_head=True` learns one pair of strengths per head (Table 5 D). To share one pair between all blocks
      (Table 5 A), assign one block's `alpha` and `beta` to the others.

    Differences from the research code: $\alpha$ and $\beta$ start at 0.1 exactly, without noise.

    Args:
        dim: width of the tokens.
        num_heads: number of heads; divides `dim`.
        qkv_bias: learn a bias in the projections to query, key and value.
        alpha: initial strength on pairs of foreground tokens. With `alpha` and `beta` 0, the layer starts as plain
            attention, and still learns both.
        beta: initial strength on all other pairs.
        per_head: learn `alpha` and `beta` per head.
        perturbation: probability, in training, that a background token is treated as foreground; drawn in every call.
        implementation: form of [`modulated_attention`][stmi_layers.attention.modulated_attention]; `"dense"` has
            second derivatives.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, `perturbation` is not a probability, or there is no such
            implementation. `forward` also raises ValueError for inputs of the wrong size.

    Reference: STMI, AAAI 2026, section "Segmentation-Guided Feature Modulation".

    Examples:
        >>> attention = SegmentationModulatedAttention(dim=8, num_heads=2)
        >>> foreground = torch.tensor([[True, True, False, False, False]])
        >>> attention(torch.randn(1, 5, 8), foreground).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        alpha: float = 0.1,
        beta: float = 0.1,
        per_head: bool = False,
        perturbation: float = 0.0,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_probability("perturbation", perturbation)
        check_implementation(implementation)
        self.dim, self.num_heads, self.qkv_bias, self.per_head = dim, num_heads, qkv_bias, per_head
        self.initial_alpha, self.initial_beta = alpha, beta
        self.implementation: Implementation = implementation
        factory = {"device": device, "dtype": dtype}
        strengths = num_heads if per_head else 1
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, **factory)) if qkv_bias else None
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.alpha = nn.Parameter(torch.empty(strengths, **factory))
        self.beta = nn.Parameter(torch.empty(strengths, **factory))
        self.perturbation = perturbation
        self.register_load_state_dict_pre_hook(keep_strengths)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.MultiheadAttention`, and the strengths given to the constructor."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)
        nn.init.constant_(self.alpha, self.initial_alpha)
        nn.init.constant_(self.beta, self.initial_beta)

    @typed
    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], foreground: Bool[Tensor, "batch tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend among `tokens`; `foreground` is True for foreground tokens, and None switches the modulation off."""
        if tokens.shape[-1] != self.dim:
            raise ValueError(f"tokens must have width dim={self.dim}; received shape {tuple(tokens.shape)}")
        if foreground is not None and self.training and self.perturbation > 0:
            foreground = perturb_background(foreground, self.perturbation)
        projected = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = rearrange(
            projected, "batch tokens (three heads dim) -> three batch heads tokens dim", three=3, heads=self.num_heads
        )
        attended = modulated_attention(
            query, key, value, foreground, self.alpha, self.beta, implementation=self.implementation
        )
        return self.out_proj(rearrange(attended, "batch heads tokens dim -> batch tokens (heads dim)"))

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, qkv_bias={self.qkv_bias}, "
            f"alpha={self.initial_alpha}, beta={self.initial_beta}, per_head={self.per_head}, "
            f"perturbation={self.perturbation}, implementation={self.implementation!r}"
        )
