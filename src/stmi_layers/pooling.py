r"""One vector per modality from its global token and its patches: global-patch reduction.

DeMo calls it patch-integrated feature extraction (PIFE); the heads of EDITOR and MambaPro end with the same operation.
Paper: "DeMo: Decoupled Feature-Based Mixture of Experts for Multi-Modal Object Re-Identification", AAAI 2025,
<https://arxiv.org/abs/2412.10650>.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._activations import quick_gelu
from stmi_layers._checks import check_choice, check_positive
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed

Activation = Literal["quick_gelu", "none"]


@typed
def join_patch_mean(
    globals: Float[Tensor, "batch modalities dim"],
    patches: Float[Tensor, "batch modalities patches dim"],
    *,
    keep: Bool[Tensor, "batch modalities patches"] | None = None,
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Float[Tensor, "batch modalities 2*dim"]:
    r"""Append the mean of the patches of every modality to its global token.

    $$\Big[\, \text{globals}_m \,;\; \frac{1}{|K_m|} \sum_{n \in K_m} \text{patches}_{mn} \,\Big], \qquad
    K_m = \{ n : \text{keep}_{mn} \}$$

    Args:
        globals: one token per modality, such as its class token.
        patches: patches of every modality.
        keep: True for the patches that enter the mean; None for all.
        present: True for the modalities that a sample has; None for all.

    Returns:
        Vectors of twice the width. The mean is 0 where no patch is kept, and the vector of an absent modality is 0.

    Examples:
        >>> globals_, patches = torch.tensor([[[5.0]]]), torch.tensor([[[[1.0], [3.0], [8.0]]]])
        >>> join_patch_mean(globals_, patches)  # (1 + 3 + 8) / 3
        tensor([[[5., 4.]]])
        >>> join_patch_mean(globals_, patches, keep=torch.tensor([[[True, True, False]]]))
        tensor([[[5., 2.]]])
    """
    if keep is None:
        mean = patches.mean(dim=2) if patches.shape[2] else torch.zeros_like(globals)
    else:
        # `where` instead of a product with the mask, because 0 * NaN is NaN.
        kept = at_least_float32(torch.where(keep[..., None], patches, 0.0))
        mean = (kept.sum(dim=2) / keep.sum(dim=2, keepdim=True).clamp(min=1)).to(patches.dtype)
    joined = torch.cat([globals, mean], dim=2)
    return joined if present is None else torch.where(present[..., None], joined, 0.0)


class GlobalPatchReduction(nn.Module):
    r"""Reduces the global token and the mean patch of every modality to one vector of the same width.

    $$g'_m = \sigma\big( W_m\, N_m( [\, g_m \,;\; \operatorname{mean}_n P_{mn} \,] ) + b_m \big)$$

    The brackets are [`join_patch_mean`][stmi_layers.pooling.join_patch_mean]; $N_m$ is a layer norm over twice the
    width and $\sigma$ the activation. The layer learns $W_m$, $b_m$ and $N_m$ separately for every modality. Use the
    result in place of the global token. With the defaults this is the patch-integrated feature of DeMo;
    `norm=False, activation="none"` is the reduction of EDITOR, and `activation="none"` is the reduction of MambaPro.

    Differences from the research code of DeMo:

    - Modalities are an axis, of any length, and a batch of one keeps its batch axis.
    - `present` leaves out missing modalities, and `keep` leaves out patches, such as background.

    After QuickGELU no entry is below -0.17, which shifts the cosines between such features up.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities.
        norm: whether a layer norm comes before the linear map.
        activation: $\sigma$, "quick_gelu" or "none".
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is not positive, or `activation` is neither of the two. `forward` also raises ValueError
            for inputs of the wrong size.

    Reference: DeMo, AAAI 2025, section "Patch-Integrated Feature Extractor".

    Examples:
        >>> reduction = GlobalPatchReduction(dim=8, num_modalities=3)
        >>> reduction(torch.randn(2, 3, 8), torch.randn(2, 3, 128, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        norm: bool = True,
        activation: Activation = "quick_gelu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        check_choice("activation", activation, ("quick_gelu", "none"))
        self.dim, self.num_modalities, self.norm, self.activation = dim, num_modalities, norm, activation
        factory = {"device": device, "dtype": dtype}
        if norm:
            self.norm_weight = nn.Parameter(torch.empty(num_modalities, 2 * dim, **factory))
            self.norm_bias = nn.Parameter(torch.empty(num_modalities, 2 * dim, **factory))
        self.weight = nn.Parameter(torch.empty(num_modalities, dim, 2 * dim, **factory))
        self.bias = nn.Parameter(torch.empty(num_modalities, dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values of every modality: those of `nn.LayerNorm` and `nn.Linear`."""
        if self.norm:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)
        bound = (2 * self.dim) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @typed
    def forward(
        self,
        globals: Float[Tensor, "batch modalities dim"],
        patches: Float[Tensor, "batch modalities patches dim"],
        keep: Bool[Tensor, "batch modalities patches"] | None = None,
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities dim"]:
        """Reduce the `globals` and the `patches` that `keep` marks True; absent modalities give 0."""
        if globals.shape[1:] != (self.num_modalities, self.dim):
            rule = f"globals must have num_modalities={self.num_modalities} rows of width dim={self.dim}"
            raise ValueError(f"{rule}; received shape {tuple(globals.shape)}")
        joined = join_patch_mean(globals, patches, keep=keep, present=present)
        joined = self._normalised(joined) if self.norm else joined
        reduced = torch.einsum("bmc, mdc -> bmd", joined, self.weight) + self.bias
        reduced = quick_gelu(reduced) if self.activation == "quick_gelu" else reduced
        reduced = reduced if present is None else torch.where(present[..., None], reduced, 0.0)
        return reduced.to(globals.dtype)

    def _normalised(self, joined: Tensor) -> Tensor:
        with without_autocast(joined):
            unit = F.layer_norm(at_least_float32(joined), (2 * self.dim,))
            return (unit * self.norm_weight + self.norm_bias).to(joined.dtype)

    def extra_repr(self) -> str:
        options = f"norm={self.norm}, activation={self.activation!r}"
        return f"dim={self.dim}, num_modalities={self.num_modalities}, {options}"
