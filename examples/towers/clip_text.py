"""CLIP's text tower as the text prior: frozen, its features kept, with a projection that learns.

The paper supervises T, the feature of the caption, as it does G and U. Behind a frozen tower that loss trains nothing
but its own classifier. Here a linear map follows the tower by default, so that the loss on T, and those on U through
STR, shape the prior.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from stmi_layers.training._torchvision import import_torchvision

Overflow = Literal["truncate", "average"]


def import_library(name: str, extra: str) -> Any:
    """A library of pretrained models, or an error that says how to install it."""
    import_torchvision()  # which all of them import
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported; install it by: pip install 'stmi-layers[{extra}]'") from error


class ClipVocabulary:
    """CLIP's byte-pair tokens, from the table that open_clip brings along.

    Args:
        architecture: open_clip's name of the model; says how many tokens its text tower reads, 77 in CLIP.
        overflow: what to do about captions with more tokens: "truncate" drops the rest, as CLIP does; "average" cuts
            them into pieces and takes the mean of the pieces' features.

    Raises:
        ImportError: when open_clip is not installed.
        ValueError: when the text tower needs other tokens than CLIP's, which would have to be downloaded.
    """

    words: tuple[str, ...] = ()  # none that a checkpoint has to keep

    def __init__(self, architecture: str, *, overflow: Overflow = "truncate") -> None:
        open_clip = import_library("open_clip", "clip")
        config = open_clip.get_model_config(architecture) or {}
        if "text_cfg" not in config or config["text_cfg"].get("hf_tokenizer_name"):
            raise ValueError(
                f"architecture must be a model of open_clip with CLIP's own tokens, such as 'ViT-B-16-quickgelu', for "
                f"text_encoder='clip'; received {architecture!r}"
            )
        self._tokenizer = open_clip.SimpleTokenizer()
        self.length, self.overflow = config["text_cfg"].get("context_length", 77), overflow

    def encode(self, captions: Iterable[str]) -> Int[Tensor, "batch words"]:
        """Token ids: a start token, the caption and an end token, padded to `length`; then its further pieces, if any.

        An empty caption is all padding.
        """
        pieces = [self._pieces(caption) for caption in captions]
        tokens = torch.zeros(len(pieces), max(1, *map(len, pieces)), self.length, dtype=torch.int64)
        for row, of_one in enumerate(pieces):
            for column, ids in enumerate(of_one):
                tokens[row, column, : len(ids)] = torch.tensor(ids)
        return tokens.flatten(1)

    def describe_overflow(self, captions: Sequence[str]) -> str | None:
        """How many captions are longer than the tower reads, and what happens to them; None when there are none."""
        long = sum(len(self._tokenizer.encode(caption)) > self.length - 2 for caption in captions)
        if not long:
            return None
        what = "cut" if self.overflow == "truncate" else "read in pieces, whose features are averaged"
        return f"{long} of {len(captions)} captions have more than CLIP's {self.length} tokens and are {what}"

    def _pieces(self, caption: str) -> list[list[int]]:
        if not caption.strip():
            return []
        ids, room = self._tokenizer.encode(caption), self.length - 2
        starts = range(0, max(1, len(ids)), room)
        pieces = [[self._tokenizer.sot_token_id, *ids[i : i + room], self._tokenizer.eot_token_id] for i in starts]
        return pieces[:1] if self.overflow == "truncate" else pieces


class ClipCaptionEncoder(nn.Module):
    """One vector per caption: a frozen text tower, then a linear map that learns.

    The tower reads every distinct text once, in float32 and by itself, so that the vector does not depend on the batch
    the text first came in. A missing caption has a learned vector instead.

    Args:
        tower: an open_clip model; of it `encode_text` is used.
        length: tokens the tower reads at a time.
        width: of the features of the tower.
        dim: width of the vector.
        project: learn the linear map; it starts as the identity where `width` and `dim` are equal. Without it the
            vector is the feature itself, and a loss on it trains nothing but its own classifier, as in the paper.

    Raises:
        ValueError: when there is no projection and `width` and `dim` differ.
    """

    def __init__(self, tower: nn.Module, length: int, width: int, dim: int, *, project: bool = True) -> None:
        super().__init__()
        if not project and width != dim:
            raise ValueError(f"text_projection=False needs a text tower of width {dim}, as the tokens; it has {width}")
        self.tower = tower.requires_grad_(False).eval()
        # On the tower, so that weights loaded into it alone count as well as those of the encoder or the model.
        self.tower.register_load_state_dict_post_hook(self._forget)
        self.length = length
        linear = nn.Linear(width, dim)
        if width == dim:
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.projection = linear if project else nn.Identity()
        self.no_caption = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.no_caption, std=0.02)
        self._features: dict[tuple[int, ...], Tensor] = {}

    def train(self, mode: bool = True) -> "ClipCaptionEncoder":
        """Set the mode of all but the tower, which is frozen."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, tokens: Int[Tensor, "batch words"]) -> Float[Tensor, "batch dim"]:
        pieces = rearrange(tokens, "batch (pieces length) -> batch pieces length", length=self.length)
        missing = (tokens == 0).all(dim=1, keepdim=True)
        # Lists of ids are the keys; rows of padding are no pieces, except that a missing caption has to have one.
        rows = [[tuple(ids) for ids in of_one if ids[0]] or [tuple(of_one[0])] for of_one in pieces.tolist()]
        features = torch.stack([torch.stack([self._feature(ids) for ids in row]).mean(dim=0) for row in rows])
        return torch.where(missing, self.no_caption, self.projection(features.to(self.no_caption.device)))

    @torch.no_grad()
    def _feature(self, ids: tuple[int, ...]) -> Tensor:
        """The feature of one text, kept on the CPU: a copy per text is small, and survives a move of the model."""
        if ids not in self._features:
            device = self.no_caption.device
            with torch.autocast(device.type, enabled=False):
                feature = self.tower.encode_text(torch.tensor([ids], device=device))  # pyright: ignore[reportCallIssue]
            self._features[ids] = feature[0].float().cpu()
        return self._features[ids]

    def _forget(self, *_: object) -> None:
        """Features of other weights."""
        self._features.clear()
