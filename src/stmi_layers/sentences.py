r"""Choice of the sentences of a caption that each expert reads.

An expert with its own sentences learns to look for their content. Parts of a caption also fit a text encoder whose
context is too short for the whole caption. Paper: NEXT, arXiv 2505.20001, <https://arxiv.org/abs/2505.20001>.
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

    Every sentence is drawn independently with probability `p`. If no sentence is drawn, one sentence of the caption is
    chosen uniformly. The paper says that the parts are random, but not how to draw them. Draw again in every training
    step; in evaluation give all sentences to all experts, as `p=1` does.

    Args:
        sentences: True for the sentences that a caption has, because captions differ in length; any leading shape.
        num_experts: number of experts, at least 1.
        p: probability of a sentence, in [0, 1].
        generator: source of the randomness, on the device of `sentences`; None for torch's global generator.

    Returns:
        True for the sentences that an expert reads, at least one of every caption that has a sentence.

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
    # Where no sentence is drawn, the sentence with the smallest random number is: all have equal chances.
    first = torch.where(exists, drawn, 2.0).argsort(dim=-1).argsort(dim=-1) == 0
    return exists & ((drawn < p) | first)
