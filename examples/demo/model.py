"""DeMo: a tower, then PIFE, HDM and ATMoE, read from top to bottom.

PIFE adds the mean of the patches to every global token. HDM reads one vector for every subset of the modalities: what
is specific to one modality, and what several share. ATMoE weights these vectors head by head, each behind its own
expert. Class tokens and weighted vectors are supervised separately, and joined for retrieval.
Paper: AAAI 2025, <https://arxiv.org/abs/2412.10650>.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from examples.demo.settings import Fusion, Settings
from examples.towers.class_tokens import Supervision, class_token_features, class_token_widths
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import GatedExperts, GlobalPatchReduction, SubsetReadout, subset_presence
from stmi_layers.backbones import parameter_groups
from stmi_layers.training import Batch, Facts, Outputs


def build(settings: Settings, facts: Facts, tower: Tower) -> "DeMo":
    """Build the model of the settings, with random weights."""
    return DeMo(
        build_tower(tower, facts),
        facts.modalities,
        pooling=settings.pooling,
        fusion=settings.fusion,
        readout_heads=settings.readout_heads,
        expert_heads=settings.expert_heads,
        dropout=settings.dropout,
        subsets=settings.subsets,
        incomplete=settings.incomplete,
        supervision=settings.supervision,
    )


class DeMo(nn.Module):
    """DeMo, or a part of it, around a tower: a `ReIDModel`.

    Differences from the research code: a missing modality is left out, where the research code passes a black image
    through the model; and both descriptors are scaled to length 1 before they are joined for retrieval.

    Args:
        backbone: an image tower, a `Backbone`; masks steer it when it has SFM.
        modalities: names of the modalities, in the order of the images.
        pooling: whether PIFE is used.
        fusion: HDM and ATMoE ("experts"), HDM alone ("subsets"), or neither ("none").
        readout_heads: heads of HDM; divides the width of the tower.
        expert_heads: heads of ATMoE; divides the width of the tower.
        dropout: share of the attention weights of HDM that are dropped in training.
        subsets: "all", or "ends" for each modality alone and all together.
        incomplete: "read" or "drop" a subset of which some modalities are missing.
        supervision: one feature of all class tokens, "joined", or one per modality, "single".
    """

    def __init__(
        self,
        backbone: Any,
        modalities: Sequence[str],
        *,
        pooling: bool = True,
        fusion: Fusion = "experts",
        readout_heads: int = 4,
        expert_heads: int = 4,
        dropout: float = 0.1,
        subsets: Literal["all", "ends"] = "all",
        incomplete: Literal["read", "drop"] = "read",
        supervision: Supervision = "joined",
    ) -> None:
        super().__init__()
        dim, count = backbone.dim, len(modalities)
        self.backbone, self.modalities = backbone, tuple(modalities)
        self.pooling = GlobalPatchReduction(dim, count) if pooling else None
        self.readout = self.experts = None
        self.class_token_names = class_token_widths(modalities, dim, supervision)
        self.widths = dict(self.class_token_names)
        if fusion != "none":
            options = {"num_heads": readout_heads, "dropout": dropout}
            self.readout = SubsetReadout(dim, count, subsets=subsets, incomplete=incomplete, **options)
            number = len(self.readout.subsets)
            self.experts = GatedExperts(dim, number, num_heads=expert_heads) if fusion == "experts" else None
            self.widths[fusion] = number * dim
        self.headline = "all" if len(self.widths) > 1 else next(iter(self.widths))
        self._seen: tuple[Tensor, Tensor | None] | None = None  # subsets of a batch, for `watch`
        self._look = True

    def forward(self, batch: Batch) -> Outputs:
        """Return the features of class tokens and of subsets; the parts of absent modalities are 0."""
        present = batch.present  # (b m) or None
        patches, globals_ = tower_tokens(self.backbone, batch)  # (b m n d), (b m d)
        if self.pooling is not None:
            globals_ = self.pooling(globals_, patches, present=present)  # (b m d)
        outputs = class_token_features(globals_, present, self.class_token_names)
        if self.readout is not None:
            parts = self.readout(torch.cat([globals_[:, :, None], patches], dim=2), present)  # (b s d)
            if self.experts is None:
                outputs.features["subsets"] = parts.flatten(1)  # (b s*d)
            else:
                known = self.known_subsets(present)  # (b s) or None
                self._remember(parts, known)
                outputs.features["experts"] = self.experts(parts, known).flatten(1)  # (b s*d)
        return outputs

    def known_subsets(self, present: Tensor | None) -> Tensor | None:
        """Tell which subsets are known, (batch subsets); None if no modality is missing."""
        assert self.readout is not None
        if present is None:
            return None
        return subset_presence(present, self.readout.subsets, incomplete=self.readout.incomplete)

    def encode(self, captions: Sequence[tuple[str, ...]]) -> None:
        """Return None, because DeMo reads no captions."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the tower, and the strengths of SFM: two numbers per block, which need larger steps."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        return {"new": groups["rest"], "backbone": groups["backbone"], "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Return alpha and beta of every block, and the mean gate per subset in the first batch since a mode change.

        Gates that stay at one over the number of subsets do not distinguish the subsets.
        """
        strengths = watch_strengths(self.backbone)
        if self._seen is None or self.experts is None or self.readout is None:
            return strengths
        training = self.experts.training
        with torch.no_grad():  # in evaluation mode, so that running statistics do not change
            gates = self.experts.eval().gates(*self._seen).mean(dim=(0, 1))  # (s)
        self.experts.train(training)
        members = [
            "+".join(name for name, member in zip(self.modalities, row, strict=True) if member)
            for row in self.readout.subsets.tolist()
        ]
        return strengths | {f"gate/{name}": gate for name, gate in zip(members, gates.tolist(), strict=True)}

    def train(self, mode: bool = True) -> "DeMo":
        """Set the mode; `watch` then reports on the next batch."""
        self._look = True
        return super().train(mode)

    def _remember(self, parts: Tensor, known: Tensor | None) -> None:
        if self._look and not torch.compiler.is_compiling():
            self._seen, self._look = (parts.detach(), known), False
