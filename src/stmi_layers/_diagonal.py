"""Mask of a diagonal, in operations that every runtime has: onnxruntime has no `torch.eye` of Bool."""

import torch
from torch import Tensor


def on_diagonal(count: int, device: torch.device) -> Tensor:
    """Mark the diagonal, (count count).

    Examples:
        >>> on_diagonal(2, torch.device("cpu"))
        tensor([[ True, False],
                [False,  True]])
    """
    places = torch.arange(count, device=device)
    return places[:, None] == places
