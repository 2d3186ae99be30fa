r"""Complementary reconstruction (CRM): tokens of a missing modality, computed from the present modalities.

Paper: "TOP-ReID: Multi-spectral Object Re-Identification with Token Permutation", AAAI 2024,
<https://arxiv.org/abs/2312.09612>.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._block import Block
from stmi_layers._checks import check_heads, check_hidden, check_positive
from stmi_layers._precision import at_least_float32
from stmi_layers._typing import typed


@typed
def reconstruction_loss(
    reconstructed: Float[Tensor, "batch tokens dim"],
    targets: Float[Tensor, "batch tokens dim"],
    counted: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the mean squared difference over all tokens of the samples that count.

    $$\frac{1}{|V| \cdot \text{tokens} \cdot \text{dim}} \sum_{b \in V}
    \lVert \text{reconstructed}_b - \text{targets}_b \rVert^2$$

    Args:
        reconstructed: tokens of a modality, computed from another modality.
        targets: actual tokens of the same modality.
        counted: True for the samples in $V$, such as those that have both modalities; None for all.

    Returns:
        The mean, never negative, in at least float32; 0 with a zero gradient when no sample counts.

    Examples:
        >>> targets = torch.tensor([[[1.0, 2.0]], [[5.0, 5.0]]])
        >>> reconstruction_loss(torch.zeros(2, 1, 2), targets, torch.tensor([True, False]))  # (1 + 4) / 2
        tensor(2.5000)
    """
    difference = at_least_float32(reconstructed) - at_least_float32(targets)
    if counted is None:
        return difference.square().sum() / max(difference.numel(), 1)
    difference = torch.where(counted[:, None, None], difference, 0.0)
    size = counted.sum().clamp(min=1) * (targets.shape[1] * targets.shape[2])
    return difference.square().sum() / size


class CrossModalReconstruction(nn.Module):
    r"""Fills the tokens of missing modalities by translation from the present modalities, and trains this (CRM).

    One chain of transformer blocks $U_{mk}$ per ordered pair turns tokens of modality $m$ into tokens of modality $k$:

    $$F_k \leftarrow \frac{1}{|A|} \sum_{m \in A} U_{mk}(F_m) \quad \text{for } k \notin A, \qquad
    \mathcal{L} = \sum_{m \ne k} \operatorname{mean} \big( U_{mk}(F_m) - F_k \big)^2$$

    $F$ are the `tokens`, global token included, and $A$ the modalities that are `present`. `forward` fills missing
    modalities and leaves present modalities unchanged; `loss` is $\mathcal{L}$. Train with `loss`, and call `forward`
    in inference. Later layers then get complete samples: do not pass `present` to them.

    On a CPU, in eager mode, the layer computes only missing tokens. In a captured graph and on other devices, where
    counting would make the host wait, it computes every pair for all samples and discards the rest.

    Differences from the paper and the research code:

    - The layer takes any number of modalities, and each sample may lack different modalities. The research code fixes
      one case for a whole test set when the model is built, and runs the missing images through its backbone first.
    - Samples that lack a modality of a pair do not count in the loss of this pair.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities $M$; there are $M (M - 1)$ chains.
        num_heads: heads of the attention; divides `dim`.
        depth: number of blocks in a chain.
        mlp_ratio: hidden width of the feed-forward networks, in units of `dim`.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, `num_modalities` is below 2, or another size is below 1.
            `forward` also raises ValueError for inputs of the wrong size.

    Reference: Wang et al., "TOP-ReID", AAAI 2024, section "Complementary Reconstruction Module".

    Examples:
        >>> reconstruction = CrossModalReconstruction(dim=8, num_modalities=3, num_heads=2)
        >>> tokens, present = torch.randn(2, 3, 129, 8), torch.tensor([[True, True, True], [True, False, True]])
        >>> filled = reconstruction(tokens, present)
        >>> torch.equal(filled[0], tokens[0]), torch.equal(filled[1, 1], tokens[1, 1])
        (True, False)
        >>> reconstruction.loss(tokens).shape
        torch.Size([])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_heads: int = 8,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(depth=depth)
        if num_modalities < 2:
            raise ValueError(f"num_modalities must be at least 2; received {num_modalities}")
        hidden = check_hidden(dim, mlp_ratio)
        self.dim, self.num_modalities, self.num_heads = dim, num_modalities, num_heads
        self.depth, self.mlp_ratio = depth, mlp_ratio
        factory = {"device": device, "dtype": dtype}
        self.chains = nn.ModuleDict(
            {
                f"{source}_to_{target}": nn.Sequential(
                    *(Block(dim, num_heads, hidden, bias=True, **factory) for _ in range(depth))
                )
                for source, target in self._pairs()
            }
        )

    def reset_parameters(self) -> None:
        """Set the initial values of every block: those of `nn.LayerNorm` and `nn.Linear`."""
        for block in self.modules():
            if isinstance(block, Block):
                block.reset_parameters()

    @typed
    def forward(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities tokens dim"]:
        """Return `tokens` with absent modalities filled; zero where a sample has no modality at all."""
        self._check(tokens)
        if present is None:
            return tokens
        # Before any arithmetic, because 0 * NaN is NaN.
        given = torch.where(present[..., None, None], tokens, 0.0).unbind(1)
        filled = [torch.zeros_like(part) for part in given]
        for source, target in self._pairs():
            wanted = present[:, source] & ~present[:, target]
            filled[target] = filled[target] + self._translate_wanted(given[source], source, target, wanted)
        count = present.sum(dim=1).clamp(min=1)[:, None, None]
        filled = [part + made / count for part, made in zip(given, filled, strict=True)]
        return torch.stack(filled, dim=1).to(tokens.dtype)

    @typed
    def loss(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
        *,
        detach_targets: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the sum of [`reconstruction_loss`][stmi_layers.reconstruction.reconstruction_loss] over ordered pairs.

        Targets get a gradient as in the paper, which pulls the modalities together; `detach_targets=True` stops it.
        """
        self._check(tokens)
        if present is not None:
            tokens = torch.where(present[..., None, None], tokens, 0.0)
        given = tokens.unbind(1)
        total = at_least_float32(tokens).new_zeros(())
        for source, target in self._pairs():
            pair = given[source], given[target].detach() if detach_targets else given[target]
            counted = None if present is None else present[:, source] & present[:, target]
            if counted is not None and _may_count(counted):
                rows = counted.nonzero()[:, 0]
                pair, counted = (pair[0].index_select(0, rows), pair[1].index_select(0, rows)), None
            total = total + reconstruction_loss(self._translate(pair[0], source, target), pair[1], counted)
        return total

    @typed
    def translate(
        self, tokens: Float[Tensor, "batch tokens dim"], source: int, target: int
    ) -> Float[Tensor, "batch tokens dim"]:
        """Turn tokens of the modality `source` into tokens of the modality `target`; both are indices from 0."""
        if (source, target) not in self._pairs():
            rule = f"source and target must be two different modalities below num_modalities={self.num_modalities}"
            raise ValueError(f"{rule}; received source={source}, target={target}")
        return self._translate(tokens, source, target)

    def _translate(self, tokens: Tensor, source: int, target: int) -> Tensor:
        return self.chains[f"{source}_to_{target}"](tokens)

    def _translate_wanted(self, tokens: Tensor, source: int, target: int, wanted: Tensor) -> Tensor:
        """Return translated tokens for the samples that `wanted` marks, and zeros for all other samples."""
        if not _may_count(wanted):
            return torch.where(wanted[:, None, None], self._translate(tokens, source, target), 0.0)
        rows = wanted.nonzero()[:, 0]
        made = self._translate(tokens.index_select(0, rows), source, target)
        return torch.zeros_like(tokens, dtype=made.dtype).index_copy(0, rows, made)

    def _pairs(self) -> list[tuple[int, int]]:
        everyone = range(self.num_modalities)
        return [(source, target) for source in everyone for target in everyone if source != target]

    def _check(self, tokens: Tensor) -> None:
        if (tokens.shape[1], tokens.shape[-1]) != (self.num_modalities, self.dim):
            rule = f"tokens must have width dim={self.dim} and num_modalities={self.num_modalities}"
            raise ValueError(f"{rule}; received shape {tuple(tokens.shape)}")

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_modalities={self.num_modalities}, num_heads={self.num_heads}"
        return f"{sizes}, depth={self.depth}, mlp_ratio={self.mlp_ratio}"


def _may_count(flags: Tensor) -> bool:
    """Tell whether the host can read the flags without waiting for a device or breaking a graph."""
    return flags.device.type == "cpu" and not torch.compiler.is_compiling()
