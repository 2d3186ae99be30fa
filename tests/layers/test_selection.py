"""Selection: against loops over single patches, against the released arrays, and by the laws it obeys."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.signal_reid.released import released_state
from reference import selection as reference
from stmi_layers.selection import TokenSelection, keep_count, select_across, top_tokens
from vectors import every, load, part, stacked

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(0, 2**32 - 1))


def problem(
    batch: int = 3, modalities: int = 3, patches: int = 6, seed: int = 0, dim: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, modalities, patches + 1, dim, generator=generator, dtype=torch.float64)
    return tokens[:, :, 1:].contiguous(), tokens[:, :, 0], torch.rand(batch, modalities, generator=generator) < 0.7


def layer(keep: float, dim: int = 4, **options) -> TokenSelection:
    """With every parameter at random, so that none can hide behind its initial value."""
    selection = TokenSelection(dim, keep, dtype=torch.float64, **options)
    for parameter in selection.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return selection


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.integers(0, 11))
def test_top_tokens_are_the_first_of_a_sorted_list(scores, num):
    chosen = reference.highest([(score, place) for place, score in enumerate(scores)], num)
    expected = [place in chosen for place in range(len(scores))]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert top_tokens(torch.tensor([scores], dtype=dtype), num)[0].tolist() == expected


def test_top_tokens_never_mark_what_has_no_score():
    scores = torch.tensor([[math.nan, 1.0, -math.inf, 2.0], [math.nan, -math.inf, -math.inf, math.nan]])
    assert top_tokens(scores, 3).tolist() == [[False, True, False, True], [False] * 4]
    assert top_tokens(scores, 1).tolist() == [[False, False, False, True], [False] * 4]


def test_top_tokens_of_half_precision_follow_the_order_of_equal_scores():
    scores = torch.randn(4, 500).bfloat16()  # with many ties
    assert torch.equal(top_tokens(scores, 200), top_tokens(scores.double(), 200))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_top_tokens_of_nothing(shape):
    assert top_tokens(torch.zeros(shape), 2).shape == shape


def test_top_tokens_refuse():
    with pytest.raises(ValueError, match="num must be at least 0; received -1"):
        top_tokens(torch.zeros(1, 2), -1)


@pytest.mark.parametrize(
    ("keep", "tokens", "expected"),
    [
        (80, 128, 80),
        (80, 20, 80),
        (0.625, 128, 80),
        (0.7, 10, 7),
        (0.7, 100, 70),
        (1 / 3, 9, 3),
        (0.01, 5, 1),
        (1.0, 7, 7),
    ],
)
def test_keep_counts_in_whole_numbers(keep, tokens, expected):
    assert keep_count(keep, tokens) == expected


@given(SIZES, st.integers(1, 9), st.booleans())
def test_gates_match_the_loops(sizes, num, gaps):
    patches, class_tokens, present = problem(*sizes)
    selection = layer(num)
    there = present if gaps else torch.ones_like(present)
    own = reference.intra(patches, class_tokens, num, there)
    others, wanted = reference.inter(patches, class_tokens, dict(selection.named_parameters()), num, there)
    gates = selection(patches, class_tokens, present if gaps else None)
    assert torch.equal(gates.detach(), (own | others).double())

    weights = torch.randn(gates.shape, dtype=torch.float64)
    leaves = list(selection.parameters())
    actual, expected = (
        torch.autograd.grad((weights * item).sum(), leaves, materialize_grads=True, allow_unused=True)
        if item.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves]
        for item in (gates, wanted)
    )
    torch.testing.assert_close(actual, expected)


@given(SIZES, st.integers(1, 9))
def test_every_class_token_gets_its_number_of_patches(sizes, num):
    patches, class_tokens, present = problem(*sizes)
    batch, modalities, count = patches.shape[:3]
    for m in range(modalities):  # the wishes of one modality alone
        scores = torch.full((batch, modalities, modalities, count), -math.inf)
        scores[:, m] = torch.randn(batch, modalities, count)
        marked = select_across(scores, num, present=present)
        others = present.sum(dim=1) - 1
        expected = torch.where(present[:, m], (others * num).minimum(others * count), 0)
        assert torch.equal(marked.sum(dim=(1, 2)), expected)
        assert not marked[:, m].any()
        assert not marked[~present].any()
    own = reference.intra(patches, class_tokens, num, present)
    gates = layer(num)(patches, class_tokens, present)
    assert (gates.bool() >= own).all()
    assert not gates[~present].any()


@given(SIZES)
def test_as_many_as_there_are_keeps_everything(sizes):
    patches, class_tokens, present = problem(*sizes)
    for selection in (layer(patches.shape[2]), layer(1.0), layer(100)):
        gates = selection(patches, class_tokens, present)
        assert torch.equal(gates.bool(), present[..., None].expand(gates.shape))


@given(SIZES, st.integers(1, 5), st.randoms(use_true_random=False))
def test_patches_and_modalities_permute(sizes, num, random):
    (patches, class_tokens, present), selection = problem(*sizes), layer(num)
    gates = selection(patches, class_tokens, present)
    order = random.sample(range(patches.shape[2]), patches.shape[2])
    assert torch.equal(selection(patches[:, :, order], class_tokens, present), gates[:, :, order])
    order = random.sample(range(patches.shape[1]), patches.shape[1])
    assert torch.equal(selection(patches[:, order], class_tokens[:, order], present[:, order]), gates[:, order])


@given(SIZES, st.integers(1, 5))
def test_an_absent_modality_is_a_modality_less(sizes, num):
    (patches, class_tokens, present), selection = problem(*sizes), layer(num)
    gates = selection(patches, class_tokens, present)
    for b, there in enumerate(present):
        if there.any():
            alone = selection(patches[b : b + 1, there], class_tokens[b : b + 1, there])
            assert torch.equal(gates[b, there], alone[0])


def test_a_modality_alone_keeps_its_own_selection():
    patches, class_tokens, _ = problem(modalities=1)
    expected = reference.intra(patches, class_tokens, 2, torch.ones(3, 1, dtype=torch.bool))
    assert torch.equal(layer(2)(patches, class_tokens).bool(), expected)


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_what_stands_in_an_absent_slot_does_not_matter(filler):
    patches, class_tokens, present = problem()
    present[0], present[1] = torch.tensor([True, False, True]), torch.tensor([False, False, False])
    selection = layer(2)
    expected = selection(patches, class_tokens, present)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((expected * weights).sum(), list(selection.parameters()))
    patches = torch.where(present[..., None, None], patches, filler)
    class_tokens = torch.where(present[..., None], class_tokens, filler)
    actual = selection(patches, class_tokens, present)
    assert torch.equal(actual, expected)
    torch.testing.assert_close(torch.autograd.grad((actual * weights).sum(), list(selection.parameters())), gradients)


def test_the_gradient_goes_to_the_selection_alone():
    patches, class_tokens, present = problem()
    patches.requires_grad_()
    class_tokens.requires_grad_()
    selection = layer(2)
    gates = selection(patches, class_tokens)
    assert gates.unique().tolist() == [0.0, 1.0]  # a straight-through term leaves no rounding
    leaves = [patches, class_tokens, *selection.parameters()]
    found = torch.autograd.grad((gates * torch.randn_like(gates)).sum(), leaves, allow_unused=True)
    assert found[:2] == (None, None)
    assert all(gradient.any() for gradient in found[2:])
    assert not layer(2, straight_through=False)(patches, class_tokens, present).requires_grad


def test_the_selection_learns_what_the_loss_behind_it_rewards():
    """One modality asks for the patch of the other that costs nothing: only the gradient of the gates can teach it."""
    torch.manual_seed(0)
    patches, class_tokens = torch.randn(16, 2, 8, 4), torch.randn(16, 2, 4)
    cost = patches[..., 0]  # of reading a patch, low where its first feature is
    selection = TokenSelection(4, 2)
    optimizer = torch.optim.Adam(selection.parameters(), lr=0.05)

    def paid() -> Tensor:
        return (selection(patches, class_tokens) * cost).sum(dim=(1, 2)).mean()

    before = paid().item()
    for _ in range(60):
        optimizer.zero_grad()
        paid().backward()
        optimizer.step()
    assert paid().item() < before - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_select_the_same(dtype, device):
    patches, class_tokens, present = (item.to(device) for item in problem(patches=40, dim=16))
    selection = TokenSelection(16, 10, device=device)
    patches, class_tokens = patches.to(dtype), class_tokens.to(dtype)
    expected = selection(patches.float(), class_tokens.float(), present)
    actual = selection(patches, class_tokens, present)
    assert actual.dtype == dtype
    assert torch.equal(actual.float(), expected)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(selection(patches.float(), class_tokens.float(), present), expected)


def test_exported_share_follows_the_number_of_patches():
    patches, class_tokens, _ = problem(patches=10)
    selection = layer(0.7).eval()
    dynamic = {2: torch.export.Dim("patches", min=2, max=64)}
    program = torch.export.export(selection, (patches, class_tokens), dynamic_shapes=(dynamic, None))
    for count in (4, 10, 13):
        patches, class_tokens, _ = problem(patches=count)
        torch.testing.assert_close(program.module()(patches, class_tokens), selection(patches, class_tokens))


@pytest.mark.filterwarnings("ignore")
def test_onnx_marks_the_same_tokens():
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference")
    patches, class_tokens, present = problem(patches=10)
    inputs = patches.float().round(decimals=1), class_tokens.float(), present
    selection = TokenSelection(4, 0.5).eval()
    program = torch.onnx.export(selection, inputs, dynamo=True, verbose=False)
    assert program is not None
    session = evaluator.ReferenceEvaluator(program.model_proto)
    (output,) = session.run(None, dict(zip(session.input_names, (item.numpy() for item in inputs), strict=True)))
    assert torch.equal(torch.from_numpy(output), selection(*inputs))


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, -0.1, math.nan])
def test_layer_refuses_a_keep(keep):
    with pytest.raises(ValueError, match="keep must be a whole number of at least 1 or a share in"):
        TokenSelection(4, keep)


def test_layer_refuses_sizes():
    with pytest.raises(ValueError, match="dim must be at least 1; received 0"):
        TokenSelection(0, 1)
    with pytest.raises(ValueError, match=r"patches must have width dim=8; received shape \(3, 3, 6, 4\)"):
        TokenSelection(8, 1)(*problem()[:2])


# The released arrays


@every("signal_sim_*.npz")
def test_released_masks(path):
    arrays = load(path)
    patches, class_tokens = stacked(arrays, "input/patches_{}"), stacked(arrays, "input/global_{}")
    num = int(arrays["meta/k"])
    selection = TokenSelection(patches.shape[-1], num, dtype=patches.dtype)
    state = released_state(part(arrays, "param/"))
    selection.load_state_dict(part(state, "selection."))
    own = top_tokens((patches @ class_tokens[..., None]).squeeze(-1).flatten(0, 1), num).view(patches.shape[:3])
    assert torch.equal(own, stacked(arrays, "step/intra_{}"))
    expected = own | stacked(arrays, "step/inter_{}")
    assert torch.equal(selection(patches, class_tokens).bool(), expected)
    torch.testing.assert_close(
        patches * selection(patches, class_tokens).detach()[..., None], stacked(arrays, "step/selected_{}")
    )


@every("signal_general_*.npz")
def test_masks_of_any_number_of_modalities(path):
    arrays = load(path)
    patches, class_tokens, present = arrays["input/patches"], arrays["input/class_tokens"], arrays["present"].bool()
    selection = TokenSelection(patches.shape[-1], int(arrays["meta/k"]), dtype=patches.dtype)
    parameters = {f"token_{name}": value for name, value in part(arrays, "param/").items() if "selection" in name}
    selection.load_state_dict(part(released_state(parameters), "selection."))
    expected = arrays["sim/intra"].bool() | arrays["sim/inter"].bool()
    assert torch.equal(selection(patches, class_tokens, present).bool(), expected)
