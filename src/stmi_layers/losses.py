r"""Losses of re-identification: an identity loss and a batch-hard triplet loss.

Together they are $\mathcal{L}_g$ of STMI (eq. 19). The whole objective (eq. 20) sums $\mathcal{L}_g$ of $G$, $U$, $T$.
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal
Object Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stmi_layers._checks import check_positive
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed


@typed
def batch_hard_triplet(
    features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"], *, margin: float | None = None
) -> Float[Tensor, ""]:
    r"""Pull every sample towards its farthest positive, and push it away from its nearest negative.

    $$\frac{1}{|V|} \sum_{a \in V} \ell\Big(\max_{p \ne a,\ \text{labels}_p = \text{labels}_a} d_{ap}
    - \min_{n:\ \text{labels}_n \ne \text{labels}_a} d_{an}\Big), \qquad d_{ij} = \lVert x_i - x_j \rVert$$

    $x$ are the `features`; $\ell(z) = \log(1 + e^z)$ is the soft margin, $\ell(z) = \max(0, z +
    \text{margin})$ the hinge. $V$ holds the anchors that have a positive and a negative; identities may
    differ in their number of samples. The pairs are chosen without gradient, and only their distances are
    differentiated; at distance zero the gradient is zero.

    Args:
        features: one representation per sample, not normalised.
        labels: identity of each sample; any whole numbers.
        margin: margin of the hinge, in units of distance, at least 0; None for the soft margin.

    Returns:
        The mean over $V$, never negative; 0 with a zero gradient when $V$ is empty. The loss of half-precision
        features is float32, because a float16 loss would overflow at the initial scale of `torch.amp.GradScaler`.

    Raises:
        ValueError: when `margin` is negative or not finite.

    Reference: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017,
    <https://arxiv.org/abs/1703.07737>.

    Examples:
        >>> features = torch.tensor([[0.0], [3.0], [1.0]])
        >>> labels = torch.tensor([0, 0, 1])  # anchors 0 and 1: 3 - 1 + 1 and 3 - 2 + 1; anchor 2 has no positive
        >>> batch_hard_triplet(features, labels, margin=1.0)
        tensor(2.5000)
    """
    _check_margin(margin)
    features = at_least_float32(features)
    if features.shape[0] == 0:
        return features.sum()
    positive, negative, valid = _hardest_pairs(features.detach(), labels)
    gap = _distance_to(features, positive) - _distance_to(features, negative)
    loss = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp(min=1)


def _hardest_pairs(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the farthest positive and nearest negative of every anchor, and a mask of complete ones."""
    # Squared distances up to a constant per row. Features are centred, because a common offset would cost digits.
    centred = features - features.mean(dim=0)
    with without_autocast(features):
        product = centred @ centred.T
    distance = torch.sub(product.diagonal(), product, alpha=2)
    same = labels.unsqueeze(1) == labels
    nearest, negative = distance.masked_fill(same, math.inf).min(dim=1)
    distance.diagonal().fill_(-math.inf)  # no sample is a positive of itself
    farthest, positive = distance.where(same, -math.inf).max(dim=1)
    return positive, negative, farthest - nearest != -math.inf


def _distance_to(features: Tensor, partner: Tensor) -> Tensor:
    # In place, which saves a temporary tensor.
    return torch.linalg.vector_norm(features.index_select(0, partner).sub_(features), dim=1)


def _check_margin(margin: float | None) -> None:
    if margin is not None and not 0 <= margin < math.inf:
        raise ValueError(f"margin must be None (soft margin) or finite and at least 0; received {margin}")


class IdentityHead(nn.Module):
    """Classifier of identities behind a batch norm without shift: the BNNeck of re-identification.

    The norm separates the two losses: the triplet loss takes the features before the norm, and the classifier takes
    the features after the norm. The head learns the scale of the norm and the classifier. The shift is a parameter
    fixed at 0, and the classifier has no bias, so that the boundaries between identities pass through the origin.

    In training the norm needs at least two samples; in evaluation it uses its running statistics.

    Args:
        dim: width of the features.
        num_identities: number of training identities.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `dim` or `num_identities` is not positive. `forward` also raises ValueError for inputs of the
            wrong size.

    Reference: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-Identification", CVPR
    Workshops 2019, <https://arxiv.org/abs/1903.07071>.

    Examples:
        >>> IdentityHead(dim=8, num_identities=5)(torch.randn(4, 8)).shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        dim: int,
        num_identities: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_identities=num_identities)
        self.dim, self.num_identities = dim, num_identities
        self.norm = nn.BatchNorm1d(dim, device=device, dtype=dtype)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, num_identities, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: a norm with scale 1, and weights near 0, so that no identity leads."""
        self.norm.reset_parameters()
        nn.init.normal_(self.classifier.weight, std=0.001)

    @typed
    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch identities"]:
        """Return one logit per training identity."""
        if features.shape[-1] != self.dim:
            received = tuple(features.shape)
            raise ValueError(f"features must have width dim={self.dim}; received shape {received}")
        if self.training and features.shape[0] < 2:
            raise ValueError(
                "features must hold at least 2 samples in training, because the norm needs batch statistics; "
                f"received {features.shape[0]}. Drop the last incomplete batch, or call eval() for inference"
            )
        return self.classifier(self.norm(features))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_identities={self.num_identities}"


class ReIDLoss(nn.Module):
    r"""Identity loss plus triplet loss on one representation (eq. 19).

    $$\mathcal{L}_g = \text{identity\_weight} \cdot \mathcal{L}_\text{CE} + \text{triplet\_weight} \cdot
    \mathcal{L}_\text{Tri}$$

    $\mathcal{L}_\text{CE}$ is the label-smoothed cross-entropy of an
    [`IdentityHead`][stmi_layers.losses.IdentityHead], which belongs to this loss: pass the parameters of the loss to
    the optimizer. $\mathcal{L}_\text{Tri}$ is [`batch_hard_triplet`][stmi_layers.losses.batch_hard_triplet] on
    the features before the norm of the head. The paper's objective (eq. 20) is the sum of three such losses,
    each with its own head, on $G$ (the modalities concatenated), $U$ and $T$.

    Differences from the paper:

    - The paper names no margin. The default is the soft margin, as in the research code; `margin` gives the hinge.
    - The classifier stands behind a batch norm without shift, as usual in the field; the paper has no such norm.

    Differences from the research code: both weights are 1, as in eq. 19; the research code weights the identity loss
    by 0.25.

    Args:
        dim: width of the features.
        num_identities: number of training identities.
        smoothing: share of the target that is spread evenly over all identities, in [0, 1).
        margin: margin of the triplet loss, in units of distance, at least 0; None for the soft margin.
        identity_weight: factor of the identity loss, at least 0.
        triplet_weight: factor of the triplet loss, at least 0.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when an option is out of range.

    Reference: STMI, AAAI 2026, section "Objective Function".

    Examples:
        >>> loss = ReIDLoss(dim=8, num_identities=5)
        >>> loss(torch.randn(4, 8), torch.tensor([0, 0, 3, 3])).shape
        torch.Size([])
    """

    def __init__(
        self,
        dim: int,
        num_identities: int,
        *,
        smoothing: float = 0.1,
        margin: float | None = None,
        identity_weight: float = 1.0,
        triplet_weight: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1); received {smoothing}")
        _check_margin(margin)
        if min(identity_weight, triplet_weight) < 0:
            received = f"identity_weight={identity_weight}, triplet_weight={triplet_weight}"
            raise ValueError(f"identity_weight and triplet_weight must not be negative; received {received}")
        self.dim, self.num_identities = dim, num_identities
        self.smoothing, self.margin = smoothing, margin
        self.identity_weight, self.triplet_weight = identity_weight, triplet_weight
        self.head = IdentityHead(dim, num_identities, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Set the initial values of the head."""
        self.head.reset_parameters()

    @typed
    def forward(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Return the weighted sum, in at least float32.

        `labels` count from 0 to `num_identities - 1`. The layer does not check them, because the host would have to
        wait for the device. For other labels the cross-entropy fails, with an `IndexError` on the CPU.
        """
        logits = at_least_float32(self.head(features))
        identity = F.cross_entropy(logits, labels.long(), label_smoothing=self.smoothing)
        triplet = batch_hard_triplet(features, labels, margin=self.margin)
        return self.identity_weight * identity + self.triplet_weight * triplet

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_identities={self.num_identities}, smoothing={self.smoothing}, "
            f"margin={self.margin}, identity_weight={self.identity_weight}, "
            f"triplet_weight={self.triplet_weight}"
        )
