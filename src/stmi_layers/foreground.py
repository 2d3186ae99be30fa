r"""Foreground tokens from a segmentation mask in pixels.

The file computes the binary mask $m$ of STMI (eq. 2) and perturbs it in training.
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from stmi_layers._checks import check_probability
from stmi_layers._precision import without_autocast
from stmi_layers._typing import capturing, typed

# Resampling may raise a probability a little above 1; counts of 255 lie far beyond.
LARGEST = 1.5


@typed
def token_foreground(
    mask: Bool[Tensor, "batch height width"] | Float[Tensor, "batch height width"],
    grid: tuple[int, int],
    *,
    threshold: float = 0.5,
    prefix_tokens: int = 1,
) -> Bool[Tensor, "batch tokens"]:
    r"""Tell which tokens of a vision transformer are foreground (eq. 2).

    $$m_i = \Big[\tfrac{1}{|P_i|}\int_{P_i} \text{mask} \ge \text{threshold}\Big]$$

    $P_i$ is the area of patch $i$. Mask and image may differ in resolution, and the patches need not divide the mask: a
    pixel counts with the share of its area in the patch. The area is exact for boolean masks below 16 megapixels.

    Args:
        mask: foreground per pixel; True, or the probability between 0 and 1. Values above 1.5, such as 255, are refused
            on a CPU. Masks on a GPU are not checked, because reading their values would make the host wait.
        grid: rows and columns of patches, as in `(height // patch, width // patch)`.
        threshold: share of a patch's area, in (0, 1], from which on the patch is foreground.
        prefix_tokens: number of class and register tokens in front of the patches; these are always foreground.

    Returns:
        True for foreground tokens; the prefix first, then the patches row by row.

    Raises:
        ValueError: when `threshold`, `grid`, `prefix_tokens` or, on a CPU, `mask` is out of range.

    Examples:
        >>> mask = torch.tensor([[[True, True, False, False], [True, False, False, False]]])
        >>> token_foreground(mask, grid=(1, 2))
        tensor([[ True,  True, False]])
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1]; received {threshold}")
    if min(grid) < 1:
        raise ValueError(f"grid must have at least one row and one column of patches; received {grid}")
    if prefix_tokens < 0:
        raise ValueError(f"prefix_tokens must not be negative; received {prefix_tokens}")
    _check_values(mask)
    height, width = mask.shape[1:]
    patches = (_covered(mask, grid) >= threshold * height * width).flatten(1)
    return F.pad(patches, (prefix_tokens, 0), value=True)


def _covered(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the foreground area of every cell, (batch rows columns); one pixel has the area rows * columns."""
    (height, width), (rows, columns) = mask.shape[1:], grid
    # A captured graph must work for all sizes, so that it takes the general way below.
    if not capturing() and height % rows == 0 and width % columns == 0 and mask.numel():
        levels = mask
        if mask.dtype == torch.bool and not torch._C._are_functorch_transforms_active():  # torch 2.6 cannot vmap view
            levels = mask.view(torch.uint8)  # bytes add up faster
        cells = levels.reshape(-1, rows, height // rows, columns, width // columns)
        return cells.sum(dim=2, dtype=torch.float32).sum(dim=3) * (rows * columns)
    with without_autocast(mask):
        along_rows = _overlap(height, rows, mask.device) @ mask.float()
        return along_rows @ _overlap(width, columns, mask.device).mT


def _check_values(mask: Tensor) -> None:
    """Refuse floating-point masks of 0 to 255, in eager mode on a CPU: elsewhere the host would wait for the values."""
    if type(mask) is not Tensor or not (mask.is_cpu and mask.is_floating_point()) or mask.numel() == 0:
        return
    if capturing() or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return
    if (most := mask.detach().max().item()) > LARGEST:
        raise ValueError(f"mask must lie in [0, 1]; received values up to {most:g}. Pass mask > 127 for 0 and 255")


def _overlap(pixels: int, cells: int, device: torch.device) -> Tensor:
    """Return the length that each cell shares with each pixel, on a line of `pixels * cells` units: whole numbers."""
    cell = torch.arange(cells, device=device)[:, None] * pixels
    pixel = torch.arange(pixels, device=device)[None, :] * cells
    shared = torch.minimum(cell + pixels, pixel + cells) - torch.maximum(cell, pixel)
    return shared.clamp(min=0).float()


@typed
def perturb_background(
    foreground: Bool[Tensor, "batch tokens"], p: float, *, generator: Generator | None = None
) -> Bool[Tensor, "batch tokens"]:
    """Turn background tokens into foreground with probability `p`, never the reverse.

    Segmentation errs at boundaries; a model trained on perturbed masks relies on masks less (paper, below eq. 6).

    Args:
        foreground: True for foreground tokens.
        p: probability of a flip per background token, in [0, 1]. The research code uses 0.01 to 0.015.
        generator: source of the randomness, on the device of `foreground`; the global generator by default.

    Returns:
        A new mask that is True wherever `foreground` is.

    Raises:
        ValueError: when `p` is not a probability.

    Examples:
        >>> perturb_background(torch.tensor([[True, False, False]]), p=1.0)
        tensor([[True, True, True]])
    """
    check_probability("p", p)
    draw = torch.rand(foreground.shape, generator=generator, device=foreground.device)
    return foreground | (draw < p)


class MaskPerturbation(nn.Module):
    """Applies [`perturb_background`][stmi_layers.foreground.perturb_background] in training, nothing in evaluation.

    Args:
        p: probability of a flip per background token, in [0, 1].

    Raises:
        ValueError: when `p` is not a probability.

    Examples:
        >>> MaskPerturbation(0.5).eval()(torch.tensor([[True, False]]))
        tensor([[ True, False]])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        check_probability("p", p)
        self.p = p

    @typed
    def forward(self, foreground: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """Return a perturbed mask in training, and `foreground` itself in evaluation."""
        if not self.training or self.p == 0:
            return foreground
        return perturb_background(foreground, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
