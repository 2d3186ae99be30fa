"""NEXT: a tower, then two kinds of experts and their readouts, read from top to bottom.

TMSE: every expert draws sentences of the captions and processes the patches weighted by a route and by their similarity
to the sentences. CSSE: a router that does not know the modality distributes every patch among experts. MGFA: the global
tokens read the results of each kind of experts. The published text leaves much open; the layers document their reading.
Paper: arXiv 2505.20001, <https://arxiv.org/abs/2505.20001>.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.next.sentences import known_sentences, lay_out
from examples.next.settings import Experts, Settings
from examples.towers.class_tokens import Supervision, class_token_features, class_token_widths
from examples.towers.clip_text import build_clip_text
from examples.towers.text import CaptionEncoder
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import ExpertReadout, SharedExperts, TextModulatedExperts, draw_sentences
from stmi_layers.backbones import parameter_groups
from stmi_layers.training import Batch, Facts, Outputs


def build(settings: Settings, facts: Facts, tower: Tower) -> "NEXT":
    """Build the model of the settings, with random weights; it reads captions if the training split has captions."""
    backbone = build_tower(tower, facts)
    text_encoder, text_dim = None, backbone.dim
    if facts.words and settings.experts in ("both", "semantic"):
        if settings.text_encoder == "words":
            text_encoder = CaptionEncoder(facts.words, backbone.dim, num_heads=settings.num_heads)
        else:
            text_encoder = build_clip_text(
                tower.architecture, None, overflow=settings.caption_overflow, project=False
            ).requires_grad_(False)
            text_dim = text_encoder.width
    return NEXT(
        backbone,
        facts.modalities,
        text_encoder=text_encoder,
        text_dim=text_dim,
        experts=settings.experts,
        num_experts=settings.num_experts,
        mlp_ratio=settings.mlp_ratio,
        dropout=settings.dropout,
        num_heads=settings.num_heads,
        norm=settings.norm,
        sentence_share=settings.sentence_share,
        supervision=settings.supervision,
    )


class NEXT(nn.Module):
    """NEXT, or one kind of its experts, around a tower: a `ReIDModel`.

    Our choices where the text is silent: the text of an expert is the mean of the features of its sentences, each of
    length 1, so that a frozen text tower reads every sentence once; a modality is compared with its own caption, or
    with the common caption; the descriptor joins the results of both readouts.

    Args:
        backbone: an image tower, a `Backbone`; masks steer it when it has SFM.
        modalities: names of the modalities, in the order of the images.
        text_encoder: encoder of sentences, a `TextEncoder`, or None for a model without captions.
        text_dim: width of its features; a linear layer maps it to the width of the tower if the two differ.
        experts: kinds of experts: "both", "semantic", "structural", or "none".
        num_experts: number of experts of each kind.
        mlp_ratio: hidden width of an expert, as a multiple of the token width.
        dropout: share of an expert's result that is dropped in training.
        num_heads: heads of the readouts; divides the width of the tower.
        norm: normalise queries and keys of the readouts.
        sentence_share: probability in training that an expert draws a sentence.
        supervision: one feature of all class tokens, "joined", or one per modality, "single".
    """

    def __init__(
        self,
        backbone: Any,
        modalities: Sequence[str],
        *,
        text_encoder: Any = None,
        text_dim: int | None = None,
        experts: Experts = "both",
        num_experts: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        num_heads: int = 4,
        norm: bool = False,
        sentence_share: float = 0.5,
        supervision: Supervision = "joined",
    ) -> None:
        super().__init__()
        dim, count = backbone.dim, len(modalities)
        options: dict[str, Any] = {"mlp_ratio": mlp_ratio, "dropout": dropout}
        self.backbone, self.num_modalities = backbone, count
        self.num_experts, self.sentence_share, self.text_encoder = num_experts, sentence_share, text_encoder
        kinds = ("semantic", "structural") if experts == "both" else () if experts == "none" else (experts,)
        self.class_token_names = class_token_widths(modalities, dim, supervision)
        self.widths = dict(self.class_token_names)
        self.widths.update((kind, count * dim) for kind in kinds)
        self.headline = "+".join(kinds) if kinds else "all" if len(self.widths) > 1 else next(iter(self.widths))
        self.semantic = self.structural = None
        if "semantic" in kinds:
            text_dim = None if text_dim in (None, dim) else text_dim
            self.semantic = TextModulatedExperts(dim, count, num_experts, text_dim=text_dim, **options)
            if text_encoder is None:  # the mixture of texts is never read
                for layer in (self.semantic.mix_expand, self.semantic.mix_contract):
                    layer.requires_grad_(False)
        if "structural" in kinds:
            self.structural = SharedExperts(dim, num_experts, **options)
        self.readouts = nn.ModuleDict({kind: ExpertReadout(dim, num_heads=num_heads, norm=norm) for kind in kinds})
        self._seen: Tensor | None = None  # shares of the experts in a batch, for `watch`
        self._look = True

    def forward(self, batch: Batch) -> Outputs:
        """Return the features of global tokens, and what they read from each kind of experts; absent parts are 0."""
        present = batch.present  # (b m) or None
        patches, globals_ = tower_tokens(self.backbone, batch)  # (b m n d), (b m d)
        outputs = class_token_features(globals_, present, self.class_token_names)
        if self.semantic is not None:
            text = (
                None if self.text_encoder is None else self.texts(batch).to(patches.dtype)
            )  # (b e c t), e, c may be 1
            has_text = None if text is None else batch.has_text  # (b)
            tokens = self.semantic(patches, text, present, has_text)  # (b e m*n d)
            outputs.features["semantic"] = self.readouts["semantic"](globals_, tokens, present).flatten(1)  # (b m*d)
        if self.structural is not None:
            self._remember(patches, present)
            tokens = self.structural(patches, present)  # (b e m*n d)
            outputs.features["structural"] = self.readouts["structural"](globals_, tokens, present).flatten(
                1
            )  # (b m*d)
        return outputs

    def texts(self, batch: Batch) -> Tensor:
        """Return text features per expert and caption, (batch experts captions width); equal for all in evaluation."""
        if batch.texts is None:
            raise ValueError("batch must hold texts, made by encode, because the model reads captions; received None")
        known = known_sentences(batch.texts)  # (b c s)
        sentences = batch.texts.flatten(0, 2)  # (b*c*s ...)
        sentences = sentences.float() if sentences.is_floating_point() else sentences
        read = F.normalize(self.text_encoder(sentences, known.flatten()), dim=-1)  # (b*c*s t)
        read = read.unflatten(0, known.shape)  # (b c s t)
        drawn = known[:, :, None]  # (b c 1 s)
        if self.training:
            drawn = draw_sentences(known, self.num_experts, p=self.sentence_share)  # (b c e s)
        shares = drawn / drawn.sum(dim=-1, keepdim=True).clamp(min=1)
        return torch.einsum("bces, bcst -> bect", shares.to(read.dtype), read)

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Encode sentences for the text encoder, (samples captions sentences ...); None for a model without encoder.

        Features of a frozen text tower are kept in half precision, because there is one per sentence.
        """
        if self.text_encoder is None:
            return None
        sentences, shape = lay_out(captions, self.num_modalities)
        rows = self.text_encoder.encode(sentences)  # (samples*captions*sentences ...)
        return (rows.half() if rows.is_floating_point() else rows).unflatten(0, shape)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the tower, and the strengths of SFM: two numbers per block, which need larger steps."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        return {"new": groups["rest"], "backbone": groups["backbone"], "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Return alpha and beta of every block, and the share of the patches that each expert of CSSE gets.

        Shares are taken from the first batch since the mode changed. An expert whose share falls to 0 is lost.
        """
        shares = [] if self._seen is None else self._seen.tolist()
        return watch_strengths(self.backbone) | {f"share/expert_{index}": part for index, part in enumerate(shares)}

    def train(self, mode: bool = True) -> "NEXT":
        """Set the mode; `watch` then reports on the next batch."""
        self._look = True
        return super().train(mode)

    def _remember(self, patches: Tensor, present: Tensor | None) -> None:
        if self.structural is not None and self._look and not torch.compiler.is_compiling():
            with torch.no_grad():
                shares = self.structural.gates(patches, present).sum(dim=(0, 2, 3))  # (e)
            self._seen, self._look = shares / shares.sum(), False
