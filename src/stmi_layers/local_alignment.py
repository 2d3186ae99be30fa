r"""Local alignment (LAM): alignment of the modalities at sampled positions that depend on the patches.

Equations 23-26 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>. The alignment of whole images is in `alignment.py`.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_positive
from stmi_layers._precision import at_least_float32
from stmi_layers._typing import typed
from stmi_layers.deformable import DeformableSampling, Points


@typed
def local_alignment_loss(
    samples: Float[Tensor, "batch modalities samples dim"],
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the mean squared difference between the modalities of a sample, over all pairs of modalities (eq. 26).

    $$\operatorname{mean}_{b,\ m < n} \frac{1}{P D} \lVert x_{bm} - x_{bn} \rVert^2$$

    $x$ are the `samples`, $P$ the number of samples per map and $D$ their width. The code forms no pairs, because the
    squared differences between $n$ modalities sum to $n$ times the squared differences from their mean.

    Args:
        samples: sampled tokens of every modality; equal indices are compared across modalities.
        present: True for the modalities that a sample has; None for all. Pairs with an absent modality do not count.

    Returns:
        The mean, in at least float32; 0 with a zero gradient when no sample has two modalities.

    Examples:
        >>> samples = torch.tensor([[[[0.0]], [[1.0]], [[3.0]]]])  # differences 1, 3 and 2
        >>> local_alignment_loss(samples)  # (1 + 9 + 4) / 3
        tensor(4.6667)
    """
    samples = at_least_float32(samples)
    if present is None:
        present = torch.ones_like(samples[..., 0, 0], dtype=torch.bool)
    there = present[..., None, None]
    samples = torch.where(there, samples, 0.0)
    count = present.sum(dim=1)
    mean = samples.sum(dim=1, keepdim=True) / count.clamp(min=1)[:, None, None, None]
    spread = torch.where(there, samples - mean, 0.0).square().mean(dim=(2, 3)).sum(dim=1)
    pairs = count * (count - 1) / 2
    return (count * spread).sum() / pairs.sum().clamp(min=1)


class LocalAlignment(nn.Module):
    r"""Pulls the modalities together at a few positions of each map (eq. 23-26).

    One [`DeformableSampling`][stmi_layers.deformable.DeformableSampling] per modality samples the patches, and
    [`local_alignment_loss`][stmi_layers.local_alignment.local_alignment_loss] compares the samples. The loss trains a
    model; inference does not need this layer.

    Differences from the paper and the research code:

    - Those of [`DeformableSampling`][stmi_layers.deformable.DeformableSampling], which also explains the options.
    - The sampling networks of all modalities start equal, so that equal images are aligned from the beginning. In the
      research code each network starts at random.
    - The layer takes any number of modalities, and samples with missing modalities. A single modality gives 0.

    Args:
        dim: width of the patches.
        num_modalities: number of modalities.
        grid: rows and columns of the patches; at least `kernel_size` each.
        kernel_size: rows and columns of a window, in patches.
        stride: step between the windows, in patches.
        offset_range: largest offset, in the units of `DeformableSampling`.
        offset_channels: 2 for separate offsets of row and column; 1 for one number for both.
        points: "inside", "clamped" or "released", as in `DeformableSampling`.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is below 1, `grid` is smaller than a window, or an option is out of range. `forward`
            also raises ValueError for inputs of the wrong size.

    Reference: Signal, AAAI 2026, section on the Local Alignment Module.

    Examples:
        >>> alignment = LocalAlignment(dim=8, num_modalities=3, grid=(16, 8))
        >>> alignment(torch.randn(2, 3, 128, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        grid: tuple[int, int],
        *,
        kernel_size: int = 4,
        stride: int = 4,
        offset_range: float = 2.0,
        offset_channels: Literal[1, 2] = 2,
        points: Points = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_modalities=num_modalities)
        if len(grid) != 2 or min(grid) < kernel_size:
            rule = f"grid must have at least kernel_size={kernel_size} rows and columns"
            raise ValueError(f"{rule}; received {grid}. Take a smaller kernel_size")
        self.dim, self.num_modalities, self.grid = dim, num_modalities, grid
        options = {"kernel_size": kernel_size, "stride": stride, "offset_range": offset_range}
        self.sampling = nn.ModuleList(
            DeformableSampling(
                dim, **options, offset_channels=offset_channels, points=points, device=device, dtype=dtype
            )
            for _ in range(num_modalities)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `DeformableSampling`, the same for every modality."""
        first, *others = (layer for layer in self.sampling if isinstance(layer, DeformableSampling))
        first.reset_parameters()
        for other in others:
            other.load_state_dict(first.state_dict())

    @typed
    def forward(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, in at least float32; `patches` are ordered row by row."""
        expected = (self.num_modalities, self.grid[0] * self.grid[1], self.dim)
        if tuple(patches.shape[1:]) != expected:
            rule = f"patches must have (modalities, patches, dim) of {expected}"
            raise ValueError(f"{rule}; received shape {tuple(patches.shape)}")
        if present is not None:
            # Before any product, because 0 * NaN is NaN, in gradients too.
            patches = torch.where(present[..., None, None], patches, 0.0)
        maps = patches.unflatten(2, self.grid).unbind(1)
        samples = [layer(tokens).flatten(1, 2) for layer, tokens in zip(self.sampling, maps, strict=True)]
        return local_alignment_loss(torch.stack(samples, dim=1), present)

    def extra_repr(self) -> str:
        layer = self.sampling[0]
        options = layer.extra_repr().split(", ", 1)[1]
        return f"dim={self.dim}, num_modalities={self.num_modalities}, grid={self.grid}, {options}"
