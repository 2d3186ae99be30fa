"""Signal: one tower, then SIM, with the two alignments GAM and LAM, read from top to bottom.

SIM lets the class token of every modality select patches of all modalities and read them (eq. 5-18); the joined result
is F. GAM aligns the modalities as wholes (eq. 19-22), LAM at a few positions of their maps (eq. 23-26). Both are terms
of the objective and cost nothing at test time. F and the class tokens G have the identity and triplet losses of
`Objective` in `stmi_layers.training`. The descriptor is G and F together.

Paper: "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object Re-Identification", AAAI 2026,
<https://arxiv.org/abs/2511.17965>.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from examples.signal_reid.settings import Settings
from examples.towers.class_tokens import Supervision, class_token_features, class_token_widths
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import GramAlignment, LocalAlignment, SelectiveInteraction, TokenSelection
from stmi_layers.backbones import parameter_groups
from stmi_layers.deformable import Points
from stmi_layers.interaction import Unselected
from stmi_layers.training import Batch, Facts, Outputs, whole_batch, whole_mean


def build(settings: Settings, facts: Facts, tower: Tower) -> "Signal":
    """Build the model of the settings, with random weights."""
    return Signal(
        build_tower(tower, facts),
        facts.modalities,
        interaction=settings.interaction,
        keep=settings.keep,
        learned_selection=settings.learned_selection,
        unselected=settings.unselected,
        num_heads=settings.num_heads,
        anchor=settings.anchor,
        negatives=settings.negatives,
        window=settings.window,
        points=settings.points,
        offset_channels=settings.offset_channels,
        supervision=settings.supervision,
    )


class Signal(nn.Module):
    """Signal around a tower: a `ReIDModel` that reads no captions.

    Args:
        backbone: an image tower, a `Backbone`; masks steer it when it has SFM.
        modalities: names of the modalities.
        interaction: whether SIM is used; False leaves the class tokens as they are.
        keep: share of the patches that a class token selects per modality.
        learned_selection: give the selection a gradient.
        unselected: treatment of other patches: "hidden" from the attention, or read as zero vectors ("zeroed").
        num_heads: heads of SIM; divides the width of the tower.
        anchor: modality that GAM exchanges between samples.
        negatives: negatives of GAM: samples of other identities, or all other samples.
        window: side of the window of patches per position of LAM.
        points: rule for positions of LAM at the border of the map.
        offset_channels: number of offsets per position of LAM.
        supervision: G as one feature, or a feature per modality.
    """

    def __init__(
        self,
        backbone: Any,
        modalities: tuple[str, ...],
        *,
        interaction: bool = True,
        keep: float = 0.5,
        learned_selection: bool = True,
        unselected: Unselected = "hidden",
        num_heads: int = 8,
        anchor: Literal["every", "first"] = "every",
        negatives: Literal["others", "all"] = "others",
        window: int = 4,
        points: Points = "inside",
        offset_channels: Literal[1, 2] = 2,
        supervision: Supervision = "joined",
    ) -> None:
        super().__init__()
        dim, count = backbone.dim, len(modalities)
        self.backbone, self.negatives = backbone, negatives
        self.selection = self.interaction = None
        if interaction:
            self.selection = TokenSelection(dim, keep, straight_through=learned_selection)
            self.interaction = SelectiveInteraction(dim, num_heads=num_heads, unselected=unselected)
        self.global_alignment = GramAlignment(anchor=0 if anchor == "first" else None)
        options: dict[str, Any] = {"points": points, "offset_channels": offset_channels}
        self.local_alignment = LocalAlignment(dim, count, backbone.grid, kernel_size=window, stride=window, **options)
        self.class_token_names = class_token_widths(modalities, dim, supervision)
        self.widths = self.class_token_names | ({"F": count * dim} if interaction else {})
        self.headline = "all" if len(self.widths) > 1 else next(iter(self.widths))

    def forward(self, batch: Batch) -> Outputs:
        """Return G and F of a batch, 0 where a modality is absent, and in training the terms GAM and LAM."""
        present = batch.present  # (b m) or None
        patches, class_tokens = tower_tokens(self.backbone, batch)  # (b m n d), (b m d)
        outputs = class_token_features(class_tokens, present, self.class_token_names)
        if self.training:
            outputs = outputs._replace(terms=self.alignment_terms(patches, batch))
        if self.selection is None or self.interaction is None:
            return outputs
        gates = self.selection(patches, class_tokens, present)  # (b m n), 0 or 1
        fused = self.interaction(class_tokens, patches, gates, present)  # (b m d)
        return outputs._replace(features={**outputs.features, "F": fused.flatten(1)})

    def alignment_terms(self, patches: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Compute GAM, which compares all samples, and LAM, a mean over pairs of modalities, over all processes."""
        there = batch.present
        if there is None:
            there = torch.ones_like(patches[..., 0, 0], dtype=torch.bool)
        # GAM reads only the mean patch: of other processes it needs one vector per image, in at least float32.
        wide = torch.promote_types(patches.dtype, torch.float32)
        means = whole_batch(patches.mean(dim=2, keepdim=True, dtype=wide))  # (b m 1 d)
        labels = whole_batch(batch.labels) if self.negatives == "others" else None
        count = there.sum(dim=1)
        pairs = (count * (count - 1) // 2).sum()
        return {
            "GAM": self.global_alignment(means, whole_batch(there), labels),
            "LAM": whole_mean(self.local_alignment(patches, there), pairs),
        }

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Return None, because captions are not read."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the tower, the strengths of SFM in the tower, and the temperature of GAM."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        temperature = [*self.global_alignment.parameters()]
        new = [parameter for parameter in groups["rest"] if parameter is not temperature[0]]
        return {
            "new": new,
            "backbone": groups["backbone"],
            "strengths": groups["strengths"],
            "temperature": temperature,
        }

    def watch(self) -> dict[str, float]:
        """Return the temperature of GAM, and alpha and beta of every block with SFM."""
        return {"temperature": self.global_alignment.temperature.item(), **watch_strengths(self.backbone)}
