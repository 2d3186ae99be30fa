"""A few queries that read many tokens (STR, global readout), against `nn.MultiheadAttention` of equal parameters."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.floor import products_alone
from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import absorbed_cross_attention

DIM, HEADS = 768, 8
# Queries, tokens and target; rows without target show where projecting the tokens becomes faster.
SHAPES: dict[tuple[int, int], float | None] = {
    (5, 128): 0.2,
    (5, 576): 0.13,
    (3, 15): None,
    (32, 128): None,
    (47, 128): None,
    (48, 128): None,
}


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare STR at two image sizes, the readout of three modalities, and more queries up to the change of method."""
    for (queries, tokens), limit in SHAPES.items():
        batch = (1 if device == "cpu" else 8) * max(1, 2048 // tokens)
        problem = Problem(device, batch, queries, tokens)
        yield Comparison(
            name=f"cross-attention, {queries} x {tokens}, forward and backward",
            contenders={
                "nn.MultiheadAttention": Contender(problem.library, problem.exact),
                "ours": Contender(problem.ours, problem.exact),
                "products alone": products_alone(problem.ours),
            },
            targets=() if limit is None else (Target("time", limit),),
        )


class Problem:
    """Queries, tokens, and an `nn.MultiheadAttention` whose parameters both contenders use."""

    def __init__(self, device: str, batch: int, queries: int, tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.query, self.context, self.upstream = (
            torch.randn(batch, count, DIM, generator=generator).to(device) for count in (queries, tokens, queries)
        )
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True, device=device)

    def library(self) -> Outputs:
        return self._run(self.attention, self.query, self.context, self.upstream)

    def exact(self) -> Outputs:
        attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True, device=self.query.device).double()
        attention.load_state_dict(self.attention.state_dict())
        return self._run(attention, self.query.double(), self.context.double(), self.upstream.double())

    @staticmethod
    def _run(attention: nn.MultiheadAttention, query: Tensor, context: Tensor, upstream: Tensor) -> Outputs:
        query, context = query.detach().requires_grad_(), context.detach().requires_grad_()
        result, _ = attention(query, context, context, need_weights=False)
        return _with_gradients(result, query, context, attention, upstream)

    def ours(self) -> Outputs:
        query, context = self.query.detach().requires_grad_(), self.context.detach().requires_grad_()
        weights = (self.attention.in_proj_weight, self.attention.in_proj_bias)
        output = self.attention.out_proj
        result = absorbed_cross_attention(query, context, *weights, output.weight, output.bias, HEADS)
        return _with_gradients(result, query, context, self.attention, self.upstream)


def _with_gradients(
    result: Tensor, query: Tensor, context: Tensor, attention: nn.MultiheadAttention, upstream: Tensor
) -> Outputs:
    return result.detach(), *torch.autograd.grad(result, [query, context, *attention.parameters()], upstream)
