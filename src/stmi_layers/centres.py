r"""Moving centres per identity and modality (OCFR), and the loss that pulls features towards their centres.

Paper: "Magic Tokens: Select Diverse Tokens for Multi-modal Object Re-Identification" (EDITOR), CVPR 2024,
<https://arxiv.org/abs/2403.10254>.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stmi_layers._checks import check_choice, check_positive, check_probability
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed


@typed
def move_centres(
    centres: Float[Tensor, "modalities identities dim"],
    seen: Bool[Tensor, "modalities identities"],
    features: Float[Tensor, "batch modalities dim"],
    labels: Int[Tensor, " batch"],
    *,
    rate: float = 0.8,
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> tuple[Float[Tensor, "modalities identities dim"], Bool[Tensor, "modalities identities"]]:
    r"""Move the centre of every identity in the batch towards the mean of its unit-length features.

    $$C_{m,y} \leftarrow \text{rate} \cdot \operatorname{mean}_{b:\ \text{labels}_b = y,\ \text{present}_{b,m}}
    \frac{f_{b,m}}{\lVert f_{b,m} \rVert} + (1 - \text{rate})\, C_{m,y}$$

    $f$ are the `features`. A centre that was not `seen` before becomes the mean itself. Centres are not normalised
    again. The order of the batch does not matter, and identities may differ in their number of samples.

    Args:
        centres: $C$, one per modality and identity.
        seen: True for the centres that were moved before.
        features: one vector per sample and modality, of any length.
        labels: identity of each sample, from 0 to `identities - 1`.
        rate: share of the new mean, in [0, 1].
        present: True for the features that count; None for all.

    Returns:
        All centres, and a mask of the centres seen so far, both without gradient. Centres of absent identities are
        unchanged.

    Raises:
        ValueError: when `rate` lies outside [0, 1].

    Examples:
        >>> centres, seen = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[True, False]])
        >>> features = torch.tensor([[[0.0, 2.0]], [[0.0, 5.0]]])
        >>> move_centres(centres, seen, features, torch.tensor([0, 1]), rate=0.5)
        (tensor([[[0.5000, 0.5000],
                 [0.0000, 1.0000]]]), tensor([[True, True]]))
    """
    check_probability("rate", rate)
    with torch.no_grad(), without_autocast(features):
        units = _units(features, present).transpose(0, 1)
        member = labels == torch.arange(centres.shape[1], device=labels.device)[:, None]
        member = member.expand(units.shape[0], -1, -1) if present is None else member & present.T[:, None, :]
        counts = member.sum(dim=2, keepdim=True)
        means = member.to(units.dtype) @ units / counts.clamp(min=1)
        share = torch.where(seen[..., None], rate, 1.0) * (counts > 0)
        moved = centres + share.to(means.dtype) * (means - centres)
        return moved.to(centres.dtype), seen | (counts[..., 0] > 0)


@typed
def centre_alignment(
    features: Float[Tensor, "batch modalities dim"],
    labels: Int[Tensor, " batch"],
    centres: Float[Tensor, "modalities identities dim"],
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the mean squared difference of unit-length features and their centres, summed over the modalities.

    $$\sum_m \frac{1}{|V_m| \cdot \text{dim}} \sum_{b \in V_m}
    \Big\lVert \frac{f_{b,m}}{\lVert f_{b,m} \rVert} - C_{m,\, \text{labels}_b} \Big\rVert^2$$

    $f$ are the `features`, $C$ the `centres`, and $V_m$ the samples in which the modality is present.

    Args:
        features: one vector per sample and modality, of any length.
        labels: identity of each sample, from 0 to `identities - 1`.
        centres: one per modality and identity; those of `CentreAlignment` are buffers without gradient.
        present: True for the features that count; None for all.

    Returns:
        The sum, never negative, in at least float32; 0 with a zero gradient when nothing is present.

    Examples:
        >>> features, centres = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.6, 0.0]]])
        >>> centre_alignment(features, torch.tensor([0]), centres)  # 0.8^2, over two components
        tensor(0.3200)
    """
    units = _units(features, present)
    own = at_least_float32(centres).index_select(1, labels.long()).transpose(0, 1)
    difference = units - own
    if present is not None:
        difference = torch.where(present[..., None], difference, 0.0)
    samples = max(units.shape[0], 1) if present is None else present.sum(dim=0).clamp(min=1)
    return (difference.square().sum(dim=(0, 2)) / (samples * max(units.shape[2], 1))).sum()


def _units(features: Tensor, present: Tensor | None) -> Tensor:
    """Return features of unit length, in at least float32; zero where absent."""
    features = at_least_float32(features)
    features = features if present is None else torch.where(present[..., None], features, 0.0)
    return F.normalize(features, dim=-1)


class CentreAlignment(nn.Module):
    r"""Keeps one moving centre per identity and modality, and pulls the features of a batch towards them (OCFR).

    In training the centres move first, by [`move_centres`][stmi_layers.centres.move_centres], and the loss is then
    [`centre_alignment`][stmi_layers.centres.centre_alignment] with the moved centres. In evaluation the centres do not
    move. Centres are buffers: checkpoints hold them, and no optimizer changes them. The gradient flows through the
    features alone.

    Differences from the paper and the research code:

    - The order of the batch does not matter, and identities may differ in their number of samples. The research code
      assumes a batch that is sorted by identity with equal counts; any other order gives another loss.
    - The first time an identity is seen, its centre becomes the mean of its features. In the research code centres
      start at zero, so that the first centre is `rate` times the mean, which unit-length features cannot reach;
      `start="zero"` gives this start.

    Under distributed training every process moves its own copy unless the features are gathered first.

    Args:
        dim: width of the features.
        num_identities: number of training identities.
        num_modalities: number of modalities.
        rate: share of the new mean in a moved centre, in [0, 1].
        start: "mean" for a first centre that is the mean of its features, "zero" for centres that move from zero.
        device: device of the buffers; torch's default device if None.
        dtype: data type of the buffers; torch's default dtype if None.

    Raises:
        ValueError: when an option is out of range. `forward` also raises ValueError for inputs of the wrong size.

    Reference: Zhang et al., "Magic Tokens", CVPR 2024, section "Object-Centric Feature Refinement".

    Examples:
        >>> alignment = CentreAlignment(dim=8, num_identities=5, num_modalities=3)
        >>> features, labels = torch.randn(4, 3, 8), torch.tensor([2, 0, 2, 1])
        >>> alignment(features, labels).shape, int(alignment.seen.sum())
        (torch.Size([]), 9)
    """

    centres: Tensor
    seen: Tensor

    def __init__(
        self,
        dim: int,
        num_identities: int,
        num_modalities: int,
        *,
        rate: float = 0.8,
        start: Literal["mean", "zero"] = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_identities=num_identities, num_modalities=num_modalities)
        check_probability("rate", rate)
        check_choice("start", start, ("mean", "zero"))
        self.dim, self.num_identities, self.num_modalities = dim, num_identities, num_modalities
        self.rate, self.start = rate, start
        shape = (num_modalities, num_identities)
        self.register_buffer("centres", torch.empty(*shape, dim, device=device, dtype=dtype))
        self.register_buffer("seen", torch.empty(shape, device=device, dtype=torch.bool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget all centres."""
        nn.init.zeros_(self.centres)
        self.seen.fill_(self.start == "zero")

    @typed
    def forward(
        self,
        features: Float[Tensor, "batch modalities dim"],
        labels: Int[Tensor, " batch"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, in at least float32; in training the centres move first."""
        if features.shape[1:] != (self.num_modalities, self.dim):
            rule = f"features must have width dim={self.dim} and num_modalities={self.num_modalities}"
            raise ValueError(f"{rule}; received shape {tuple(features.shape)}")
        if self.training:
            moved = move_centres(self.centres, self.seen, features, labels, rate=self.rate, present=present)
            for buffer, value in zip((self.centres, self.seen), moved, strict=True):
                buffer.copy_(value)
        return centre_alignment(features, labels, self.centres, present)

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_identities={self.num_identities}, num_modalities={self.num_modalities}"
        return f"{sizes}, rate={self.rate}, start={self.start!r}"
