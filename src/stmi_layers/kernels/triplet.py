"""The triplet loss over mined pairs, which computes its gradient together with its value.

Autograd would spend more time on its bookkeeping than on a batch of usual size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class MinedTripletLoss(torch.autograd.Function):
    r"""$\operatorname{mean}_a \ell(d_{ap} - d_{an})$ over the valid anchors $a$, and its gradient.

    The readable twin is `_mined_triplet_loss` in `losses.py`, which runs where no gradient is wanted and while a graph
    is captured. With the unit vectors $u_{ap} = (x_a - x_p) / d_{ap}$, zero at distance zero, an anchor adds
    $\ell' (u_{ap} - u_{an})$ to its own gradient, $-\ell' u_{ap}$ to that of $p$ and $\ell' u_{an}$ to that of $n$.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        features: Tensor, positive: Tensor, negative: Tensor, valid: Tensor, margin: float | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient with respect to `features`."""
        pull, push = features - features.index_select(0, positive), features - features.index_select(0, negative)
        farthest, nearest = torch.linalg.vector_norm(pull, dim=1), torch.linalg.vector_norm(push, dim=1)
        gap = farthest - nearest
        loss = F.softplus(gap) if margin is None else F.relu(gap + margin)
        share = valid.to(features.dtype)
        share = share / share.sum().clamp(min=1)
        slope = share * (gap.sigmoid() if margin is None else loss > 0)
        # At distance zero the difference is zero, and so is its product with any finite number.
        smallest = torch.finfo(features.dtype).tiny
        pull.mul_((slope / farthest.clamp(min=smallest)).unsqueeze(1))
        push.mul_((slope / nearest.clamp(min=smallest)).unsqueeze(1))
        gradient = (pull - push).index_add_(0, positive, pull, alpha=-1).index_add_(0, negative, push)
        return torch.dot(loss, share), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, of_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if of_gradient is not None:
            raise NotImplementedError(
                "batch_hard_triplet can be differentiated once; a second derivative was asked for: "
                "detach the gradient, or leave create_graph off"
            )
        (gradient,) = ctx.saved_tensors
        return None if upstream is None else upstream * gradient, None, None, None, None
