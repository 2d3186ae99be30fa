r"""Alignment of the modalities by the volume that their features span: Gram-volume alignment (GAM).

Equations 19-22 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>. The alignment of single patches is in
`local_alignment.py`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32
from stmi_layers._typing import typed
from stmi_layers.volume import gram_volume


@typed
def gram_alignment_loss(
    features: Float[Tensor, "batch modalities dim"],
    temperature: Float[Tensor, ""] | float,
    *,
    anchor: int | None = None,
    present: Bool[Tensor, "batch modalities"] | None = None,
    labels: Int[Tensor, " batch"] | None = None,
    smoothing: float = 0.1,
    equalise: bool = True,
) -> Float[Tensor, ""]:
    r"""Contrast the volume of each sample with its volumes for the anchors of other samples (eq. 22).

    $$\tfrac12 \operatorname{CE}(-V / t) + \tfrac12 \operatorname{CE}(-V^\top / t)$$

    $V$ are the volumes of the normalised `features` by [`gram_volume`][stmi_layers.volume.gram_volume], $t$ is
    the `temperature`, and CE the cross-entropy in which every row should choose its own sample, with label smoothing.

    Args:
        features: one vector per modality, of any length.
        temperature: $t$, finite and above 0.
        anchor: index of the modality that is exchanged between samples. None averages over every modality as anchor,
            because a single anchor never separates the remaining modalities of different samples.
        present: True for the modalities that a sample has; None for all. A sample takes part when it has the anchor
            and another modality.
        labels: identity of each sample. Samples of one identity are then no negatives of each other; None makes all
            other samples negatives.
        smoothing: share of the target that is spread evenly over all samples of a row, in [0, 1).
        equalise: raise the volume of a sample with $n$ of $M$ modalities besides the anchor to the power
            $(M - 1) / n$, so that it compares with the volume of all modalities.

    Returns:
        The mean over the samples that take part and over the anchors, in at least float32; 0 with a zero gradient
        when no sample takes part.

    Raises:
        ValueError: when `anchor`, `smoothing`, or a `temperature` that is a float, is out of range.

    Examples:
        >>> same, other = [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]
        >>> features = torch.tensor([same, other])  # volumes 0 in a sample, 1 across samples
        >>> gram_alignment_loss(features, 1.0, smoothing=0.0)  # log(1 + exp(-1))
        tensor(0.3133)
    """
    modalities = features.shape[1]
    _check_options(smoothing, temperature)
    if present is not None:
        features = torch.where(present[..., None], features, 0.0)
    features = F.normalize(at_least_float32(features), dim=-1)
    if modalities == 1 or features.shape[0] == 0:
        return 0.0 * features.sum() + 0.0 * temperature
    anchors = range(modalities) if anchor is None else (anchor,)
    allowed = None
    if labels is not None:
        itself = torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
        allowed = (labels[:, None] != labels) | itself
    losses = [_anchored_loss(features, temperature, one, present, allowed, smoothing, equalise) for one in anchors]
    total, usable = (torch.stack(part) for part in zip(*losses, strict=True))
    return total.sum() / usable.sum().clamp(min=1)


def _anchored_loss(
    features: Tensor,
    temperature: Tensor | float,
    anchor: int,
    present: Tensor | None,
    allowed: Tensor | None,
    smoothing: float,
    equalise: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss of one anchor and 1; both are 0 where no sample has the anchor and another modality."""
    volume = gram_volume(features, anchor=anchor, present=present)
    if present is None and allowed is None:
        logits, target = volume / -temperature, torch.arange(volume.shape[0], device=volume.device)
        both = (F.cross_entropy(part, target, label_smoothing=smoothing) for part in (logits, logits.T))
        return 0.5 * sum(both, start=logits.new_zeros(())), logits.new_ones(())
    rows = columns = volume.new_ones(volume.shape[0], dtype=torch.bool)
    if present is not None:
        others = present.sum(dim=1) - present[:, anchor].long()
        rows, columns = present[:, anchor], others > 0
        if equalise:
            volume = volume ** ((features.shape[1] - 1) / others.clamp(min=1).to(volume.dtype))
    logits, valid = volume / -temperature, rows & columns
    count = valid.sum()
    loss = volume.new_zeros(())
    for part, usable in ((logits, columns), (logits.T, rows)):
        choice = usable.expand_as(part) if allowed is None else usable & allowed
        own = _smoothed_cross_entropy(part, choice, smoothing)
        loss = loss + 0.5 * torch.where(valid, own, 0.0).sum() / count.clamp(min=1)
    return loss, (count > 0).to(loss.dtype)


def _smoothed_cross_entropy(logits: Tensor, choice: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy of each row, with its diagonal as target, among the columns that `choice` marks."""
    logarithm = logits.masked_fill(~choice, torch.finfo(logits.dtype).min).log_softmax(dim=1)
    spread = torch.where(choice, logarithm, 0.0).sum(dim=1) / choice.sum(dim=1).clamp(min=1)
    return -(1 - smoothing) * logarithm.diagonal() - smoothing * spread


def _check_options(smoothing: float, temperature: Tensor | float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1); received {smoothing}")
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and above 0; received {temperature}")


class GramAlignment(nn.Module):
    r"""Draws the modalities of a sample together by the volume of their mean patches (eq. 19-22).

    The layer applies [`gram_alignment_loss`][stmi_layers.alignment.gram_alignment_loss] to the mean patch of each
    modality. For features of another kind, call this function. The layer learns the temperature, as `log_excess`: the
    logarithm of the temperature minus `min_temperature`.

    Differences from the paper and the research code:

    - Every modality is the anchor in turn. In the research code the first modality is the only anchor, although the
      paper calls its loss anchor-free; `anchor=0` gives this reading.
    - Volume and gradient are exact and finite for features that are nearly or exactly equal, where a determinant gives
      NaN. See [`gram_volume`][stmi_layers.volume.gram_volume].
    - The temperature stays above `min_temperature`. In the research code it is a free number that may turn negative.
    - The layer takes any number of modalities, samples with missing modalities, and `labels`. Without `labels`, images
      of one identity are negatives of each other.

    Args:
        temperature: initial temperature, above `min_temperature`.
        anchor: index of the modality that is exchanged between samples; None averages over every modality as anchor.
        smoothing: label smoothing, in [0, 1).
        equalise: make volumes of fewer modalities comparable with volumes of all modalities.
        min_temperature: lower bound of the temperature, above 0.
        learn_temperature: train the temperature, by which the loss can fall while the volumes stay; False freezes it.
        device: device of the parameter; torch's default device if None.
        dtype: data type of the parameter; torch's default dtype if None.

    Raises:
        ValueError: when an option is out of range.

    Reference: Signal, AAAI 2026, section on the Global Alignment Module.

    Examples:
        >>> alignment = GramAlignment()
        >>> alignment(torch.randn(4, 3, 16, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        anchor: int | None = None,
        smoothing: float = 0.1,
        equalise: bool = True,
        min_temperature: float = 0.01,
        learn_temperature: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(smoothing, temperature)
        if not 0 < min_temperature < temperature:
            received = f"min_temperature={min_temperature}, temperature={temperature}"
            raise ValueError(f"min_temperature must lie above 0 and below temperature; received {received}")
        self.initial_temperature, self.min_temperature = temperature, min_temperature
        self.anchor, self.smoothing, self.equalise = anchor, smoothing, equalise
        self.log_excess = nn.Parameter(torch.empty((), device=device, dtype=dtype), requires_grad=learn_temperature)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the temperature to its initial value."""
        nn.init.constant_(self.log_excess, math.log(self.initial_temperature - self.min_temperature))

    @property
    def temperature(self) -> Tensor:
        """Return the current temperature, in at least float32."""
        return at_least_float32(self.log_excess).exp() + self.min_temperature

    @typed
    def forward(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of the mean patches, in at least float32; arguments as of `gram_alignment_loss`."""
        features = patches.mean(dim=2, dtype=at_least_float32(patches[:0]).dtype)
        options = {"present": present, "labels": labels, "smoothing": self.smoothing, "equalise": self.equalise}
        return gram_alignment_loss(features, self.temperature.to(features.dtype), anchor=self.anchor, **options)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.initial_temperature}, anchor={self.anchor}, smoothing={self.smoothing}, "
            f"equalise={self.equalise}, min_temperature={self.min_temperature}, "
            f"learn_temperature={self.log_excess.requires_grad}"
        )
