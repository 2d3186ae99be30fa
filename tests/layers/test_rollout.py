"""Rollout and selection: against the whole product, against the released arrays, and by the laws they obey."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import editor as reference
from stmi_layers import attention_rollout, select_tokens
from vectors import MODALITIES, every, load, meta


@given(st.integers(1, 4), st.integers(1, 2), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_rollout_is_a_row_of_the_product(layers, prefix_tokens, tokens, seed):
    tokens += prefix_tokens
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(layers, 2, 3, tokens, tokens, generator=generator, dtype=torch.float64).softmax(-1)
    actual = attention_rollout(*maps, prefix_tokens=prefix_tokens)
    expected = [[reference.rollout(list(maps[:, b, h]), prefix_tokens) for h in range(3)] for b in range(2)]
    torch.testing.assert_close(actual, torch.stack([torch.stack(row) for row in expected]))
    assert (actual.sum(dim=-1) <= 1 + 1e-12).all()


def test_rollout_takes_modalities_at_once_and_has_no_gradient():
    maps = torch.randn(3, 2, 3, 4, 6, 6).softmax(-1).requires_grad_()  # layers batch modalities heads
    together = attention_rollout(*maps)
    assert not together.requires_grad
    torch.testing.assert_close(together[:, 1], attention_rollout(*maps[:, :, 1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rollout_of_half_precision_is_float32(dtype):
    maps = torch.randn(12, 2, 3, 9, 9).softmax(-1).to(dtype)
    exact = attention_rollout(*maps.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = attention_rollout(*maps)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_selection_matches_the_loops(modalities, heads, patches, seed, complete):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (2, modalities, heads, patches), generator=generator).float()  # many are equal
    present = (torch.rand(2, modalities, generator=generator) < 0.6) | complete
    num = int(torch.randint(1, patches + 1, (), generator=generator))
    expected = torch.stack([reference.select(scores[b], num, present[b]) for b in range(2)])
    actual = select_tokens(scores, num, None if complete else present)
    assert torch.equal(actual, expected)
    broken = torch.where(present[..., None, None], scores, torch.nan)
    assert torch.equal(select_tokens(broken, num, present), expected)


def test_selection_keeps_exactly_num_per_head_on_every_grid():
    """A ratio of the patches loses one on many grids; an integer does not."""
    for patches in range(4, 400):
        scores = torch.rand(1, 1, 1, patches)
        assert select_tokens(scores, 4).sum() == 4


def test_selection_compiles_and_exports():
    scores, present = torch.rand(3, 2, 4, 9), torch.tensor([[True, True], [True, False], [False, True]])

    class Selection(torch.nn.Module):
        def forward(self, first, last, present):
            rolled = attention_rollout(first, last)
            return select_tokens(rolled, 2, present)

    maps = torch.randn(2, 3, 2, 4, 10, 10).softmax(-1)
    compiled = torch.compile(Selection(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*maps, present), Selection()(*maps, present))
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(Selection(), (*maps, present), dynamic_shapes=({0: batch},) * 3)
    fewer = [item[:2] for item in (*maps, present)]
    assert torch.equal(program.module()(*fewer), Selection()(*fewer))
    assert select_tokens(scores[:0], 2).shape == (0, 9)


@every("editor_sfts_*.npz")
def test_released_arrays(path):
    found = load(path)
    settings = meta(path)
    names = [name for name in MODALITIES if f"in.attention.{name}" in found]
    kept = []
    for name in names:
        attention = found[f"in.attention.{name}"].double()  # (layers batch heads tokens tokens)
        kept.append(select_tokens(attention_rollout(*attention)[:, None], settings["head_keep"]))
        assert torch.equal(kept[-1], found[f"out.spatial_mask.{name}"])
    scores = torch.stack([attention_rollout(*found[f"in.attention.{name}"].double()) for name in names], dim=1)
    assert torch.equal(select_tokens(scores, settings["head_keep"]), torch.stack(kept).any(dim=0))
    keep = torch.stack([*kept, found["out.frequency_mask"]]).any(dim=0)
    assert torch.equal(keep, found["eval.out.mask"])
    for name in names:
        zeroed = torch.where(keep[..., None], found[f"in.features.{name}"][:, 1:], 0.0)
        torch.testing.assert_close(found[f"eval.out.{name}"][:, 1:], zeroed.double(), rtol=0, atol=1e-10)


@every("editor_sfts_*.npz")
def test_the_frequency_selection_of_the_release_counts_bright_pixels(path):
    """Why it is no layer here: its patches are those with most pixels above mid-grey, and no frequency decides."""
    found = load(path)
    settings = meta(path)
    images = torch.stack([value for name, value in found.items() if name.startswith("in.images.")])
    bright = (images.double().mean(dim=(0, 2)) > 0).double()
    rows, columns = settings["grid"]
    size = bright.shape[1] // rows, bright.shape[2] // columns
    counts = bright.unflatten(1, (rows, size[0])).unflatten(3, (columns, size[1])).sum(dim=(2, 4)).flatten(1)
    assert torch.equal(counts.long(), found["in.positive_counts"])
    mask = found["out.frequency_mask"]
    assert (mask.sum(dim=1) == settings["frequency_keep"]).all()
    for sample, chosen in zip(counts, mask, strict=True):
        assert sample[chosen].min() >= sample[~chosen].max()


def test_refusals():
    maps = torch.rand(1, 2, 4, 4)
    with pytest.raises(ValueError, match="maps must hold the attention of at least one layer; received none"):
        attention_rollout()
    for prefix_tokens in (0, 4):
        with pytest.raises(ValueError, match=f"prefix_tokens must lie in 1 to 3; received {prefix_tokens}"):
            attention_rollout(maps, prefix_tokens=prefix_tokens)
    with pytest.raises(ValueError, match="num must be at least 1; received 0"):
        select_tokens(maps, 0)
    with pytest.raises(ValueError, match="num must be at most the number of patches, 4; received 5"):
        select_tokens(maps, 5)
