"""Activation functions that torch does not provide."""

import torch
from torch import Tensor


def quick_gelu(tensor: Tensor) -> Tensor:
    """Compute the approximation of GELU that CLIP uses: `x * sigmoid(1.702 * x)`."""
    return tensor * torch.sigmoid(1.702 * tensor)
