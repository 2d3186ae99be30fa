r"""Experts for the content of captions: tokens modulated by text, then a feed-forward network per expert (TMSE).

Each expert gets its own sentences of the caption, and weights the patches by their similarity to these sentences. The
published text fixes this structure and leaves sizes and norms open; the layer documents its reading.
Paper: NEXT, arXiv 2505.20001, <https://arxiv.org/abs/2505.20001>.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_positive
from stmi_layers._expert_networks import ExpertNetworks
from stmi_layers._precision import at_least_float32, call_wide, without_autocast
from stmi_layers._typing import typed


@typed
def text_similarity(
    patches: Float[Tensor, "batch modalities patches dim"], text: Float[Tensor, "batch experts modalities dim"]
) -> Float[Tensor, "batch experts modalities patches"]:
    r"""Compute the cosine of every patch and the texts of its modality, in at least float32.

    $$\frac{ \text{text}_{em} \cdot \text{patches}_{mn} }
    { \lVert \text{text}_{em} \rVert\, \lVert \text{patches}_{mn} \rVert }$$

    Args:
        patches: patches of every modality.
        text: one feature per expert and modality, in the space of the patches.

    Returns:
        Cosines in [-1, 1]; 0, with a zero gradient, where a patch or a text is zero.

    Examples:
        >>> patches = torch.tensor([[[[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]]]])
        >>> text_similarity(patches, torch.tensor([[[[3.0, 0.0]]]]))
        tensor([[[[1., 0., 0.]]]])
    """
    with without_autocast(patches):
        patches, text = at_least_float32(patches), at_least_float32(text)
        products = torch.einsum("bmnd, bemd -> bemn", patches, text)
        lengths = text.norm(dim=3)[..., None] * patches.norm(dim=3)[:, None]
        # `where` twice, because the gradient of 1 / 0 is NaN even where it is not selected.
        some = lengths > 0
        return torch.where(some, products / torch.where(some, lengths, 1.0), 0.0).clamp(-1, 1)


class TextModulatedExperts(nn.Module):
    r"""Weights the patches for every expert by a learned route and a text, then applies the network of the expert.

    $$\alpha_{mn} = \sigma( w_m \cdot x_{mn} + b_m ) \qquad \gamma_{emn} = \alpha_{mn} +
    \big( V\, \sigma( U \beta_{e \cdot n} + u ) + v \big)_m \qquad y_e = E_e\big( \gamma_e \odot x \big)$$

    $x$ are the `patches`, $\beta$ is [`text_similarity`][stmi_layers.text_experts.text_similarity], a vector over the
    modalities at every position $n$, and $\sigma$ the logistic function. Each expert processes the tokens of all
    modalities, $E_e(x) = x + \operatorname{Dropout}(\operatorname{MLP}_e(\operatorname{LN}_e(x)))$. Give each expert
    its own text, such as the sentences of [`draw_sentences`][stmi_layers.sentences.draw_sentences]. The layer learns
    routes ($w$, $b$), mixture ($U$, $u$, $V$, $v$) and networks.

    The paper leaves the following open. In this layer:

    - The route is a linear map to one number per patch and modality, with a sigmoid, because a softmax over the patches
      would divide the scale of every token by their number. All experts share the route.
    - The two linear maps of the mixture act at every position on the vector over modalities; the width between the maps
      is four times the number of modalities. The last map starts at zero, so that the text has no effect at first.
    - "Sampling" is soft: every token stays, multiplied by its $\gamma$.
    - Every modality is compared with its own caption.

    Our addition: without text $\gamma = \alpha$, for all samples (`text=None`) or for some samples (`has_text`). Absent
    modalities have $\beta = \gamma = 0$ and results 0: leave these tokens out later.

    Args:
        dim: width of the patches.
        num_modalities: number of modalities, which sets the size of the mixture.
        num_experts: number of experts.
        mlp_ratio: hidden width of a network, in units of `dim`.
        dropout: probability, in training, that a feature is zeroed before the residual.
        text_dim: width of the texts, which a linear map without bias then projects to `dim`; None for texts that are in
            the space of the patches already.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is not positive, or `dropout` is not a probability. `forward` also raises ValueError for
            inputs of the wrong size.

    Examples:
        >>> experts = TextModulatedExperts(dim=8, num_modalities=3, num_experts=4)
        >>> patches, text = torch.randn(2, 3, 10, 8), torch.randn(2, 4, 3, 8)
        >>> experts(patches, text).shape
        torch.Size([2, 4, 30, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        num_experts: int = 4,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        text_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_modalities=num_modalities, text_dim=text_dim)
        self.dim, self.num_modalities, self.num_experts, self.text_dim = dim, num_modalities, num_experts, text_dim
        factory = {"device": device, "dtype": dtype}
        self.experts = ExpertNetworks(dim, num_experts, mlp_ratio=mlp_ratio, dropout=dropout, **factory)
        self.route_weight = nn.Parameter(torch.empty(num_modalities, dim, **factory))
        self.route_bias = nn.Parameter(torch.empty(num_modalities, **factory))
        self.mix_expand = nn.Linear(num_modalities, 4 * num_modalities, **factory)
        self.mix_contract = nn.Linear(4 * num_modalities, num_modalities, **factory)
        self.text_proj = None if text_dim is None else nn.Linear(text_dim, dim, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.Linear` and `nn.LayerNorm`, small routes, and no effect of the text."""
        for layer in (self.experts, self.mix_expand, self.text_proj):
            if layer is not None:
                layer.reset_parameters()
        nn.init.normal_(self.route_weight, std=self.dim**-0.5)
        for parameter in (self.route_bias, self.mix_contract.weight, self.mix_contract.bias):
            nn.init.zeros_(parameter)

    @typed
    def forward(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        text: Float[Tensor, "batch text_experts text_modalities text_dim"] | None = None,
        present: Bool[Tensor, "batch modalities"] | None = None,
        has_text: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch networks tokens dim"]:
        """Return the results of every expert for the modulated `patches`, first modality first.

        An axis of `text` may have size 1, for one text for all experts or for all modalities. `present` is True for the
        modalities of a sample, and `has_text` is True for the samples with text; None means all.
        """
        patches = self._present(patches, present)
        weights = self._modulation(patches, text, present, has_text).to(patches.dtype)
        output = self.experts((weights[..., None] * patches[:, None]).flatten(2, 3))
        if present is None:
            return output
        return torch.where(present.repeat_interleave(patches.shape[2], dim=1)[:, None, :, None], output, 0.0)

    @typed
    def modulation(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        text: Float[Tensor, "batch text_experts text_modalities text_dim"] | None = None,
        present: Bool[Tensor, "batch modalities"] | None = None,
        has_text: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch networks modalities patches"]:
        r"""Return the weights $\gamma$ of the patches for every expert, in at least float32; arguments as `forward`."""
        weights = self._modulation(self._present(patches, present), text, present, has_text)
        return weights.expand(-1, self.num_experts, -1, -1)

    def _present(self, patches: Tensor, present: Tensor | None) -> Tensor:
        if patches.shape[1] != self.num_modalities or patches.shape[3] != self.dim:
            rule = f"patches must have num_modalities={self.num_modalities} and width dim={self.dim}"
            raise ValueError(f"{rule}; received shape {tuple(patches.shape)}")
        return patches if present is None else torch.where(present[..., None, None], patches, 0.0)

    def _modulation(
        self, patches: Tensor, text: Tensor | None, present: Tensor | None, has_text: Tensor | None
    ) -> Tensor:
        """Return the weights of `modulation`; the axis of experts has size 1 where all weights are equal."""
        if text is not None:
            text = self._known(text, has_text, present)
        with without_autocast(patches):
            products = torch.einsum("bmnd, md -> bmn", at_least_float32(patches), at_least_float32(self.route_weight))
            route = torch.sigmoid(products + self.route_bias[:, None])[:, None]
            weights = route if text is None else route + self._mixture(patches, text)
            if has_text is not None:
                weights = torch.where(has_text[:, None, None, None], weights, route)
            return weights if present is None else torch.where(present[:, None, :, None], weights, 0.0)

    def _known(self, text: Tensor, has_text: Tensor | None, present: Tensor | None) -> Tensor:
        """Return the texts in the space of the patches; 0 where a text or its modality is absent."""
        width = self.dim if self.text_dim is None else self.text_dim
        shape = text.shape[1:]
        if shape[0] not in (1, self.num_experts) or shape[1] not in (1, self.num_modalities) or shape[2] != width:
            rule = f"text must be for 1 or {self.num_experts} experts, 1 or {self.num_modalities} modalities"
            raise ValueError(f"{rule}, of width {width}; received shape {tuple(text.shape)}")
        text = text.expand(-1, -1, self.num_modalities, -1)
        if has_text is not None:
            text = torch.where(has_text[:, None, None, None], text, 0.0)
        if present is not None:
            text = torch.where(present[:, None, :, None], text, 0.0)
        return text if self.text_proj is None else call_wide(self.text_proj, text)

    def _mixture(self, patches: Tensor, text: Tensor) -> Tensor:
        """Compute the contribution of the texts to the weights, (batch experts modalities patches)."""
        similarity = text_similarity(patches, text).movedim(2, 3)
        return call_wide(self.mix_contract, call_wide(self.mix_expand, similarity).sigmoid()).movedim(3, 2)

    def extra_repr(self) -> str:
        options = f"mlp_ratio={self.experts.mlp_ratio}, dropout={self.experts.dropout.p}, text_dim={self.text_dim}"
        return f"dim={self.dim}, num_modalities={self.num_modalities}, num_experts={self.num_experts}, {options}"
