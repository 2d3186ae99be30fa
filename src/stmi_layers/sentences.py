r"""Choice of the sentences of a caption that each expert reads.

An expert with sentences of its own learns to look for what they say; and parts fit a text encoder that a whole caption
overflows. Paper: NEXT, arXiv 2505.20001, <https://arxiv.org/abs/2505.20001>.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from stmi_layers._checks import check_positive, check_probability
from stmi_layers._typing import typed


@typed
def draw_sentences(
    sentences: Bool[Tensor, "*captions sentences"],
    num_experts: int,
    *,
    p: float = 0.5,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "*captions experts sentences"]:
    """Draw a random part of every caption for every expert.

    Every sentence is drawn with probability `p`, independently; where that gives none, one of the caption is drawn, all
    with the same probability. The paper says that the parts are random, not how they are drawn. Draw anew in every
    training step; in evaluation give all sentences to all experts, as `p=1` does.

    Args:
        sentences: True for the sentences a caption has, in any leading shape: captions differ in their number.
        num_experts: number of experts.
        p: probability of a sentence.
        generator: source of the randomness; None for that of torch.

    Returns:
        True for the sentences that an expert reads. At least one is read of every caption that has any.

    Raises:
        ValueError: when `num_experts` is not positive, or `p` is not a probability.

    Examples:
        >>> captions = torch.tensor([[True, True, False], [True, False, False]])  # of two sentences, and of one
        >>> draw_sentences(captions, num_experts=2, p=1.0)[0]
        tensor([[ True,  True, False],
                [ True,  True, False]])
        >>> draw_sentences(captions, num_experts=2, p=0.0).sum(dim=2)
        tensor([[1, 1],
                [1, 1]])
    """
    check_positive(num_experts=num_experts)
    check_probability("p", p)
    exists = sentences[..., None, :].expand(*sentences.shape[:-1], num_experts, -1)
    drawn = torch.rand(exists.shape, generator=generator, device=sentences.device)
    # The sentence with the smallest number stands in where no other is drawn: it is one of all with equal chances.
    first = torch.where(exists, drawn, 2.0).argsort(dim=-1).argsort(dim=-1) == 0
    return exists & ((drawn < p) | first)
