"""Modulated attention against plain attention, and against its equations as written (eq. 3-8)."""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import modulate_logits, modulated_attention
from stmi_layers.kernels import native

HEADS, HEAD_DIM = 12, 64  # ViT-B
SIZES = {129: 32, 577: 4, 1025: 2, 2305: 1}  # tokens and batch
SHARES = (0.0, 0.5, 1.0)
Attend = Callable[..., Tensor]


def comparisons(device: str) -> Iterator[Comparison]:
    """Yield comparisons with targets, and sweeps over the number of tokens and the share of the foreground."""
    dtypes = [torch.float32, torch.bfloat16] if device == "cpu" else [torch.bfloat16, torch.float16]
    sizes = SIZES if device == "cpu" else {129: 512, 577: 64, 1025: 32, 2305: 16, 4096: 8}
    threads = [None, 1] if device == "cpu" else [None]
    for tokens, batch in sizes.items():
        for dtype in dtypes:
            for backward in (False, True):
                if device == "cpu" and backward and dtype.itemsize == 2:
                    continue  # without a target
                problem = Problem(device, tokens, batch, dtype, backward, share=1 / 3)
                for count in threads:
                    # Without the equations as written for one thread or half precision, where they would take minutes.
                    yield _comparison(problem, count, written=count is None and dtype is dtypes[0])
    for share in SHARES:
        for backward in (False, True):
            yield _comparison(Problem(device, 577, sizes[577], dtypes[0], backward, share), None, written=False)


def _comparison(problem: "Problem", threads: int | None, *, written: bool) -> Comparison:
    contenders = {
        "scaled_dot_product_attention": problem.contender(F.scaled_dot_product_attention, exact=problem.plain),
        "ours": problem.contender(problem.ours, exact=problem.written),
    }
    if problem.device == "cpu":
        contenders["ours, widened"] = problem.contender(problem.widened, exact=problem.written, turns=3)
    if problem.device == "cpu" and problem.dtype is torch.float32 and native.is_built():
        contenders["ours, native"] = problem.contender(problem.native, exact=problem.written)
    if written:
        turns = 1 if problem.tokens > 1000 else 3
        contenders["as written"] = problem.contender(problem.written, exact=problem.written, turns=turns)
        compiled = problem.contender(problem.compiled, exact=problem.written, turns=turns)
        contenders["as written, compiled"] = compiled
    what = "forward and backward" if problem.backward else "forward"
    where = f", {threads} thread" if threads else ""
    swept = problem.share != 1 / 3
    kind = f"share {problem.share:g} of the foreground" if swept else str(problem.dtype).removeprefix("torch.")
    in_plots = threads is None and problem.dtype is _first(problem.device)
    return Comparison(
        name=f"attention, N = {problem.tokens}, {what}, {kind}{where}",
        contenders=contenders,
        targets=() if swept else _targets(problem.device, problem.dtype, problem.backward),
        threads=threads,
        sweep={"pass": what, "tokens": problem.tokens, "share": problem.share} if in_plots else {},
    )


def _first(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def _targets(device: str, dtype: torch.dtype, backward: bool) -> tuple[Target, ...]:
    if device != "cpu":
        return (Target("time", 1.4 if backward else 1.25), Target("memory", 1.5))
    if dtype is torch.float32:
        return (Target("time", 1.3 if backward else 1.25), Target("memory", 1.5))
    return (Target("time", 1.0), Target("error", 1.5), Target("memory", 1.5))


class Problem:
    """Query, key, value and a mask, and the ways to attend, all with one signature."""

    def __init__(self, device: str, tokens: int, batch: int, dtype: torch.dtype, backward: bool, share: float) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, HEADS, tokens, HEAD_DIM)
        self.vectors = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
        self.upstream = torch.randn(shape, generator=generator).to(device, dtype)
        self.foreground = (torch.rand(batch, tokens, generator=generator) < share).to(device)
        self.strengths = [torch.tensor([strength], device=device) for strength in (0.1, 0.2)]
        self.device, self.tokens, self.dtype, self.backward, self.share = device, tokens, dtype, backward, share
        for vector in self.vectors:
            vector.requires_grad_(backward)
        self.exact = functools.cache(self._exact)  # several contenders are compared with the same result

    def contender(self, attend: Attend, exact: Attend, turns: int | None = None) -> Contender:
        return Contender(
            functools.partial(self._run, attend, self.vectors, self.upstream),
            functools.partial(self.exact, exact),
            tolerance=2e-2 if self.dtype.itemsize == 2 else 1e-4,
            turns=turns,
            warm_up=self.device != "cpu" or self.tokens < 1000 or attend == self.compiled,  # other contenders are slow
        )

    def _run(self, attend: Attend, vectors: list[Tensor], upstream: Tensor) -> Outputs:
        if not self.backward:
            with torch.no_grad():
                return (attend(*vectors),)
        result = attend(*vectors)
        return result.detach(), *torch.autograd.grad(result, vectors, upstream)

    def _exact(self, attend: Attend) -> Outputs:
        vectors = [vector.detach().double().requires_grad_(self.backward) for vector in self.vectors]
        return self._run(attend, vectors, self.upstream.double())

    def plain(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value

    def ours(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend by the default implementation."""
        return modulated_attention(query, key, value, self.foreground, *self.strengths)

    def widened(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend by the implementation for GPUs."""
        return modulated_attention(query, key, value, self.foreground, *self.strengths, implementation="widened")

    def native(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend by the C++ kernel."""
        return modulated_attention(query, key, value, self.foreground, *self.strengths, implementation="native")

    def written(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return as_written(query, key, value, self.foreground, *self.strengths)

    def compiled(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return as_written_compiled()(query, key, value, self.foreground, *self.strengths)


def as_written(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    foreground: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    implementation: str = "as written",
) -> Tensor:
    """Compute eq. 3-8 with every matrix stored, under the signature of `modulated_attention`."""
    logits = query @ key.transpose(-2, -1)
    return (modulate_logits(logits, foreground, alpha, beta) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


@functools.cache
def as_written_compiled() -> Attend:
    """Compile at the first call, because importing the compiler takes seconds."""
    return torch.compile(as_written, dynamic=True)
