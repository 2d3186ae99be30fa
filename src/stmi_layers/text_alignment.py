r"""Alignment of images and texts of one identity: losses on features and on identity tokens.

The losses are for systems that retrieve by image and text, such as FusionSegReID / PS-ReID
(<https://arxiv.org/abs/2503.21595>). The formulas of that paper are not public: the formulas here are our own reading
of its summary.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed
from stmi_layers.mask_losses import mask_coupling_loss


@typed
def image_text_alignment_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    labels: Int[Tensor, " batch"] | None = None,
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    present: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the symmetric cross-entropy between images and texts, in which all pairs of one identity are positives.

    $$\tfrac12 \Big( \operatorname{CE}\big(q,\, \operatorname{softmax}(L)\big)
    + \operatorname{CE}\big(q,\, \operatorname{softmax}(L^\top)\big) \Big), \qquad
    L_{ij} = \frac{\cos(\text{image}_i, \text{text}_j)}{\text{temperature}}, \quad
    q_{ij} = \frac{[y_i = y_j]}{\sum_k [y_i = y_k]}$$

    A batch of $P \times K$ images holds $K$ texts of each identity; with `labels` these are no negatives of each other.

    Args:
        image: features of the images.
        text: features of the texts, in the same order as `image`.
        labels: $y$, identity of each pair; None gives every pair its own identity, which is InfoNCE.
        temperature: divisor of the cosines, finite and above 0; pass a tensor to train it.
        present: True for the pairs with image and text; None for all. Other pairs leave rows and columns of $L$.

    Returns:
        The mean over pairs, in at least float32; 0 when no pair is present.

    Raises:
        ValueError: when a `temperature` that is a number is not positive.

    Examples:
        >>> features = torch.eye(2)
        >>> image_text_alignment_loss(features, features, torch.tensor([4, 4]), temperature=1e6)  # log 2
        tensor(0.6931)
    """
    _check_temperature(temperature)
    labels = torch.arange(len(image), device=image.device) if labels is None else labels
    right = labels[:, None] == labels
    if present is not None:
        image, text = (torch.where(present[:, None], features, 0.0) for features in (image, text))
    with without_autocast(image):
        logits = _unit(image) @ _unit(text).T / temperature
        rows = _cross_entropy(logits, right, present, present)
        columns = _cross_entropy(logits.T, right, present, present)
    return (rows + columns) / 2


@typed
def token_identity_loss(
    query_tokens: Float[Tensor, "queries tokens dim"],
    target_tokens: Float[Tensor, "targets tokens dim"],
    query_labels: Int[Tensor, " queries"],
    target_labels: Int[Tensor, " targets"],
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    present: Bool[Tensor, "queries tokens"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the cross-entropy from queries to targets per token; all targets of the identity are positives.

    $$\frac1K \sum_k \operatorname{CE}\Big(q,\, \operatorname{softmax}_j
    \frac{\cos(\text{query\_tokens}_{ik}, \text{target\_tokens}_{jk})}{\text{temperature}}\Big)$$

    Token $k$ of a query is compared only with token $k$ of the targets; $q$ is uniform over the targets with the label
    of the query.

    Args:
        query_tokens: identity tokens of the queries, such as one token of the image and one of the text.
        target_tokens: identity tokens of the targets, such as full scenes.
        query_labels: identities of the queries.
        target_labels: identities of the targets.
        temperature: divisor of the cosines, finite and above 0; pass a tensor to train it.
        present: True for the tokens that a query has; None for all.

    Returns:
        The mean over the present tokens of queries with a target of their identity, in at least float32; 0 when there
        is no such token.

    Raises:
        ValueError: when a `temperature` that is a number is not positive.

    Examples:
        >>> tokens = torch.eye(2)[:, None]  # two images, one token each
        >>> token_identity_loss(tokens, tokens, torch.tensor([0, 1]), torch.tensor([0, 0]), temperature=1e6)  # log 2
        tensor(0.6931)
    """
    _check_temperature(temperature)
    if present is not None:
        query_tokens = torch.where(present[..., None], query_tokens, 0.0)
    right = query_labels[:, None] == target_labels
    with without_autocast(query_tokens):
        logits = torch.einsum("q k d, t k d -> k q t", _unit(query_tokens), _unit(target_tokens)) / temperature
        rows = right.any(dim=1).expand(len(logits), -1)
        return _cross_entropy(logits, right, rows if present is None else rows & present.T, None)


def _cross_entropy(logits: Tensor, right: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Return the cross-entropy with targets uniform over `right`, among `columns`, averaged over `rows`."""
    if columns is not None:
        logits, right = logits.masked_fill(~columns, torch.finfo(logits.dtype).min), right & columns
    # Not 0 times the logarithm, because some runtimes give -inf for a column that is left out.
    logs = torch.where(right, logits.log_softmax(dim=-1), 0.0)
    losses = -logs.sum(dim=-1) / right.sum(dim=-1).clamp(min=1)
    if rows is None:
        rows = torch.ones_like(losses, dtype=torch.bool)
    return torch.where(rows, losses, 0.0).sum() / rows.sum().clamp(min=1)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(at_least_float32(vectors), dim=-1, eps=1e-6)


def _check_temperature(temperature: float | Tensor) -> None:
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number above 0; received {temperature}")


class ImageTextAlignment(nn.Module):
    r"""[`image_text_alignment_loss`][stmi_layers.text_alignment.image_text_alignment_loss] with a learned temperature.

    The layer learns the logarithm of the temperature, so that no optimizer step makes the temperature negative.

    Args:
        temperature: initial temperature, finite and above 0.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `temperature` is not positive.

    Examples:
        >>> alignment = ImageTextAlignment()
        >>> alignment(torch.randn(4, 8), torch.randn(4, 8), labels=torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])
    """

    def __init__(
        self, temperature: float = 0.07, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.initial_temperature = temperature
        self.log_temperature = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the temperature to its initial value."""
        nn.init.constant_(self.log_temperature, math.log(self.initial_temperature))

    @typed
    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "batch dim"],
        labels: Int[Tensor, " batch"] | None = None,
        present: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of one batch; `present` is False where image or text is missing."""
        temperature = at_least_float32(self.log_temperature).exp()
        return image_text_alignment_loss(image, text, labels, temperature=temperature, present=present)

    def extra_repr(self) -> str:
        return f"temperature={self.initial_temperature}"


class TokenIdentityLoss(nn.Module):
    r"""Pulls identity tokens of queries towards identity tokens of targets, and these towards the masked object.

    $$\text{token\_identity\_loss} + \text{coupling} \cdot \text{mask\_coupling\_loss}$$

    The first term is [`token_identity_loss`][stmi_layers.text_alignment.token_identity_loss]. The second term,
    [`mask_coupling_loss`][stmi_layers.mask_losses.mask_coupling_loss], pulls the tokens of a target towards the patches
    under its mask, so that retrieval and segmentation describe the same object. Every query has its target at the same
    index of the batch. The loss has no parameters.

    Args:
        temperature: temperature of the first term, finite and above 0.
        coupling: factor of the second term, at least 0.

    Raises:
        ValueError: when `temperature` is not positive or `coupling` negative.

    Examples:
        >>> loss, tokens, labels = TokenIdentityLoss(), torch.randn(4, 2, 8), torch.tensor([0, 0, 1, 1])
        >>> loss(tokens, torch.randn(4, 2, 8), labels, torch.randn(4, 32, 8), torch.rand(4, 32)).shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 0.07, *, coupling: float = 1.0) -> None:
        super().__init__()
        _check_temperature(temperature)
        if not coupling >= 0:
            raise ValueError(f"coupling must be at least 0; received {coupling}")
        self.temperature, self.coupling = temperature, coupling

    @typed
    def forward(
        self,
        query_tokens: Float[Tensor, "batch tokens dim"],
        target_tokens: Float[Tensor, "batch tokens dim"],
        labels: Int[Tensor, " batch"],
        patches: Float[Tensor, "batch patches dim"],
        mask: Float[Tensor, "batch patches"] | Bool[Tensor, "batch patches"],
        present: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of one batch; `patches` and `mask` belong to the targets, `present` to the query tokens."""
        options = {"temperature": self.temperature, "present": present}
        identity = token_identity_loss(query_tokens, target_tokens, labels, labels, **options)
        return identity + self.coupling * mask_coupling_loss(target_tokens, patches, mask)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, coupling={self.coupling}"
