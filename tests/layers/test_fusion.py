"""The global readout: against loops, against torch's own attention, by the laws it obeys, and behind STR and CHI."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn

import reference
from captures import for_any_size
from stmi_layers.fusion import GlobalCrossAttention
from stmi_layers.hypergraph import CrossModalHypergraph
from stmi_layers.reallocation import SemanticTokenReallocation


def layer(dim: int = 6, num_heads: int = 2, **options) -> GlobalCrossAttention:
    """With every parameter at random, so that none can hide behind its initial value."""
    readout = GlobalCrossAttention(dim, num_heads=num_heads, dtype=torch.float64, **options)
    for parameter in readout.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return readout


def inputs(
    batch: int = 2, modalities: int = 3, nodes: int = 5, dim: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    globals_ = torch.randn(batch, modalities, dim, generator=generator, dtype=torch.float64)
    tokens = torch.randn(batch, nodes, dim, generator=generator, dtype=torch.float64)
    return globals_.requires_grad_(), tokens.requires_grad_(), torch.rand(batch, nodes, generator=generator) < 0.6


examples = st.builds(
    inputs,
    batch=st.integers(1, 2),
    modalities=st.integers(1, 5),
    nodes=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    """The result, and the gradients of a weighted sum of it."""
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves, materialize_grads=True)]


@given(examples, st.booleans(), st.sampled_from([1, 2, 3]))
def test_readout_matches_the_loops(example, masked, num_heads):
    globals_, tokens, keep = example
    keep = keep if masked else None
    readout = layer(num_heads=num_heads)
    state = dict(readout.named_parameters())

    def normalised(vectors: Tensor, name: str) -> Tensor:
        rows = [
            reference.layer_norm(row, state[f"{name}.weight"], state[f"{name}.bias"]) for row in vectors.flatten(0, 1)
        ]
        return torch.stack(rows).reshape(vectors.shape)

    read = reference.cross_attention(
        normalised(globals_, "norm_globals"),
        normalised(tokens, "norm_tokens"),
        *(state[name] for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
        num_heads=num_heads,
        keep=keep,
    )
    leaves = [globals_, tokens, *state.values()]
    actual = with_gradients(readout(globals_, tokens, keep), leaves)
    torch.testing.assert_close(actual, with_gradients(read + globals_, leaves))


def test_readout_matches_torch():
    readout, (globals_, tokens, keep) = layer(), inputs(nodes=8)
    keep[:, 0] = True  # torch has NaN where nothing is kept
    oracle = nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
    mismatch = oracle.load_state_dict(readout.state_dict(), strict=False)
    assert not mismatch.missing_keys
    assert readout.norm_globals is not None
    assert readout.norm_tokens is not None
    query, context = readout.norm_globals(globals_), readout.norm_tokens(tokens)
    expected = oracle(query, context, context, key_padding_mask=~keep, need_weights=False)[0] + globals_
    actual = readout(globals_, tokens, keep)
    torch.testing.assert_close(with_gradients(actual, [globals_, tokens]), with_gradients(expected, [globals_, tokens]))


def test_readout_gradcheck():
    globals_, tokens, keep = inputs(modalities=2, nodes=3)
    keep[0] = False
    assert torch.autograd.gradcheck(layer(), (globals_, tokens, keep))


@given(examples, st.randoms(use_true_random=False))
def test_the_order_of_tokens_does_not_matter_and_globals_do_not_meet(example, random):
    readout, (globals_, tokens, keep) = layer(), example
    expected = readout(globals_, tokens, keep)
    order = list(range(tokens.shape[1]))
    random.shuffle(order)
    torch.testing.assert_close(readout(globals_, tokens[:, order], keep[:, order]), expected)
    for m in range(globals_.shape[1]):
        torch.testing.assert_close(readout(globals_[:, m : m + 1], tokens, keep), expected[:, m : m + 1])


@given(examples)
def test_leaving_tokens_out_is_removing_them(example):
    readout, (globals_, tokens, keep) = layer(), example
    actual = readout(globals_, tokens, keep)
    for b, kept in enumerate(keep):
        one = slice(b, b + 1)
        expected = readout(globals_[one], tokens[one, kept]) if kept.any() else globals_[one]
        torch.testing.assert_close(actual[one], expected)
    torch.testing.assert_close(readout(globals_, tokens), readout(globals_, tokens, torch.ones_like(keep)))
    assert torch.equal(readout(globals_, tokens, torch.zeros_like(keep)), globals_)


@given(examples, st.sampled_from([0.0, 1e300, float("inf"), float("nan")]))
def test_tokens_left_out_are_inert(example, garbage):
    readout, (globals_, tokens, keep) = layer(), example
    disturbed = torch.where(keep[..., None], tokens, garbage).detach().requires_grad_()
    actual = readout(globals_, disturbed, keep)
    assert torch.equal(actual, readout(globals_, tokens, keep))
    gradients = torch.autograd.grad(actual.sum(), [globals_, disturbed, *readout.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[1][~keep].any()


@given(examples, st.integers(2, 3))
def test_repeating_all_tokens_changes_nothing(example, times):
    readout, (globals_, tokens, keep) = layer(), example
    repeated = readout(globals_, tokens.repeat(1, times, 1), keep.repeat(1, times))
    torch.testing.assert_close(repeated, readout(globals_, tokens, keep))


def test_dropout_spares_the_residual_and_acts_only_in_training():
    readout, (globals_, tokens, _) = layer(dropout=0.5), inputs(nodes=5)
    exact = layer()
    exact.load_state_dict(readout.state_dict())
    read = exact(globals_, tokens) - globals_
    torch.testing.assert_close(readout.eval()(globals_, tokens) - globals_, read)
    factors = (readout.train()(globals_, tokens) - globals_) / read
    assert set(factors.detach().round(decimals=6).flatten().tolist()) == {0.0, 2.0}
    all_dropped = layer(dropout=1)
    assert torch.equal(all_dropped(globals_, tokens), globals_)


def test_initial_values():
    readout = GlobalCrossAttention(16)
    assert not readout.in_proj_bias.any()
    assert not readout.out_proj.bias.any()
    torch.manual_seed(3)
    readout.reset_parameters()
    torch.manual_seed(3)
    expected = nn.init.xavier_uniform_(torch.empty(48, 16))
    assert torch.equal(readout.in_proj_weight, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, 6e4])
@pytest.mark.parametrize("kept", [True, False])
def test_constant_inputs_stay_finite_with_finite_gradients(device, value, kept, dtype):
    readout = GlobalCrossAttention(8, num_heads=2, device=device, dtype=dtype)
    globals_ = torch.full((1, 1, 8), value, device=device, dtype=dtype, requires_grad=True)
    tokens = torch.full((1, 2, 8), value, device=device, dtype=dtype, requires_grad=True)
    actual = readout(globals_, tokens, torch.tensor([[kept, False]], device=device))
    assert actual.dtype == dtype
    gradients = torch.autograd.grad(actual.float().sum(), [globals_, tokens, *readout.parameters()])
    assert all(item.isfinite().all() for item in (actual, *gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_dtype_of_the_globals(device, dtype):
    readout = GlobalCrossAttention(16, num_heads=2, device=device)
    globals_, tokens = torch.randn(2, 3, 16, device=device), torch.randn(2, 9, 16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = readout(globals_.to(dtype), tokens)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), readout(globals_, tokens), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
        ({"num_heads": 0}, "num_heads must divide dim; received dim=8, num_heads=0"),
        ({"dropout": 1.5}, r"dropout must be a probability in \[0, 1\]; received 1.5"),
    ],
)
def test_readout_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalCrossAttention(8, **options)


def test_readout_refuses_other_shapes():
    readout = GlobalCrossAttention(8)
    with pytest.raises(ValueError, match=r"globals must have width dim=8; received shape \(2, 3, 6\)"):
        readout(torch.randn(2, 3, 6), torch.randn(2, 5, 6))
    with pytest.raises(ValueError, match=r"context must hold at least one token; received shape \(2, 0, 8\)"):
        readout(torch.randn(2, 3, 8), torch.randn(2, 0, 8))
    with pytest.raises(TypeCheckError, match="keep"):
        readout(torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.ones(2, 4, dtype=torch.bool))


class Head(nn.Module):
    """STR, CHI and the readout behind each other: eq. 9-18."""

    def __init__(self, dim: int, modalities: int, num_tokens: int) -> None:
        super().__init__()
        self.reallocation = SemanticTokenReallocation(dim, num_tokens, num_heads=2)
        self.interaction = CrossModalHypergraph(dim, modalities * (num_tokens + 1))
        self.readout = GlobalCrossAttention(dim, num_heads=2)

    def forward(self, patches: Tensor, globals_: Tensor, prior: Tensor, present: Tensor) -> Tensor:
        tokens = torch.stack([self.reallocation(one, prior) for one in patches.unbind(1)], dim=1)
        tokens = self.interaction(tokens, present)
        return self.readout(globals_, tokens.flatten(1, 2), present.repeat_interleave(tokens.shape[2], dim=1))


def batch_of(size: int, modalities: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    present = torch.arange(size * modalities).reshape(size, modalities) % 3 > 0
    present[:, 0] = True
    return torch.randn(size, modalities, 6, 8), torch.randn(size, modalities, 8), torch.randn(size, 8), present


@pytest.mark.parametrize("modalities", [1, 2, 3, 4, 5])
def test_the_whole_head_with_any_number_of_modalities(modalities):
    head = Head(8, modalities, num_tokens=2)
    patches, globals_, prior, present = batch_of(3, modalities)
    expected = head(patches, globals_, prior, present)
    hidden = torch.where(present[..., None, None], patches, float("nan"))
    assert torch.equal(head(hidden, globals_, prior, present), expected)
    one_by_one = [
        head(*sample) for sample in zip(*(item.split(1) for item in (patches, globals_, prior, present)), strict=True)
    ]
    torch.testing.assert_close(torch.cat(one_by_one), expected)
    expected.square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in head.parameters())


@for_any_size()
def test_the_whole_head_compiles_and_exports_with_a_dynamic_batch():
    head = Head(8, 2, num_tokens=2).eval()
    batch = torch.export.Dim("batch", max=4096)
    program = torch.export.export(head, batch_of(3, 2), dynamic_shapes=[{0: batch}] * 4)
    compiled = torch.compile(head, fullgraph=True, backend="eager", dynamic=True)
    for size in (3, 5):
        example = batch_of(size, 2)
        expected = head(*example)
        torch.testing.assert_close(program.module()(*example), expected)
        torch.testing.assert_close(compiled(*example), expected)
