r"""Captions as tokens of a vision transformer: learned words in the caption, and an inverse network.

A caption becomes one more token of the vision transformer, so that image and text meet in every block.
Paper: "IDEA: Inverted Text with Cooperative Deformable Aggregation for Multi-modal Object Re-Identification",
CVPR 2025, pages 29701-29710. The formulas follow its code, <https://github.com/924973292/IDEA>.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stmi_layers._checks import check_positive, check_probability
from stmi_layers._precision import at_least_float32
from stmi_layers._typing import typed


@typed
def prompted_text_feature(
    tokens: Float[Tensor, "batch length dim"],
    ids: Int[Tensor, "batch length"],
    num_prompts: int,
    *,
    first: int = 5,
) -> Float[Tensor, "batch dim"]:
    r"""Average the outputs of a text tower at the end of the caption and at its learned words.

    $$\frac{1}{n + 1} \Big( \text{tokens}_{\text{end}} + \sum_{i=0}^{n-1} \text{tokens}_{\text{first} + i} \Big)$$

    Args:
        tokens: outputs of the text tower at each position of the caption.
        ids: token ids of the captions; the end is the position of the greatest id, as in CLIP.
        num_prompts: $n$, the number of learned words, at least 0; 0 reads the end of the caption alone.
        first: position of the first learned word, from 0; 5 follows the start token and "An image of a".

    Returns:
        One feature per caption, in the dtype of `tokens`.

    Raises:
        ValueError: when the learned words do not fit into the caption.

    Examples:
        >>> tokens = torch.tensor([[[0.0], [2.0], [6.0], [9.0]]])
        >>> ids = torch.tensor([[1, 5, 7, 0]])  # 7 is the end
        >>> prompted_text_feature(tokens, ids, 1, first=1)
        tensor([[4.]])
    """
    _check_places(tokens, num_prompts, first)
    end = ids.argmax(dim=1)[:, None, None].expand(-1, 1, tokens.shape[2])
    read = torch.cat([tokens.gather(1, end), tokens[:, first : first + num_prompts]], dim=1)
    return at_least_float32(read).mean(dim=1).to(tokens.dtype)


class CaptionPrompts(nn.Module):
    r"""Adds learned words to the embeddings of a caption, before a frozen text tower.

    $$\text{embeddings}_{\text{first} + i} \leftarrow \text{embeddings}_{\text{first} + i} + p_i$$

    The caption holds placeholders at these positions ("An image of a X X person ...").
    [`prompted_text_feature`][stmi_layers.text_inversion.prompted_text_feature] reads the outputs of the tower there.
    Gradients reach $p$ through the whole text tower, so that training stores the activations of the tower.

    Differences from the research code: $p$ starts with the standard deviation of CLIP's embeddings, 0.02. The research
    code starts with 1 (`std=1.0`), which outweighs the placeholders.

    Args:
        num_prompts: $n$, the number of learned words.
        dim: width of the embeddings.
        first: position of the first learned word, from 0; 5 follows the start token and "An image of a".
        std: standard deviation of the initial values, at least 0.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is below 1, or `first` or `std` is negative. `forward` also raises ValueError for inputs
            of the wrong size.

    Examples:
        >>> prompts = CaptionPrompts(num_prompts=2, dim=8)
        >>> prompts(torch.randn(3, 77, 8)).shape
        torch.Size([3, 77, 8])
    """

    def __init__(
        self,
        num_prompts: int,
        dim: int,
        *,
        first: int = 5,
        std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_prompts=num_prompts, dim=dim)
        if first < 0 or not std >= 0:
            raise ValueError(f"first and std must be at least 0; received first={first}, std={std}")
        self.num_prompts, self.dim, self.first, self.std = num_prompts, dim, first, std
        self.prompts = nn.Parameter(torch.empty(num_prompts, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: normally distributed numbers of standard deviation `std`."""
        nn.init.normal_(self.prompts, std=self.std)

    @typed
    def forward(self, embeddings: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Return `embeddings` plus the learned words; call it before or after adding position embeddings."""
        if embeddings.shape[-1] != self.dim:
            raise ValueError(f"embeddings must have width dim={self.dim}; received shape {tuple(embeddings.shape)}")
        _check_places(embeddings, self.num_prompts, self.first)
        behind = embeddings.shape[1] - self.first - self.num_prompts
        return embeddings + F.pad(self.prompts, (0, 0, self.first, behind)).to(embeddings.dtype)

    def extra_repr(self) -> str:
        return f"num_prompts={self.num_prompts}, dim={self.dim}, first={self.first}, std={self.std}"


class TextInversion(nn.Module):
    r"""Turns the feature of a caption into a token for the vision transformer: the inverse network.

    $$W_2\, \operatorname{GELU}(W_1\, \text{text} + b_1) + b_2 + \text{position}$$

    Append the token to the image tokens after their position embeddings are added, and before the first norm and block
    (`torch.cat([tokens, token[:, None]], dim=1)`); append True to a foreground mask. If the class token gets a camera
    embedding, add that embedding to this token, too. At the output of the tower it is the last token, a text feature
    that has attended to the image. Where `has_text` is False the token is `position` alone, whatever the value of
    `text`.

    Differences from the research code: captions may be missing, and this layer adds `position`.

    Args:
        text_dim: width of the text feature.
        dim: width of the tokens of the vision transformer.
        hidden: width between the two maps; four times `text_dim` by default.
        dropout: probability, in training, that an output of either map is zeroed.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is below 1, or `dropout` is not a probability. `forward` also raises ValueError for
            inputs of the wrong size.

    Examples:
        >>> inversion = TextInversion(text_dim=8, dim=12)
        >>> inversion(torch.randn(2, 8), has_text=torch.tensor([True, False])).shape
        torch.Size([2, 12])
    """

    def __init__(
        self,
        text_dim: int,
        dim: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(text_dim=text_dim, dim=dim, hidden=hidden)
        check_probability("dropout", dropout)
        self.text_dim, self.dim, self.hidden = text_dim, dim, hidden or 4 * text_dim
        factory = {"device": device, "dtype": dtype}
        self.expand = nn.Linear(text_dim, self.hidden, **factory)
        self.project = nn.Linear(self.hidden, dim, **factory)
        self.position = nn.Parameter(torch.empty(dim, **factory))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.Linear`, and a position with the scale of CLIP's positions."""
        self.expand.reset_parameters()
        self.project.reset_parameters()
        nn.init.normal_(self.position, std=self.dim**-0.5)

    @typed
    def forward(
        self, text: Float[Tensor, "batch text_dim"], has_text: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return the token of each `text`; `has_text` is True for the samples with a caption, None for all."""
        if text.shape[-1] != self.text_dim:
            raise ValueError(f"text must have width text_dim={self.text_dim}; received shape {tuple(text.shape)}")
        if has_text is not None:
            text = torch.where(has_text[:, None], text, 0.0)
        token = self.dropout(self.project(self.dropout(F.gelu(self.expand(text)))))
        token = token if has_text is None else torch.where(has_text[:, None], token, 0.0)
        return (token + self.position).to(text.dtype)

    def extra_repr(self) -> str:
        return f"text_dim={self.text_dim}, dim={self.dim}, hidden={self.hidden}, dropout={self.dropout.p}"


def _check_places(tokens: Tensor, num_prompts: int, first: int) -> None:
    if num_prompts < 0 or first < 0 or first + num_prompts > tokens.shape[1]:
        places = f"num_prompts={num_prompts} from first={first}"
        raise ValueError(f"learned words must fit into the caption of {tokens.shape[1]} positions; received {places}")
