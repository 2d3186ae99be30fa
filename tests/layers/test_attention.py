"""Modulated attention: against loops over single logits, against plain attention, and by the laws it obeys."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn

import reference
from case import unchecked
from stmi_layers import SegmentationModulatedAttention, modulate_logits, modulated_attention


class Problem(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    foreground: Tensor
    alpha: Tensor
    beta: Tensor


@st.composite
def problems(draw: st.DrawFn, strengths: st.SearchStrategy[float] | None = None) -> Problem:
    batch, heads, tokens, head_dim = (draw(st.integers(1, high)) for high in (2, 3, 6, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shape = (3, batch, heads, tokens, head_dim)
    query, key, value = torch.randn(shape, dtype=torch.float64, generator=generator)
    flags = draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens))
    foreground = torch.tensor(flags).reshape(batch, tokens)
    strength = st.floats(-0.5, 1.5) if strengths is None else strengths
    size = draw(st.sampled_from([1, heads]))
    alpha, beta = (torch.tensor(draw(st.lists(strength, min_size=size, max_size=size))).double() for _ in range(2))
    return Problem(query, key, value, foreground, alpha, beta)


proper = problems(st.floats(0, 1))


def specification(problem: Problem, scale: float | None = None) -> Tensor:
    logits = modulate_logits(problem.query @ problem.key.mT, *problem[3:])
    weights = (logits * (problem.query.shape[-1] ** -0.5 if scale is None else scale)).softmax(dim=-1)
    return weights @ problem.value


def with_gradients(function, problem: Problem) -> list[Tensor]:
    """The result, and the gradients of a weighted sum of it to query, key, value, alpha and beta."""
    problem = Problem(*(item.detach().clone().requires_grad_(item.is_floating_point()) for item in problem))
    result = function(*problem)
    weights = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).reshape(result.shape)
    leaves = [item for item in problem if item.is_floating_point()]
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)]


@given(problems())
def test_equations_term_by_term(problem):
    actual = with_gradients(modulated_attention, problem)
    expected = with_gradients(reference.modulated_attention, problem)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@given(problems())
def test_closed_form_is_a_softmax_over_the_specification(problem):
    actual = with_gradients(modulated_attention, problem)
    expected = with_gradients(lambda *items: specification(Problem(*items)), problem)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@given(problems(), st.floats(0.01, 4))
def test_specification_with_a_scale(problem, scale):
    actual = modulated_attention(*problem, scale=scale)
    torch.testing.assert_close(actual, specification(problem, scale), rtol=1e-9, atol=1e-9)


def example(batch: int = 2, heads: int = 3, tokens: int = 5, head_dim: int = 4) -> Problem:
    query, key, value = torch.randn(3, batch, heads, tokens, head_dim, dtype=torch.float64)
    foreground = torch.arange(batch * tokens).reshape(batch, tokens) % 3 > 0
    alpha, beta = torch.rand(2, heads, dtype=torch.float64)
    return Problem(query, key, value, foreground, alpha, beta)


@pytest.mark.parametrize("function", [modulated_attention, lambda *items: specification(Problem(*items))])
def test_gradcheck(function):
    problem = example(batch=1, heads=2, tokens=4, head_dim=3)
    leaves = [item.requires_grad_() for item in problem if item.is_floating_point()]

    def attend(query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return function(query, key, value, problem.foreground, alpha, beta)

    assert torch.autograd.gradcheck(attend, leaves)


@given(problems(st.just(0.0)))
def test_without_strength_it_is_plain_attention(problem):
    expected = F.scaled_dot_product_attention(*problem[:3])
    torch.testing.assert_close(modulated_attention(*problem), expected)


@given(problems(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_without_foreground_it_is_plain_attention_to_the_bit(problem, dtype):
    query, key, value = (item.to(dtype) for item in problem[:3])
    actual = modulated_attention(query, key, value, None, problem.alpha, problem.beta, scale=0.3)
    assert torch.equal(actual, F.scaled_dot_product_attention(query, key, value, scale=0.3))


@given(proper)
def test_all_foreground_is_attention_at_another_temperature(problem):
    everything = problem._replace(foreground=torch.ones_like(problem.foreground))
    cooled = (1 - problem.alpha)[:, None, None] * problem.query
    expected = F.scaled_dot_product_attention(cooled, problem.key, problem.value)
    torch.testing.assert_close(modulated_attention(*everything), expected)


@given(problems())
def test_background_rows_are_attention_at_another_temperature(problem):
    cooled = (1 - problem.beta)[:, None, None] * problem.query
    expected = F.scaled_dot_product_attention(cooled, problem.key, problem.value)
    background = (~problem.foreground)[:, None, :].expand(problem.query.shape[:3])
    torch.testing.assert_close(modulated_attention(*problem)[background], expected[background])


@given(proper)
def test_full_strength_leaves_two_levels(problem):
    """Foreground pairs sit at the maximum of the row, everything else at its minimum."""
    problem = problem._replace(alpha=torch.ones_like(problem.alpha), beta=torch.ones_like(problem.beta))
    logits = problem.query @ problem.key.mT * problem.query.shape[-1] ** -0.5
    pair = (problem.foreground[:, :, None] & problem.foreground[:, None, :])[:, None].expand_as(logits)
    levels = torch.where(pair, logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True))
    torch.testing.assert_close(modulated_attention(*problem), levels.softmax(dim=-1) @ problem.value)


@given(problems(), st.randoms(use_true_random=False))
def test_tokens_permute(problem, random):
    order = list(range(problem.query.shape[2]))
    random.shuffle(order)
    query, key, value = (item[:, :, order] for item in problem[:3])
    actual = modulated_attention(query, key, value, problem.foreground[:, order], problem.alpha, problem.beta)
    torch.testing.assert_close(actual, modulated_attention(*problem)[:, :, order])


@given(problems(), st.floats(0.1, 10), st.floats(0.1, 2))
def test_scaling_the_query_is_scaling_the_logits(problem, factor, scale):
    scaled = problem._replace(query=problem.query * factor)
    actual = modulated_attention(*scaled, scale=scale)
    torch.testing.assert_close(actual, modulated_attention(*problem, scale=scale * factor))


@given(problems(), st.integers(0, 2**32 - 1))
def test_constants_along_a_row_cancel(problem, seed):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(problem.key.shape[-1], dtype=torch.float64, generator=generator)
    shifted = problem._replace(key=problem.key + common)
    torch.testing.assert_close(modulated_attention(*shifted), modulated_attention(*problem))

    logits = problem.query @ problem.key.mT
    constant = torch.randn(logits.shape[:-1], dtype=torch.float64, generator=generator)[..., None]
    shifted_logits = modulate_logits(logits + constant, *problem[3:])
    torch.testing.assert_close(shifted_logits, modulate_logits(logits, *problem[3:]) + constant)


@given(problems(), st.floats(0.1, 10))
def test_modulation_is_homogeneous(problem, factor):
    logits = problem.query @ problem.key.mT
    actual = modulate_logits(logits * factor, *problem[3:])
    torch.testing.assert_close(actual, modulate_logits(logits, *problem[3:]) * factor)


@given(proper)
def test_modulated_logits_stay_between_the_extrema_of_their_row(problem):
    logits = problem.query @ problem.key.mT
    modulated = modulate_logits(logits, *problem[3:])
    slack = 1e-12 * logits.abs().amax()
    assert (modulated <= logits.amax(dim=-1, keepdim=True) + slack).all()
    assert (modulated >= logits.amin(dim=-1, keepdim=True) - slack).all()


def test_modulation_moves_every_logit_between_the_extrema():
    """Pairs of foreground tokens up, all others down; only the extremum that a logit moves towards stays."""
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]]).repeat(4, 1)[None, None]
    foreground = torch.tensor([[True, True, False, False]])
    modulated = modulate_logits(logits, foreground, torch.tensor([0.5]), torch.tensor([0.25]))
    assert modulated[0, 0].tolist() == [[3.0, 2.0, 1.5, 0.0]] * 2 + [[2.25, 0.75, 1.5, 0.0]] * 2


@given(proper, st.floats(0, 1), st.sampled_from(["alpha", "beta"]))
def test_foreground_rows_look_at_foreground_more_the_stronger_the_modulation(problem, share, strength):
    def mass(problem: Problem) -> Tensor:
        marks = problem.foreground.double()[:, None, :, None].expand_as(problem.value)
        rows = problem.foreground[:, None, :].expand(problem.query.shape[:3])
        return modulated_attention(*problem._replace(value=marks))[rows]

    weaker = problem._replace(**{strength: getattr(problem, strength) * share})
    assert (mass(problem) >= mass(weaker) - 1e-12).all()


@pytest.mark.parametrize("strength", ["alpha", "beta"])
def test_each_strength_alone_moves_foreground_rows_towards_the_foreground(strength):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 2, 9, 4, dtype=torch.float64, generator=generator)
    foreground = torch.arange(9)[None] < 4
    marks = foreground.double()[:, None, :, None].expand_as(query)
    none, some = torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    strengths = {"alpha": none, "beta": none, strength: some}
    plain = modulated_attention(query, key, marks, foreground, none, none)[:, :, :4]
    moved = modulated_attention(query, key, marks, foreground, **strengths)[:, :, :4]
    assert (moved > plain + 1e-3).all()


@given(problems())
def test_heads_do_not_mix(problem):
    together = modulated_attention(*problem)
    for head in range(problem.query.shape[1]):
        query, key, value = (item[:, head : head + 1] for item in problem[:3])
        alpha, beta = (item[head % len(item)].reshape(1) for item in (problem.alpha, problem.beta))
        alone = modulated_attention(query, key, value, problem.foreground, alpha, beta)
        torch.testing.assert_close(together[:, head : head + 1], alone)


LARGE = 100.0  # with head_dim 4 and the default scale, logits of about 1e4
FLAGS = {
    "mixed": [True, True, False, False, True],
    "all foreground": [True] * 5,
    "all background": [False] * 5,
    "class token only": [True] + [False] * 4,
}
VECTORS = {
    "large logits": lambda: LARGE * torch.randn(2, 1, 2, 5, 4),
    "constant rows": lambda: torch.randn(1, 1, 1, 1, 4).expand(2, 1, 2, 5, 4),
    "zero vectors": lambda: torch.zeros(2, 1, 2, 5, 4),
    # Raw logits of 360,000 do not fit into float16; scaled ones do not either.
    "large norms": lambda: 300 * torch.ones(2, 1, 2, 5, 4) + torch.randn(2, 1, 2, 5, 4),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("strengths", [(0.1, 0.1), (1.0, 1.0), (1.5, -0.5), (-0.5, 1.5)], ids=str)
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("vectors", VECTORS)
def test_extreme_inputs_stay_finite_with_finite_gradients(device, vectors, flags, strengths, dtype):
    query, key = (item.to(device, dtype).clone().requires_grad_() for item in VECTORS[vectors]())
    value = torch.randn(1, 2, 5, 4, device=device, dtype=dtype, requires_grad=True)
    foreground = torch.tensor([FLAGS[flags]], device=device)
    alpha, beta = (torch.tensor([strength], device=device, requires_grad=True) for strength in strengths)
    attended = modulated_attention(query, key, value, foreground, alpha, beta)
    assert attended.isfinite().all()
    # Weights are at most 1 and sum to 1, up to the rounding of the weights.
    assert attended.abs().max() <= value.abs().max() * (1 + 4 * torch.finfo(dtype).eps)
    gradients = torch.autograd.grad(attended.float().sum(), (query, key, value, alpha, beta))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_smoke_one_token_attends_to_itself(device):
    query, key, value = torch.randn(3, 2, 2, 1, 4, device=device)
    strength = torch.tensor([0.7], device=device)
    for flag in (True, False):
        foreground = torch.full((2, 1), flag, device=device)
        torch.testing.assert_close(modulated_attention(query, key, value, foreground, strength, strength), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rounding_error(device, dtype):
    query, key, value = (2 * torch.randn(3, 2, 4, 65, 16, device=device)).to(dtype)
    foreground = torch.rand(2, 65, device=device) < 0.4
    alpha, beta = torch.rand(2, 4, device=device)
    problem = Problem(query, key, value, foreground, alpha, beta)
    attended = modulated_attention(*problem)
    exact = modulated_attention(*(item.double() if item.is_floating_point() else item for item in problem))
    assert attended.dtype == dtype
    # Half precision rounds only the weights and the result; float32 rounds the logits as well.
    factor = 16 if dtype == torch.float32 else 1
    assert (attended - exact).abs().max() < factor * torch.finfo(dtype).eps * value.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("strength_dtype", [torch.float32, torch.float64], ids=str)
def test_specification_keeps_the_dtype_of_the_logits(dtype, strength_dtype):
    logits = torch.tensor([[[[6e4, -6e4, 1.0]] * 3]], dtype=dtype)
    strength = torch.tensor([0.5], dtype=strength_dtype)
    modulated = modulate_logits(logits, torch.tensor([[True, True, False]]), strength, strength)
    expected = torch.tensor([[[[6e4, 0.0, -3e4]] * 2 + [[0.0, -6e4, -3e4]]]], dtype=dtype)
    torch.testing.assert_close(modulated, expected, rtol=torch.finfo(dtype).eps, atol=0.5)


def test_autocast_keeps_the_dtype_and_the_logits_of_the_caller(device):
    query, key, value = torch.randn(3, 1, 2, 5, 4, device=device)
    foreground = torch.tensor([FLAGS["mixed"]], device=device)
    strength = torch.tensor([0.4], device=device)
    for mask in (foreground, None):
        expected = modulated_attention(query, key, value, mask, strength, strength)
        with torch.autocast(device, dtype=torch.bfloat16):
            assert torch.equal(modulated_attention(query, key, value, mask, strength, strength), expected)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match=f"scale must be above 0, because .* received {scale}"):
        modulated_attention(*example(), scale=scale)


def test_dtypes_must_agree():
    problem = example()
    message = "query, key and value must share one dtype; received query torch.float64, key torch.float32"
    with pytest.raises(ValueError, match=message):
        modulated_attention(*problem._replace(key=problem.key.float()))


def test_a_mask_of_another_grid_is_named():
    problem = example()
    with pytest.raises(TypeCheckError, match="parameter 'foreground'"):
        modulated_attention(*problem._replace(foreground=problem.foreground[:, 1:]))
    with pytest.raises(TypeCheckError, match="parameter 'foreground'"):
        SegmentationModulatedAttention(8, 2)(torch.randn(1, 5, 8), torch.ones(1, 4, dtype=torch.bool))


# The layer


def test_layer_is_projections_around_the_function():
    attention = SegmentationModulatedAttention(6, 2, per_head=True, dtype=torch.float64)
    for parameter in attention.parameters():
        nn.init.uniform_(parameter, -1, 1)
    state = attention.state_dict()
    tokens, foreground = torch.randn(2, 4, 6, dtype=torch.float64), torch.rand(2, 4) < 0.5
    query, key, value = (
        (tokens @ weight.T + bias).reshape(2, 4, 2, 3).transpose(1, 2)
        for weight, bias in zip(state["in_proj_weight"].split(6), state["in_proj_bias"].split(6), strict=True)
    )
    heads = reference.modulated_attention(query, key, value, foreground, state["alpha"], state["beta"])
    expected = heads.transpose(1, 2).reshape(2, 4, 6) @ state["out_proj.weight"].T + state["out_proj.bias"]
    torch.testing.assert_close(attention(tokens, foreground), expected)


def test_checkpoint_of_multihead_attention_loads(device):
    oracle = nn.MultiheadAttention(8, 2, batch_first=True, device=device).eval()
    nn.init.normal_(oracle.in_proj_bias)
    nn.init.normal_(oracle.out_proj.bias)
    checkpoint = oracle.state_dict()
    names = list(checkpoint)
    attention = SegmentationModulatedAttention(8, 2, alpha=0.3, beta=0.2, device=device)
    attention.load_state_dict(checkpoint, strict=True)
    assert list(checkpoint) == names
    assert (attention.alpha.item(), attention.beta.item()) == pytest.approx((0.3, 0.2))

    tokens = torch.randn(3, 5, 8, device=device)
    expected, _ = oracle(tokens, tokens, tokens, need_weights=False)
    torch.testing.assert_close(attention(tokens, None), expected)
    nn.init.zeros_(attention.alpha)
    nn.init.zeros_(attention.beta)
    foreground = torch.rand(3, 5, device=device) < 0.5
    torch.testing.assert_close(attention(tokens, foreground), expected)


def test_strengths_in_a_checkpoint_win_over_the_constructor():
    trained = SegmentationModulatedAttention(8, 2, alpha=0.7, beta=0.6, per_head=True)
    fresh = nn.ModuleDict({"attention": SegmentationModulatedAttention(8, 2, per_head=True)})
    fresh.load_state_dict({f"attention.{name}": value for name, value in trained.state_dict().items()}, strict=True)
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh["attention"].state_dict()[name], value)


def test_strengths_are_filled_in_beside_projections_only():
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "in_proj_weight", .*"alpha", "beta"'):
        SegmentationModulatedAttention(8, 2).load_state_dict({}, strict=True)


def test_weights_of_an_open_clip_block_load():
    pytest.importorskip("torchvision")  # open_clip imports torchvision
    transformer = pytest.importorskip("open_clip.transformer")
    block = transformer.ResidualAttentionBlock(d_model=32, n_head=2).eval()
    attention = SegmentationModulatedAttention(32, 2)
    attention.load_state_dict(block.attn.state_dict(), strict=True)
    tokens = torch.randn(2, 9, 32)
    torch.testing.assert_close(attention(tokens, None), block.attention(tokens))


def test_layer_without_bias():
    plain, biased = (SegmentationModulatedAttention(8, 2, qkv_bias=flag) for flag in (False, True))
    assert set(biased.state_dict()) - set(plain.state_dict()) == {"in_proj_bias"}
    biased.load_state_dict({"in_proj_bias": torch.zeros(24), **plain.state_dict()})
    tokens, foreground = torch.randn(2, 5, 8), torch.rand(2, 5) < 0.5
    torch.testing.assert_close(plain(tokens, foreground), biased(tokens, foreground))


@pytest.mark.parametrize(("per_head", "size"), [(False, 1), (True, 4)])
def test_initial_values(per_head, size):
    attention = SegmentationModulatedAttention(8, 4, alpha=0.3, beta=0.2, per_head=per_head)
    assert torch.equal(attention.alpha, torch.full((size,), 0.3))
    assert torch.equal(attention.beta, torch.full((size,), 0.2))
    state = attention.state_dict()
    assert not state["in_proj_bias"].any()
    assert not state["out_proj.bias"].any()


def test_strengths_at_zero_have_a_gradient():
    attention = SegmentationModulatedAttention(8, 2, alpha=0, beta=0, per_head=True)
    output = attention(torch.randn(2, 5, 8), torch.rand(2, 5) < 0.5)
    alpha, beta = torch.autograd.grad(output.square().sum(), (attention.alpha, attention.beta))
    assert alpha.all()
    assert beta.all()


def test_perturbation_is_drawn_in_every_training_call():
    attention = SegmentationModulatedAttention(8, 2, alpha=0.9, beta=0.9, perturbation=0.5)
    tokens, foreground = torch.randn(2, 20, 8), torch.zeros(2, 20, dtype=torch.bool)
    first, second = attention(tokens, foreground), attention(tokens, foreground)
    assert not torch.equal(first, second)
    assert torch.equal(attention(tokens, None), attention(tokens, None))

    exact = SegmentationModulatedAttention(8, 2)
    exact.load_state_dict(attention.state_dict())
    assert torch.equal(attention.eval()(tokens, foreground), exact(tokens, foreground))

    always = SegmentationModulatedAttention(8, 2, perturbation=1)
    always.load_state_dict(attention.state_dict())
    assert torch.equal(always(tokens, foreground), exact(tokens, torch.ones_like(foreground)))


def test_strengths_shared_between_blocks():
    blocks = nn.ModuleList(SegmentationModulatedAttention(8, 2) for _ in range(3))
    for block in blocks[1:]:
        block.alpha, block.beta = blocks[0].alpha, blocks[0].beta
    tokens, foreground = torch.randn(2, 5, 8), torch.rand(2, 5) < 0.5
    separate = [copy.deepcopy(block) for block in blocks]
    for block in (*blocks, *separate):
        block(tokens, foreground).square().sum().backward()
    assert sum(name.endswith("alpha") for name, _ in blocks.named_parameters()) == 1
    for name in ("alpha", "beta"):
        summed = sum(getattr(block, name).grad for block in separate)
        torch.testing.assert_close(getattr(blocks[0], name).grad, summed)
    copied = copy.deepcopy(blocks)
    assert copied[0].alpha is copied[2].alpha


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
        ({"dim": 8, "num_heads": 0}, "num_heads must divide dim; received dim=8, num_heads=0"),
        ({"dim": 0, "num_heads": 1}, "num_heads must divide dim; received dim=0, num_heads=1"),
        ({"dim": 8, "num_heads": 2, "implementation": "tield"}, "implementation must be one of .*; received 'tield'"),
        (
            {"dim": 8, "num_heads": 2, "perturbation": 2.0},
            r"perturbation must be a probability in \[0, 1\]; received 2.0",
        ),
    ],
)
def test_layer_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationModulatedAttention(**arguments)


def test_layer_refuses_another_width():
    with pytest.raises(ValueError, match=r"tokens must have width dim=8; received shape \(1, 5, 6\)"):
        SegmentationModulatedAttention(8, 2)(torch.randn(1, 5, 6), None)


@pytest.mark.parametrize("masked", [True, False])
def test_a_misspelt_implementation_is_never_another_one(masked):
    """Also where the type checker is off, and where there is no mask and nothing to choose."""
    query = torch.randn(1, 2, 3, 4)
    foreground, strength = torch.ones(1, 3, dtype=torch.bool) if masked else None, torch.tensor([0.1])
    with pytest.raises(ValueError, match=r"implementation must be one of 'auto', 'dense', .*; received 'tield'"):
        unchecked(modulated_attention)(query, query, query, foreground, strength, strength, implementation="tield")
