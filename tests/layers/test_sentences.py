"""Drawn sentences: rules of every draw, and the frequency of each sentence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stmi_layers import draw_sentences


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
    st.floats(0, 1),
    st.integers(1, 3),
)
def test_a_draw_is_a_part_and_never_empty(rows, p, experts):
    sentences = torch.tensor(rows)
    drawn = draw_sentences(sentences, experts, p=p)
    assert drawn.shape == (len(rows), experts, 4)
    assert not (drawn & ~sentences[:, None]).any()
    assert torch.equal(drawn.any(dim=2), sentences.any(dim=1)[:, None].expand(-1, experts))
    assert torch.equal(draw_sentences(sentences, experts, p=1.0), sentences[:, None].expand(-1, experts, -1))
    assert draw_sentences(sentences, experts, p=0.0).sum(dim=2).le(1).all()


def test_every_sentence_has_the_same_chance():
    sentences = torch.tensor([True, True, False, True]).expand(20000, 4)
    for p in (0.0, 0.3, 0.5):
        drawn = draw_sentences(sentences, 2, p=p, generator=torch.Generator().manual_seed(0))
        share = drawn.double().mean(dim=(0, 1))
        expected = p + (1 - p) ** 3 / 3  # drawn, or one of three that stands in when none is
        torch.testing.assert_close(share, torch.tensor([1.0, 1.0, 0.0, 1.0]).double() * expected, rtol=0, atol=0.015)
        assert p == 0 or not torch.equal(drawn[:, 0], drawn[:, 1])


def test_a_generator_makes_it_repeatable_and_shapes_are_free():
    sentences = torch.ones(2, 3, 5, dtype=torch.bool)
    draws = [draw_sentences(sentences, 4, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert draws[0].shape == (2, 3, 4, 5)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], draw_sentences(sentences, 4, generator=torch.Generator().manual_seed(8)))
    assert draw_sentences(sentences[:0], 4).shape == (0, 3, 4, 5)


def test_draws_refuse():
    sentences = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_experts must be at least 1; received 0"):
        draw_sentences(sentences, 0)
    with pytest.raises(ValueError, match=r"p must be a probability in \[0, 1\]; received 1.5"):
        draw_sentences(sentences, 1, p=1.5)
