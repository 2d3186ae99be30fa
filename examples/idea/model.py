"""IDEA: captions inverted into image tokens, a tower, then CDA, read from top to bottom.

An inverse network turns every caption into a token, which the tower reads among the patches of its image, so that image
and text meet in every block. After the tower, CDA lets the class token and the caption token of every modality read all
modalities at places that a network chooses. G and C are these tokens before CDA, F and FC after CDA. All four features
have the identity and triplet losses of `Objective` in `stmi_layers.training`.

Paper: "IDEA: Inverted Text with Cooperative Deformable Aggregation for Multi-modal Object Re-Identification",
CVPR 2025, pages 29701-29710.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from examples.idea.prompted_text import build_prompted_text
from examples.idea.settings import Settings
from examples.towers.class_tokens import Supervision, class_token_widths
from examples.towers.clip_text import build_clip_text
from examples.towers.text import CaptionEncoder
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import DeformableReadout, TextInversion
from stmi_layers.backbones import parameter_groups
from stmi_layers.training import Batch, Facts, Outputs, joined


def build(settings: Settings, facts: Facts, tower: Tower) -> "IDEA":
    """Build the model of the settings, with random weights; it reads captions if the training split has captions.

    Raises:
        ValueError: when captions need a tower of tokens, or the settings do not fit each other.
    """
    backbone = build_tower(tower, facts)
    text_encoder = inversion = readout = None
    if facts.words and not hasattr(backbone, "width"):
        raise ValueError(f"captions need a tower of tokens to enter; received --backbone {tower.backbone}")
    if settings.num_prompts and settings.text_encoder != "clip":
        raise ValueError(f"num_prompts needs text_encoder='clip'; received {settings.text_encoder!r}")
    if facts.words and settings.text_encoder == "words":
        text_encoder = CaptionEncoder(facts.words, backbone.dim, num_heads=settings.num_heads)
    elif facts.words and settings.num_prompts:
        text_encoder = build_prompted_text(tower.architecture, backbone.dim, settings.num_prompts)
    elif facts.words:
        text_encoder = build_clip_text(tower.architecture, backbone.dim)
    if text_encoder is not None:
        inversion = TextInversion(backbone.dim, backbone.width, dropout=settings.dropout)
    if settings.aggregation:
        readout = DeformableReadout(
            backbone.dim,
            len(facts.modalities),
            backbone.grid,
            max_offset=settings.max_offset,
            kernel=settings.window,
            stride=settings.stride,
            offsets=settings.offsets,
            reference=settings.reference,
            num_heads=settings.readout_heads,
        )
    return IDEA(
        backbone,
        facts.modalities,
        text_encoder,
        inversion,
        readout,
        supervision=settings.supervision,
        descriptor=settings.descriptor,
    )


class IDEA(nn.Module):
    """IDEA around a tower: a `ReIDModel`.

    Args:
        backbone: an image tower, a `Backbone`; with captions it must take further tokens.
        modalities: names of the modalities.
        text_encoder: encoder of the captions, or None for a model without captions.
        inversion: the inverse network, which turns encoded captions into tokens.
        readout: CDA, or None to leave the tokens of the tower as they are.
        supervision: G and C as one feature each, or a feature per modality.
        descriptor: headline descriptor: a feature, several joined by +, "all", or "auto".

    Raises:
        ValueError: when `descriptor` names a feature that the model lacks.
    """

    def __init__(
        self,
        backbone: Any,
        modalities: tuple[str, ...],
        text_encoder: Any,
        inversion: TextInversion | None,
        readout: DeformableReadout | None,
        *,
        supervision: Supervision = "joined",
        descriptor: str = "auto",
    ) -> None:
        super().__init__()
        self.backbone, self.text_encoder, self.inversion, self.readout = backbone, text_encoder, inversion, readout
        self.num_modalities, self.supervision = len(modalities), supervision
        read, widths = text_encoder is not None, {}
        for name in ("G", "C") if read else ("G",):
            widths |= class_token_widths(modalities, backbone.dim, supervision, name)
        halves = ("F", "FC") if read else ("F",)
        if readout is not None:
            widths |= dict.fromkeys(halves, len(modalities) * backbone.dim)
        self.widths: dict[str, int] = widths
        auto = "all" if len(widths) > 1 else next(iter(widths))
        auto = auto if readout is None else "+".join(halves)
        self.headline = auto if descriptor == "auto" else descriptor
        if self.headline != "all" and not set(self.headline.split("+")) <= widths.keys():
            raise ValueError(f"descriptor must be one the model has, {sorted(widths)}; received {descriptor!r}")
        if read:  # encoding of a missing caption
            self.register_buffer("no_caption", text_encoder.encode([""])[0], persistent=False)

    def forward(self, batch: Batch) -> Outputs:
        """Return G, C, F and FC of a batch; the part of an absent modality, or of a missing caption, is 0."""
        present, said, extra = batch.present, None, None  # (b m) or None
        if self.text_encoder is not None:
            texts, said = self.captions(batch)  # (b m ...), (b m)
            extra = self.invert(texts, said)  # (b m 1 w)
        patches, tokens = tower_tokens(self.backbone, batch, extra)  # (b m n d), (b m d)
        if said is not None:
            patches, caption_tokens = patches[:, :, :-1], patches[:, :, -1]
            tokens = torch.cat([tokens, torch.where(said[..., None], caption_tokens, 0.0)], dim=1)  # (b 2*m d)
        features, rows = self.tower_features(tokens, present, said)
        if self.readout is not None:
            read = self.readout(tokens, patches, present, self.known(present, said))  # (b m d) or (b 2*m d)
            halves = zip(("F", "FC"), read.split(self.num_modalities, dim=1), strict=said is not None)
            features |= {name: half.flatten(1) for name, half in halves}  # (b m*d)
            rows |= {} if said is None else {"FC": said.any(dim=1)}
        return Outputs(features, rows=rows)

    def captions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return encoded captions of every modality, and which captions exist: (batch modalities)."""
        if batch.texts is None:
            raise ValueError("batch must hold texts, made by encode, because the model reads captions; received None")
        texts, empty = batch.texts, self.get_buffer("no_caption")
        if texts.dim() == empty.dim() + 1:  # one caption for all modalities
            texts = texts[:, None].expand(-1, self.num_modalities, *empty.shape)
        said = (texts != empty).flatten(2).any(dim=2) & batch.has_text[:, None]
        return texts, said if batch.present is None else said & batch.present

    def invert(self, texts: Tensor, said: Tensor) -> Tensor:
        """Turn captions into a token for the tower per modality, (batch modalities 1 width)."""
        assert self.inversion is not None
        vectors = self.text_encoder(texts.flatten(0, 1), said.flatten())  # (b*m d)
        tokens = self.inversion(vectors, said.flatten())  # (b*m w)
        return rearrange(tokens, "(b m) w -> b m 1 w", m=self.num_modalities)

    def tower_features(
        self, tokens: Tensor, present: Tensor | None, said: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return G and C from the tokens of the tower, and the supervised rows of each feature."""
        names = [name for name in self.widths if name not in ("F", "FC")]
        if self.supervision == "joined":
            parts, there = [half.flatten(1) for half in tokens.split(self.num_modalities, dim=1)], [None]
            there += [] if said is None else [said.any(dim=1)]
        else:
            parts = tokens.unbind(1)
            there = [None] * self.num_modalities if present is None else [*present.unbind(1)]
            there += [] if said is None else [*said.unbind(1)]
        rows = {name: row for name, row in zip(names, there, strict=True) if row is not None}
        return dict(zip(names, parts, strict=True)), rows

    def known(self, present: Tensor | None, said: Tensor | None) -> Tensor | None:
        """Tell which queries of CDA are present: class tokens, then caption tokens; None if all are present."""
        if said is None:
            return present
        return torch.cat([torch.ones_like(said) if present is None else present, said], dim=1)

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Encode captions for the text encoder: a row per sample, or a row per modality if samples have several."""
        if self.text_encoder is None:
            return None
        if all(len(each) < 2 for each in captions):
            return self.text_encoder.encode([joined(each) for each in captions])
        rows = [each if len(each) > 1 else (joined(each),) * self.num_modalities for each in captions]
        return self.text_encoder.encode([caption for row in rows for caption in row]).unflatten(0, (len(rows), -1))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the tower, and the strengths of SFM in the tower."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        return {"new": groups["rest"], "backbone": groups["backbone"], "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Return alpha and beta of every block with SFM."""
        return watch_strengths(self.backbone)
