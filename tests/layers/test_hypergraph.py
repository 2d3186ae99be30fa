"""Hypergraphs: against loops over single nodes and hyperedges, against public libraries, and by the laws they obey."""

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
from stmi_layers import (
    CrossModalHypergraph,
    HypergraphConv,
    hypergraph_conv,
    incidence_statistics,
    similarity_incidence,
)

NORMALIZATIONS = ["row", "symmetric", "none"]
HALF = [torch.float16, torch.bfloat16]


class Problem(NamedTuple):
    nodes: Tensor
    incidence: Tensor
    edge_weight: Tensor


def problem(batch: int = 2, nodes: int = 4, edges: int = 3, dim: int = 2, soft: bool = False, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, nodes, dim, generator=generator, dtype=torch.float64)
    incidence = torch.rand(batch, nodes, edges, generator=generator) < 0.5
    if soft:
        incidence = incidence * torch.rand(batch, nodes, edges, generator=generator, dtype=torch.float64)
    edge_weight = torch.randn(edges, generator=generator, dtype=torch.float64)
    return Problem(features.requires_grad_(), incidence, edge_weight.requires_grad_())


sizes = {"batch": st.integers(1, 2), "nodes": st.integers(1, 5), "edges": st.integers(1, 4), "dim": st.integers(1, 3)}
problems = st.builds(problem, **sizes, soft=st.booleans(), seed=st.integers(0, 2**32 - 1))
normalizations = st.sampled_from(NORMALIZATIONS)


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    """The result, and the gradients of a weighted sum of it."""
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves, materialize_grads=True)]


# similarity_incidence


@given(
    st.integers(1, 2),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(["cosine", "euclidean"]),
    st.floats(0.01, 1.99),
    st.integers(0, 2**32 - 1),
)
def test_incidence_matches_the_loops(batch, count, dim, similarity, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)
    nodes[0, 0] = 0
    present = torch.rand(batch, count, generator=generator) < 0.7
    threshold = 2 * threshold if similarity == "euclidean" else threshold - 1
    for flags in (present, torch.ones_like(present)):
        expected = reference.similarity_incidence(nodes, threshold, similarity, flags)
        actual = similarity_incidence(nodes, threshold, similarity=similarity, present=flags)
        assert torch.equal(actual, expected)
    assert torch.equal(similarity_incidence(nodes, threshold, similarity=similarity), expected)


CROWDS = {
    "random": lambda: torch.randn(2, 40, 8),
    "equal": lambda: torch.randn(2, 1, 8).expand(2, 40, 8),
    "zero": lambda: torch.zeros(2, 40, 8),
    "tiny": lambda: 1e-7 * torch.randn(2, 40, 8),
    "large": lambda: (1e4 * torch.randn(2, 40, 8)).clamp(-6e4, 6e4),
}


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("crowd", CROWDS)
def test_cosines_of_every_size_stay_in_range(device, crowd, dtype):
    nodes = CROWDS[crowd]().to(device, dtype)
    own = torch.eye(40, dtype=torch.bool, device=device).expand(2, 40, 40)
    assert torch.equal(similarity_incidence(nodes, 1.001), own)
    assert similarity_incidence(nodes, -1.0).all()
    assert torch.equal(similarity_incidence(nodes, 0.2) & own, own)


def test_equal_and_opposite_directions_are_at_the_ends_of_the_range(device):
    """Without a clamp rounding puts some of them beyond."""
    vectors = torch.randn(200, 1, 24, device=device)
    nodes = torch.cat([vectors, 3 * vectors, -vectors], dim=1)
    assert similarity_incidence(nodes, -1.0).all()
    just_above = 1 + torch.finfo(torch.float32).eps
    assert torch.equal(similarity_incidence(nodes, just_above).sum(dim=2), torch.ones(200, 3, device=device))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_a_zero_vector_has_cosine_zero(device, dtype):
    nodes = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [-1.0, 2.0]]], device=device, dtype=dtype)
    assert torch.equal(similarity_incidence(nodes, 0.001)[0], torch.eye(3, dtype=torch.bool, device=device))
    assert similarity_incidence(nodes, 0.0).all()


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_distances_of_close_nodes_keep_their_digits(device, offset):
    """More than 25 nodes: there the default of `torch.cdist` subtracts squares."""
    nodes = offset + torch.arange(40.0, device=device)[None, :, None] / 64 * torch.ones(8, device=device)
    step = 8**0.5 / 64
    band = (torch.arange(40)[:, None] - torch.arange(40)[None]).abs().to(device)
    for steps in (0, 1, 3):
        actual = similarity_incidence(nodes, (steps + 0.5) * step, similarity="euclidean")
        assert torch.equal(actual[0], band <= steps)
    assert torch.equal(similarity_incidence(nodes, 0, similarity="euclidean")[0], band == 0)


@given(st.integers(1, 6), st.floats(0.1, 10), st.floats(-1, 1), st.integers(0, 2**32 - 1))
def test_cosine_ignores_lengths_and_distance_ignores_offsets(count, factor, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randn(1, count, 3, generator=generator, dtype=torch.float64)
    lengths = factor * (0.1 + torch.rand(1, count, 1, generator=generator, dtype=torch.float64))
    assert torch.equal(similarity_incidence(nodes * lengths, threshold), similarity_incidence(nodes, threshold))
    near = similarity_incidence(nodes, 1 + threshold, similarity="euclidean")
    assert torch.equal(similarity_incidence(nodes + factor, 1 + threshold, similarity="euclidean"), near)
    scaled = similarity_incidence(nodes * factor, factor * (1 + threshold), similarity="euclidean")
    assert torch.equal(scaled, near)


def test_autocast_does_not_round_the_similarities(device):
    nodes = torch.randn(4, 15, 32, device=device)
    for similarity, threshold in (("cosine", 0.05), ("euclidean", 8.0)):
        expected = similarity_incidence(nodes, threshold, similarity=similarity)
        with torch.autocast(device, dtype=torch.bfloat16):
            assert torch.equal(similarity_incidence(nodes, threshold, similarity=similarity), expected)


# hypergraph_conv


@given(problems, normalizations, st.booleans())
def test_convolution_matches_the_loops(problem, normalization, weighted):
    leaves = [problem.nodes, problem.edge_weight]
    edge_weight = problem.edge_weight if weighted else torch.ones_like(problem.edge_weight)
    expected = reference.hypergraph_conv(problem.nodes, problem.incidence, edge_weight, normalization)
    edge_weight = problem.edge_weight if weighted else None
    actual = hypergraph_conv(problem.nodes, problem.incidence, edge_weight, normalization=normalization)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_convolution_gradcheck(normalization):
    nodes, incidence, edge_weight = problem(soft=True)
    incidence = (0.1 + incidence).requires_grad_()

    def convolve(nodes: Tensor, incidence: Tensor, edge_weight: Tensor) -> Tensor:
        return hypergraph_conv(nodes, incidence, edge_weight, normalization=normalization)

    assert torch.autograd.gradcheck(convolve, (nodes, incidence, edge_weight))


# torch_geometric 2.8 on Python 3.13
@pytest.mark.filterwarnings("ignore:Failing to pass a value to the 'type_params':DeprecationWarning")
@given(problems)
def test_convolution_matches_torch_geometric_without_weights(problem):
    """Its weights never reach the result (issue 6918), so they are left out."""
    nn_geometric = pytest.importorskip("torch_geometric.nn")
    nodes, incidence = problem.nodes.detach(), problem.incidence.bool()
    oracle = nn_geometric.HypergraphConv(nodes.shape[-1], nodes.shape[-1], bias=False).double()
    oracle.lin.weight = nn.Parameter(torch.eye(nodes.shape[-1], dtype=torch.float64))
    for b in range(len(nodes)):
        index = incidence[b].nonzero().T
        expected = oracle(nodes[b], index, num_edges=incidence.shape[2])
        torch.testing.assert_close(hypergraph_conv(nodes, incidence, normalization="row")[b], expected.detach())


@given(problems, st.floats(-1e3, 1e3))
def test_means_preserve_constants(problem, constant):
    constants = torch.full_like(problem.nodes, constant)
    member = (problem.incidence > 0).any(dim=2)[..., None]
    actual = hypergraph_conv(constants, problem.incidence)
    torch.testing.assert_close(actual, torch.where(member, constants, 0.0))


@given(problems)
def test_means_stay_within_the_range_of_the_nodes(problem):
    member = (problem.incidence > 0).any(dim=2)
    for actual, nodes, inside in zip(hypergraph_conv(*problem[:2]), problem.nodes, member, strict=True):
        if inside.any():
            assert (actual[inside] <= nodes[inside].amax(dim=0) + 1e-12).all()
            assert (actual[inside] >= nodes[inside].amin(dim=0) - 1e-12).all()


@given(problems, normalizations, st.floats(-3, 3))
def test_convolution_is_linear_in_nodes_and_weights(problem, normalization, factor):
    nodes, incidence, edge_weight = problem

    def convolve(nodes: Tensor, edge_weight: Tensor) -> Tensor:
        return hypergraph_conv(nodes, incidence, edge_weight, normalization=normalization)

    once, other = convolve(nodes, edge_weight), convolve(nodes.flip(1), edge_weight)
    torch.testing.assert_close(convolve(nodes + factor * nodes.flip(1), edge_weight), once + factor * other)
    other = convolve(nodes, edge_weight.flip(0))
    torch.testing.assert_close(convolve(nodes, edge_weight + factor * edge_weight.flip(0)), once + factor * other)
    assert not convolve(nodes, 0 * edge_weight).any()


@given(problems, normalizations, st.randoms(use_true_random=False))
def test_nodes_and_hyperedges_permute(problem, normalization, random):
    nodes, incidence, edge_weight = problem
    places, names = list(range(nodes.shape[1])), list(range(len(edge_weight)))
    random.shuffle(places)
    random.shuffle(names)
    expected = hypergraph_conv(nodes, incidence, edge_weight, normalization=normalization)[:, places]
    permuted = incidence[:, places][:, :, names]
    actual = hypergraph_conv(nodes[:, places], permuted, edge_weight[names], normalization=normalization)
    torch.testing.assert_close(actual, expected)


@given(problems, normalizations)
def test_the_symmetric_operator_is_symmetric_and_none_is_the_unscaled_sum(problem, normalization):
    count = problem.nodes.shape[1]
    basis = torch.eye(count, dtype=torch.float64).expand(len(problem.nodes), count, count)
    operator = hypergraph_conv(basis, *problem[1:], normalization=normalization)
    if normalization == "row":
        degree = problem.incidence.double().sum(dim=2, keepdim=True)
        operator = operator * degree
    torch.testing.assert_close(operator, operator.mT)


@given(problems, st.sampled_from([1, -1]))
def test_a_weighted_hyperedge_is_really_weighted(problem, sign):
    """Every hyperedge with two nodes or more carries w_e from one to the other."""
    nodes, incidence = problem.nodes, problem.incidence > 0
    for e in range(incidence.shape[2]):
        alone = torch.zeros(incidence.shape[2], dtype=torch.float64)
        alone[e] = 2.0 * sign
        actual = hypergraph_conv(nodes, incidence, alone, normalization="none")
        member = incidence[:, :, e].double()
        mean = (member[..., None] * nodes).sum(dim=1, keepdim=True) / member.sum(dim=1).clamp(min=1)[:, None, None]
        torch.testing.assert_close(actual, 2 * sign * member[..., None] * mean)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_weights_that_cancel_and_lonely_nodes_stay_finite(device, normalization, dtype, soft):
    nodes = torch.randn(1, 3, 4, device=device).to(dtype).requires_grad_()
    incidence = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 0, 0]]], device=device).bool()
    incidence = incidence.to(dtype).requires_grad_() if soft else incidence
    edge_weight = torch.tensor([1.0, -1.0, 0.0], device=device, dtype=dtype, requires_grad=True)
    actual = hypergraph_conv(nodes, incidence, edge_weight, normalization=normalization)
    assert actual.dtype == dtype
    assert not actual.any()
    leaves = [nodes, edge_weight, *([incidence] if soft else [])]
    gradients = torch.autograd.grad(actual.float().sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][:2].all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_rounds_only_the_result(device, dtype):
    nodes = torch.randn(2, 15, 8, device=device).to(dtype)
    incidence = torch.rand(2, 15, 15, device=device) < 0.5
    exact, rounded = hypergraph_conv(nodes.double(), incidence), hypergraph_conv(nodes, incidence)
    torch.testing.assert_close(rounded, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-4)
    constants = torch.full_like(nodes, 3.0)
    everything = torch.ones_like(incidence)
    assert torch.equal(hypergraph_conv(constants, everything), constants)
    with torch.autocast(device, dtype=torch.bfloat16):
        torch.testing.assert_close(hypergraph_conv(nodes.float(), incidence), exact.float())


def test_convolution_refuses():
    nodes, incidence, edge_weight = problem()
    message = "normalization must be one of 'row', 'symmetric', 'none'; received 'mean'"
    with pytest.raises(ValueError, match=message):
        unchecked(hypergraph_conv)(nodes, incidence, normalization="mean")
    with pytest.raises(TypeCheckError, match="normalization"):
        hypergraph_conv(nodes, incidence, normalization="mean")
    with pytest.raises(TypeCheckError, match="edge_weight"):
        hypergraph_conv(nodes, incidence, edge_weight[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "dot"}, "similarity must be one of 'cosine', 'euclidean'; received 'dot'"),
        ({"threshold": float("nan")}, "threshold must be a number with cosine similarity; received nan"),
        (
            {"threshold": -1.0, "similarity": "euclidean"},
            "threshold must be at least 0 with euclidean similarity; received -1.0",
        ),
    ],
)
def test_incidence_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(similarity_incidence)(torch.randn(1, 3, 2), **{"threshold": 0.5, **options})
    with pytest.raises(ValueError, match=message):
        CrossModalHypergraph(2, 3, **options)


# incidence_statistics


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_statistics_count(batch, modalities, tokens, edges, seed):
    generator = torch.Generator().manual_seed(seed)
    incidence = torch.rand(batch, modalities * tokens, edges, generator=generator) < 0.4
    actual = torch.stack(incidence_statistics(incidence, modalities), dim=1)
    for b in range(batch):
        members = [{i for i in range(modalities * tokens) if incidence[b, i, e]} for e in range(edges)]
        members = [edge for edge in members if edge]
        nodes = set().union(*members)
        lonely = [i for i in nodes if all(edge == {i} for edge in members if i in edge)]
        across = [edge for edge in members if len({i // tokens for i in edge}) > 1]
        sizes = sum(len(edge) for edge in members)
        counted = [sizes / max(len(members), 1), len(lonely) / max(len(nodes), 1), len(across) / max(len(members), 1)]
        torch.testing.assert_close(actual[b], torch.tensor(counted))


def test_statistics_tell_the_identity_from_everything():
    nodes = torch.randn(2, 6, 4)
    for threshold, expected in ((2.0, (1, 1, 0)), (-1.0, (6, 0, 1))):
        statistics = incidence_statistics(similarity_incidence(nodes, threshold), 3)
        for actual, value in zip(statistics, expected, strict=True):
            assert torch.equal(actual, torch.full((2,), float(value)))


@pytest.mark.parametrize("num_modalities", [0, 4])
def test_statistics_refuse(num_modalities):
    incidence = torch.ones(1, 6, 6, dtype=torch.bool)
    message = f"num_modalities must divide the number of nodes, 6; received {num_modalities}"
    with pytest.raises(ValueError, match=message):
        incidence_statistics(incidence, num_modalities)


# HypergraphConv


def randomize(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter at random, so that none can hide behind its initial value; returned by name."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return dict(module.named_parameters())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_layer_is_eq_15_after_a_linear_map(normalization):
    nodes, incidence, _ = problem(dim=3)
    conv = HypergraphConv(3, 5, num_edges=3, num_nodes=4, normalization=normalization, dtype=torch.float64)
    state = randomize(conv)
    mapped = torch.stack([torch.stack([state["linear.weight"] @ node for node in sample]) for sample in nodes])
    received = reference.hypergraph_conv(mapped, incidence, state["edge_weight"], normalization) + state["node_bias"]
    expected = received / (1 + (-received).exp())
    leaves = [nodes, *state.values()]
    torch.testing.assert_close(with_gradients(conv(nodes, incidence), leaves), with_gradients(expected, leaves))


def test_layer_without_counts_takes_any_hypergraph():
    conv = HypergraphConv(3, 5)
    assert set(conv.state_dict()) == {"linear.weight"}
    for count, edges in ((1, 1), (4, 7), (6, 2)):
        nodes, incidence = torch.randn(2, count, 3), torch.rand(2, count, edges) < 0.5
        expected = F.silu(hypergraph_conv(nodes @ conv.linear.weight.T, incidence))
        torch.testing.assert_close(conv(nodes, incidence), expected)


def test_initial_weights_and_biases_change_nothing():
    counted = HypergraphConv(3, 5, num_edges=3, num_nodes=4)
    plain = HypergraphConv(3, 5)
    plain.linear.weight = counted.linear.weight
    nodes, incidence, _ = problem(dim=3)
    torch.testing.assert_close(counted(nodes.float(), incidence), plain(nodes.float(), incidence))
    randomize(counted)
    counted.reset_parameters()
    assert torch.equal(counted.edge_weight, torch.ones(3))
    assert torch.equal(counted.node_bias, torch.zeros(4, 5))


@pytest.mark.parametrize("activation", [F.relu, nn.Tanh(), nn.PReLU()])
def test_activation_is_applied_last(activation):
    nodes, incidence = torch.randn(2, 4, 3), torch.rand(2, 4, 3) < 0.5
    conv = HypergraphConv(3, 5, num_nodes=4, activation=activation)
    linear = HypergraphConv(3, 5, num_nodes=4, activation=lambda nodes: nodes)
    randomize(linear)
    conv.linear, conv.node_bias = linear.linear, linear.node_bias
    assert torch.equal(conv(nodes, incidence), activation(linear(nodes, incidence)))
    assert isinstance(activation, nn.Module) == any(module is activation for module in conv.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_dim": 0}, "in_dim must be at least 1; received 0"),
        ({"out_dim": -1}, "out_dim must be at least 1; received -1"),
        ({"num_edges": 0}, "num_edges must be at least 1; received 0"),
        ({"num_nodes": 0}, "num_nodes must be at least 1; received 0"),
        ({"normalization": "mean"}, "normalization must be .* received 'mean'"),
    ],
)
def test_layer_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        HypergraphConv(**{"in_dim": 3, "out_dim": 5, **arguments})


def test_layer_refuses_other_shapes():
    conv = HypergraphConv(3, 5, num_edges=3, num_nodes=4)
    incidence = torch.ones(2, 4, 3, dtype=torch.bool)
    message = r"nodes must have width in_dim=3 and count num_nodes=4; received shape \(2, 4, 2\)"
    with pytest.raises(ValueError, match=message):
        conv(torch.randn(2, 4, 2), incidence)
    with pytest.raises(ValueError, match=r"count num_nodes=4; received shape \(2, 5, 3\)"):
        conv(torch.randn(2, 5, 3), torch.ones(2, 5, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"incidence must have num_edges=3 hyperedges; received shape \(2, 4, 2\)"):
        conv(torch.randn(2, 4, 3), incidence[..., :2])


# CrossModalHypergraph


def interaction(modalities: int, tokens: int, dim: int = 4, **options) -> CrossModalHypergraph:
    module = CrossModalHypergraph(dim, modalities * tokens, dtype=torch.float64, **{"threshold": 0.0, **options})
    randomize(module)
    return module


shapes = {"modalities": st.integers(1, 5), "tokens": st.integers(1, 3)}


@given(**shapes, num_layers=st.integers(1, 3), threshold=st.floats(-1, 1), seed=st.integers(0, 2**32 - 1))
def test_interaction_matches_the_loops_over_present_tokens(modalities, tokens, num_layers, threshold, seed):
    torch.manual_seed(seed)
    module = interaction(modalities, tokens, num_layers=num_layers, threshold=threshold)
    state = dict(module.named_parameters())
    nodes = torch.randn(2, modalities, tokens, 4, dtype=torch.float64, requires_grad=True)
    present = torch.rand(2, modalities) < 0.6
    for flags in (present, None):
        everything = torch.ones_like(present) if flags is None else flags
        expected = reference.cross_modal_hypergraph(nodes, everything, state, num_layers, threshold)
        actual = module(nodes, flags)
        leaves = [nodes, *state.values()]
        torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@pytest.mark.parametrize("options", [{}, {"similarity": "euclidean", "threshold": 2.0}, {"normalization": "symmetric"}])
def test_interaction_gradcheck(options):
    module = interaction(2, 2, dim=3, num_layers=2, **options)
    tokens = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True], [True, False]])
    assert torch.autograd.gradcheck(module, (tokens, present))


@given(**shapes, garbage=st.sampled_from([0.0, 1e300, float("inf"), float("nan")]), seed=st.integers(0, 2**32 - 1))
def test_absent_modalities_are_inert(modalities, tokens, garbage, seed):
    torch.manual_seed(seed)
    module = interaction(modalities, tokens, num_layers=2)
    nodes = torch.randn(2, modalities, tokens, 4, dtype=torch.float64)
    present = torch.rand(2, modalities) < 0.6
    expected = module(nodes, present)
    disturbed = torch.where(present[..., None, None], nodes, garbage).requires_grad_()
    actual = module(disturbed, present)
    assert torch.equal(actual[present], expected[present])
    assert torch.equal(actual[~present].nan_to_num(), disturbed[~present].nan_to_num())
    gradients = torch.autograd.grad(actual[present].sum(), [disturbed, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][~present].any()


@given(**shapes, seed=st.integers(0, 2**32 - 1))
def test_one_present_modality_is_a_hypergraph_of_its_own(modalities, tokens, seed):
    torch.manual_seed(seed)
    module = interaction(modalities, tokens)
    nodes = torch.randn(2, modalities, tokens, 4, dtype=torch.float64)
    for m in range(modalities):
        present = (torch.arange(modalities) == m).expand(2, -1)
        alone = CrossModalHypergraph(4, tokens, threshold=0.0, dtype=torch.float64)
        conv, counted = module.layers[0], slice(m * tokens, (m + 1) * tokens)
        alone.load_state_dict(
            {
                "layers.0.linear.weight": conv.linear.weight,
                "layers.0.edge_weight": conv.edge_weight[counted],
                "layers.0.node_bias": conv.node_bias[counted],
            }
        )
        torch.testing.assert_close(module(nodes, present)[:, m : m + 1], alone(nodes[:, m : m + 1]))


def test_without_hyperedges_tokens_do_not_meet_and_with_all_they_share_one_mean():
    tokens = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    apart, together = interaction(3, 2, threshold=2.0), interaction(3, 2, threshold=-1.0)
    other = tokens.clone()
    other[:, 1:] += 1
    assert torch.equal(apart(tokens)[:, 0], apart(other)[:, 0])
    for name in ("edge_weight", "node_bias"):
        nn.init.constant_(getattr(together.layers[0], name), 1.0)
    update = together(tokens) - tokens
    torch.testing.assert_close(update, update[:, :1, :1].expand_as(update))
    mean = tokens.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(update[:, :1, :1], F.silu(together.layers[0].linear(mean) + 1))


def test_modalities_permute_with_their_weights():
    module = interaction(3, 2)
    tokens, present = torch.randn(2, 3, 2, 4, dtype=torch.float64), torch.tensor([[True] * 3, [True, False, True]])
    order = [2, 0, 1]
    expected = module(tokens, present)[:, order]
    conv, places = module.layers[0], [4, 5, 0, 1, 2, 3]
    with torch.no_grad():
        conv.edge_weight.copy_(conv.edge_weight[places].clone())
        conv.node_bias.copy_(conv.node_bias[places].clone())
    torch.testing.assert_close(module(tokens[:, order], present[:, order]), expected)


def test_incidence_is_the_one_forward_uses():
    module = interaction(3, 2, threshold=0.3)
    tokens, present = torch.randn(2, 3, 2, 4, dtype=torch.float64), torch.tensor([[True] * 3, [True, False, True]])
    incidence = module.incidence(tokens, present)
    nodes = tokens.flatten(1, 2)
    everyone = present.repeat_interleave(2, dim=1)
    assert torch.equal(incidence, similarity_incidence(nodes, 0.3, present=everyone))
    expected = (module.layers[0](nodes, incidence) + nodes).reshape(tokens.shape)
    torch.testing.assert_close(module(tokens, present)[present], expected[present])


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_tokens_stay_finite_with_finite_gradients(device, value, similarity, dtype):
    nodes = torch.full((1, 1, 3, 4), value, device=device, dtype=dtype, requires_grad=True)
    module = CrossModalHypergraph(4, 3, similarity=similarity, device=device, dtype=dtype)
    actual = module(nodes)
    assert actual.dtype == dtype
    gradients = torch.autograd.grad(actual.float().sum(), [nodes, *module.parameters()])
    assert all(item.isfinite().all() for item in (actual, *gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_dtype_of_the_tokens(device, dtype):
    module = CrossModalHypergraph(8, 6, num_layers=2, device=device)
    tokens = torch.randn(2, 3, 2, 8, device=device).to(dtype)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = module(tokens)
        assert module.layers[0](tokens.flatten(1, 2), module.incidence(tokens)).dtype == dtype
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), module(tokens.float()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1; received 0"),
        ({"num_nodes": 0}, "num_nodes must be at least 1; received 0"),
        ({"dim": 0}, "dim must be at least 1; received 0"),
        ({"normalization": "mean"}, "normalization must be .* received 'mean'"),
    ],
)
def test_interaction_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        CrossModalHypergraph(**{"dim": 4, "num_nodes": 6, **options})


@pytest.mark.parametrize("shape", [(1, 3, 1, 4), (1, 2, 4, 4), (1, 3, 2, 5)])
def test_interaction_refuses_other_shapes(shape):
    received = ", ".join(map(str, shape))
    message = rf"tokens must have width dim=4 and count num_nodes=6 over all modalities; received shape \({received}\)"
    with pytest.raises(ValueError, match=message):
        CrossModalHypergraph(4, 6)(torch.randn(shape))
