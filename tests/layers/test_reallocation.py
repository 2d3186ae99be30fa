"""Reallocation: against loops over single patches, against torch's own attention, and by the laws it obeys."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn

import reference
from stmi_layers.cross_attention import absorbed_cross_attention
from stmi_layers.kernels.read_tokens import ReadTokens
from stmi_layers.reallocation import SemanticTokenReallocation


class Problem(NamedTuple):
    query: Tensor
    context: Tensor
    in_proj_weight: Tensor
    in_proj_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    num_heads: int
    keep: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self[:6]


def problem(
    batch: int = 2, queries: int = 3, tokens: int = 5, heads: int = 2, head_dim: int = 3, seed: int = 0
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    dim = heads * head_dim
    shapes = [(batch, queries, dim), (batch, tokens, dim), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,)]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    keep = torch.rand(batch, tokens, generator=generator) < 0.6
    return Problem(*leaves, heads, keep)


problems = st.builds(
    problem,
    batch=st.integers(1, 2),
    queries=st.integers(1, 3),
    tokens=st.integers(1, 5),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 8),  # tokens are projected, or not from `2 * queries < head_dim` on
    seed=st.integers(0, 2**32 - 1),
)


absorbed_and_projected = pytest.mark.parametrize("queries", [1, 3])  # with heads of width 4


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    """The result, and the gradients of a weighted sum of it."""
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves, materialize_grads=True)]


def multihead(problem: Problem) -> nn.MultiheadAttention:
    oracle = nn.MultiheadAttention(problem.query.shape[-1], problem.num_heads, batch_first=True, dtype=torch.float64)
    oracle.in_proj_weight, oracle.in_proj_bias = (nn.Parameter(item.detach()) for item in problem[2:4])
    oracle.out_proj.weight, oracle.out_proj.bias = (nn.Parameter(item.detach()) for item in problem[4:6])
    return oracle


@given(problems, st.booleans())
def test_attention_matches_the_loops(problem, masked):
    keep = problem.keep if masked else None
    actual = absorbed_cross_attention(*problem[:7], keep=keep)
    expected = reference.cross_attention(*problem[:7], keep)
    torch.testing.assert_close(with_gradients(actual, problem.leaves), with_gradients(expected, problem.leaves))


@given(problems)
def test_attention_matches_torch(problem):
    oracle = multihead(problem)
    keep = problem.keep.clone()
    keep[:, 0] = True  # torch has NaN where nothing is kept
    query, context = problem.query, problem.context
    expected, _ = oracle(query, context, context, key_padding_mask=~keep, need_weights=False)
    actual = absorbed_cross_attention(*problem[:7], keep=keep)
    parameters = (oracle.in_proj_weight, oracle.in_proj_bias, oracle.out_proj.weight, oracle.out_proj.bias)
    torch.testing.assert_close(
        with_gradients(actual, problem.leaves), with_gradients(expected, (query, context, *parameters))
    )


@absorbed_and_projected
def test_attention_gradcheck(queries):
    example = problem(batch=2, queries=queries, tokens=3, heads=2, head_dim=4)
    example.keep[1] = False

    def attend(*leaves: Tensor) -> Tensor:
        return absorbed_cross_attention(*leaves, example.num_heads, keep=example.keep)

    assert torch.autograd.gradcheck(attend, example.leaves)
    assert torch.autograd.gradgradcheck(attend, example.leaves)


@given(problems, st.booleans(), st.booleans())
def test_reading_is_its_readable_twin(problem, masked, gated):
    """The kernel against plain operations, which run without a gradient of the tokens: values, weights, gradients."""
    rows, context = leaves = problem.leaves[:2]
    keep, gates = problem.keep if masked else None, None
    if gated:
        keep = problem.keep | ~problem.keep.any(dim=1, keepdim=True)  # a gate of 0 is one of a token that is not read
        gates = keep.to(rows.dtype).requires_grad_()
        leaves = [*leaves, gates]
    for of_interest in (0, 1):
        actual = ReadTokens.apply(rows, context, keep, gates)[of_interest]
        tokens = context if gates is None else context * gates[..., None]
        logits = rows @ tokens.mT
        if keep is not None:
            logits = logits.masked_fill(~keep[:, None], torch.finfo(logits.dtype).min)
        weights = logits.softmax(dim=-1)
        expected = (weights @ tokens, weights)[of_interest]
        torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@absorbed_and_projected
def test_function_transforms_see_through(queries):
    example = problem(batch=3, queries=queries, tokens=4, heads=2, head_dim=4)

    def loss(query: Tensor, context: Tensor) -> Tensor:
        batch = query[None], context[None]
        return absorbed_cross_attention(*batch, *example[2:7]).square().sum()

    query, context = example.query.detach(), example.context.detach()
    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(query, context)
    whole = absorbed_cross_attention(example.query, example.context, *example[2:7]).square().sum()
    torch.testing.assert_close(per_sample, torch.autograd.grad(whole, example[:2]))


@given(problems)
def test_the_key_bias_cancels(problem):
    dim = problem.query.shape[-1]
    shifted = problem.in_proj_bias.clone()
    shifted[dim : 2 * dim] += 7.0
    actual = absorbed_cross_attention(*problem._replace(in_proj_bias=shifted)[:7])
    torch.testing.assert_close(actual, multihead(problem)(problem.query, problem.context, problem.context)[0])


@given(problems)
def test_without_biases(problem):
    zeros = problem._replace(in_proj_bias=0 * problem.in_proj_bias, out_bias=0 * problem.out_bias)
    none = absorbed_cross_attention(*problem[:3], None, problem.out_weight, None, problem.num_heads)
    torch.testing.assert_close(none, absorbed_cross_attention(*zeros[:7]))


@given(problems)
def test_leaving_tokens_out_is_removing_them(problem):
    actual = absorbed_cross_attention(*problem[:7], keep=problem.keep)
    for b, kept in enumerate(problem.keep):
        if not kept.any():
            assert not actual[b].any()
            continue
        alone = problem._replace(query=problem.query[b : b + 1], context=problem.context[b : b + 1, kept])
        torch.testing.assert_close(actual[b : b + 1], absorbed_cross_attention(*alone[:7]))


@absorbed_and_projected
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_nothing_kept_gives_zero_with_finite_gradients(device, dtype, queries):
    example = problem(queries=queries, head_dim=4)
    leaves = [leaf.detach().to(device, dtype).requires_grad_() for leaf in example.leaves]
    keep = torch.tensor([[False] * 5, [True] * 5], device=device)
    read = absorbed_cross_attention(*leaves, example.num_heads, keep=keep)
    assert not read[0].any()
    assert read[1].all()
    gradients = torch.autograd.grad(read.float().sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0].any()
    assert not gradients[1][0].any()


@given(problems, st.floats(-1e4, 1e4))
def test_equal_tokens_are_read_as_they_are(problem, size):
    """Whatever the weights, the mean of equal tokens is the token: `out(value(token))`."""
    dim = problem.query.shape[-1]
    token = size * problem.context[:, :1].detach()
    value = token @ problem.in_proj_weight[2 * dim :].T + problem.in_proj_bias[2 * dim :]
    expected = (value @ problem.out_weight.T + problem.out_bias).expand(problem.query.shape)
    equal = problem._replace(context=token.expand(problem.context.shape))
    torch.testing.assert_close(absorbed_cross_attention(*equal[:7]), expected)


@pytest.mark.parametrize("queries", [5, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_attention_is_as_exact_as_that_of_torch(device, dtype, queries):
    example = problem(batch=4, queries=queries, tokens=129, heads=4, head_dim=16)
    scaled = [leaf.detach() / (1 if leaf.ndim == 3 else 8) for leaf in example.leaves]
    rounded = [leaf.to(device, dtype) for leaf in scaled]
    exact = absorbed_cross_attention(*(leaf.double() for leaf in rounded), 4)
    oracle = multihead(example._replace(**dict(zip(Problem._fields, rounded, strict=False))))
    query, context = rounded[:2]
    theirs = (oracle(query, context, context, need_weights=False)[0].double() - exact).abs().mean()
    ours = (absorbed_cross_attention(*rounded, 4).double() - exact).abs().mean()
    assert ours < 1.5 * theirs


def test_attention_refuses():
    example = problem()
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=6, num_heads=4"):
        absorbed_cross_attention(*example[:6], num_heads=4)
    empty = example._replace(context=example.context[:, :0])
    with pytest.raises(ValueError, match=r"context must hold at least one token; received shape \(2, 0, 6\)"):
        absorbed_cross_attention(*empty[:7])
    wrong = example._replace(in_proj_weight=example.in_proj_weight[:12])
    with pytest.raises(TypeCheckError, match="in_proj_weight"):
        absorbed_cross_attention(*wrong[:7])


# The layer


def layer(dim: int = 6, num_tokens: int = 2) -> SemanticTokenReallocation:
    """With every parameter at random, so that none can hide behind its initial value."""
    reallocation = SemanticTokenReallocation(dim, num_tokens, num_heads=2, mlp_ratio=1.5, dtype=torch.float64)
    for parameter in reallocation.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return reallocation


def inputs(batch: int = 2, patches: int = 4, dim: int = 6) -> tuple[Tensor, Tensor]:
    vectors = torch.randn(batch, patches + 1, dim, dtype=torch.float64)
    return vectors[:, :-1].requires_grad_(), vectors[:, -1].requires_grad_()


@pytest.mark.parametrize("with_prior", [False, True])
def test_layer_matches_the_loops(with_prior):
    reallocation, (patches, prior) = layer(), inputs()
    chosen = prior if with_prior else None
    state = dict(reallocation.named_parameters())
    leaves = [patches, prior, *state.values()]
    actual = reallocation(patches, chosen)
    expected = reference.semantic_tokens(patches, chosen, state, num_heads=2)
    assert actual.shape == (2, 2 + with_prior, 6)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


def test_layer_gradcheck():
    reallocation = layer(dim=4, num_tokens=1)
    patches, prior = inputs(batch=1, patches=3, dim=4)
    assert torch.autograd.gradcheck(reallocation, (patches, prior))


@given(st.integers(1, 9), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_patches_does_not_matter(count, num_tokens, random):
    reallocation, (patches, prior) = layer(num_tokens=num_tokens), inputs(patches=count)
    order = list(range(count))
    random.shuffle(order)
    torch.testing.assert_close(reallocation(patches[:, order], prior), reallocation(patches, prior))
    moved = reallocation.attention(patches[:, order], prior)
    torch.testing.assert_close(moved, reallocation.attention(patches, prior)[..., order])


@given(st.integers(1, 6), st.integers(2, 4))
def test_repeating_all_patches_changes_nothing(count, times):
    reallocation, (patches, prior) = layer(), inputs(patches=count)
    torch.testing.assert_close(reallocation(patches.repeat(1, times, 1), prior), reallocation(patches, prior))


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_prior_only_adds_a_token(count, seed):
    torch.manual_seed(seed)
    reallocation, (patches, prior) = layer(), inputs(patches=count)
    torch.testing.assert_close(reallocation(patches, prior)[:, :-1], reallocation(patches))
    torch.testing.assert_close(reallocation.attention(patches, prior)[:, :, :-1], reallocation.attention(patches))


def test_learned_queries_permute_with_their_tokens():
    reallocation, (patches, _) = layer(num_tokens=4), inputs()
    expected = reallocation(patches)[:, [2, 0, 3, 1]]
    with torch.no_grad():
        reallocation.queries.copy_(reallocation.queries[[2, 0, 3, 1]])
    torch.testing.assert_close(reallocation(patches), expected)


def test_norms_forgive_scale_and_offset_of_the_patches():
    reallocation, (patches, prior) = layer(), inputs(dim=6)
    moved = 1e4 * patches + 500
    torch.testing.assert_close(reallocation(moved, prior), reallocation(patches, prior), rtol=1e-4, atol=1e-4)


def test_attention_map_is_what_forward_reads():
    reallocation, (patches, prior) = layer(num_tokens=3), inputs(patches=7)
    attention = reallocation.attention(patches, prior)
    assert attention.shape == (2, 2, 4, 7)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 2, 4, dtype=torch.float64))

    value_weight, value_bias = reallocation.in_proj_weight[12:], reallocation.in_proj_bias[12:]
    values = (reallocation.norm_patches(patches) @ value_weight.T + value_bias).unflatten(-1, (2, 3)).transpose(1, 2)
    queries = torch.cat([reallocation.queries.expand(2, -1, -1), prior[:, None]], dim=1)
    tokens = queries + reallocation.out_proj((attention @ values).transpose(1, 2).flatten(2))
    expected = tokens + reallocation.ffn(reallocation.norm_ffn(tokens))
    torch.testing.assert_close(reallocation(patches, prior), expected)


def test_a_checkpoint_of_multihead_attention_fits_the_attention():
    oracle = nn.MultiheadAttention(8, 2)
    mismatch = SemanticTokenReallocation(8, num_heads=2).load_state_dict(oracle.state_dict(), strict=False)
    assert not mismatch.unexpected_keys
    assert not any("proj" in name for name in mismatch.missing_keys)


def test_initial_values():
    reallocation = SemanticTokenReallocation(64, 16)
    assert reallocation.queries.std().item() == pytest.approx(1.0, rel=0.1)
    assert not reallocation.in_proj_bias.any()
    assert not reallocation.out_proj.bias.any()
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert 0.95 * bound < reallocation.in_proj_weight.abs().max() <= bound
    before = {name: value.clone() for name, value in reallocation.state_dict().items()}
    torch.manual_seed(1)
    reallocation.reset_parameters()
    changed = [name for name, value in reallocation.state_dict().items() if not torch.equal(value, before[name])]
    assert {"queries", "in_proj_weight", "out_proj.weight", "ffn.0.weight", "ffn.2.bias"} <= set(changed)


EXTREMES = {
    "zero": lambda: torch.zeros(1, 4, 8),
    "constant": lambda: torch.full((1, 4, 8), 3.0),
    "equal patches": lambda: torch.randn(1, 1, 8).expand(1, 4, 8),
    "one patch": lambda: torch.randn(1, 1, 8),
    "large": lambda: (1e4 * torch.randn(1, 4, 8)).clamp(-6e4, 6e4),
    "tiny": lambda: 1e-7 * torch.randn(1, 4, 8),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_patches_stay_finite_with_finite_gradients(device, extreme, dtype):
    reallocation = SemanticTokenReallocation(8, num_heads=2, device=device, dtype=dtype)
    patches = EXTREMES[extreme]().to(device, dtype, copy=True).requires_grad_()
    prior = torch.zeros(1, 8, device=device, dtype=dtype)
    tokens = reallocation(patches, prior)
    assert tokens.dtype == dtype
    assert tokens.isfinite().all()
    gradients = torch.autograd.grad(tokens.float().square().sum(), [patches, *reallocation.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_prior_may_come_in_another_dtype(device, dtype):
    reallocation = SemanticTokenReallocation(8, num_heads=2, device=device, dtype=dtype)
    patches, prior = torch.randn(2, 5, 8, device=device, dtype=dtype), torch.randn(2, 8, device=device)
    for given_dtype in (torch.float16, torch.float32, torch.float64):
        actual = reallocation(patches, prior.to(given_dtype))
        assert torch.equal(actual, reallocation(patches, prior.to(given_dtype).to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_dtype_of_the_patches_and_the_softmax_wide(device, dtype):
    reallocation = SemanticTokenReallocation(16, num_heads=2, device=device)
    patches, prior = torch.randn(2, 9, 16, device=device), torch.randn(2, 16, device=device)
    expected = reallocation(patches, prior)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = reallocation(patches.to(dtype), prior.bfloat16())
        assert reallocation.attention(patches.to(dtype), prior).dtype == torch.float32
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
        ({"num_heads": 0}, "num_heads must divide dim; received dim=8, num_heads=0"),
        ({"num_tokens": 0}, "num_tokens must be at least 1; received 0"),
        ({"mlp_ratio": 0.1}, "mlp_ratio \\* dim must be at least 1; received mlp_ratio=0.1, dim=8"),
    ],
)
def test_layer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SemanticTokenReallocation(8, **options)


def test_layer_refuses_other_shapes():
    reallocation = SemanticTokenReallocation(8)
    with pytest.raises(ValueError, match=r"patches must have width dim=8; received shape \(2, 4, 6\)"):
        reallocation(torch.randn(2, 4, 6))
    with pytest.raises(ValueError, match=r"patches must have width dim=8; received shape \(2, 4, 6\)"):
        reallocation.attention(torch.randn(2, 4, 6))
    with pytest.raises(TypeCheckError, match="prior"):
        reallocation(torch.randn(2, 4, 8), torch.randn(3, 8))
