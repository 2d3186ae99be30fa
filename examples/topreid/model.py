"""TOP-ReID: a tower per modality, then TPM, and CRM, read from top to bottom.

The class token of every modality reads the patches of the other modalities and finally its own (TPM); the joined result
F is the descriptor. CRM learns to predict the tokens of one modality from those of another. It is a term of the
objective in training, and replaces a missing modality at test time. F and the class tokens G before TPM have the
identity and triplet losses of `Objective` in `stmi_layers.training`.

Paper: "TOP-ReID: Multi-spectral Object Re-Identification with Token Permutation", AAAI 2024,
<https://arxiv.org/abs/2312.09612>.
"""

import copy
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from examples.topreid.settings import Reconstruction, Settings
from examples.towers.class_tokens import Supervision, class_token_features, class_token_widths
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import CrossModalReconstruction, TokenPermutation, reconstruction_loss
from stmi_layers.backbones import parameter_groups
from stmi_layers.training import Batch, Facts, Outputs, whole_mean


def build(settings: Settings, facts: Facts, tower: Tower) -> "TOPReID":
    """Build the model of the settings, with random weights."""
    first = build_tower(tower, facts)
    count = len(facts.modalities) if settings.towers == "separate" else 1
    return TOPReID(
        # Equal initial weights, like copies of one pretrained tower, so that CRM and TPM compare comparable tokens.
        [first, *(copy.deepcopy(first) for _ in range(count - 1))],
        facts.modalities,
        permutation=settings.permutation,
        reconstruction=settings.reconstruction,
        reconstruction_depth=settings.reconstruction_depth,
        num_heads=settings.num_heads,
        supervision=settings.supervision,
    )


class TOPReID(nn.Module):
    """TOP-ReID around image towers: a `ReIDModel` that reads no captions.

    Args:
        towers: a `Backbone` per modality, or one for all; masks steer towers with SFM.
        modalities: names of the modalities.
        permutation: whether TPM is used; False leaves the class tokens as they are.
        reconstruction: use of CRM, see `Settings`; a single modality has none.
        reconstruction_depth: number of blocks per ordered pair of modalities.
        num_heads: heads of TPM and CRM; divides the width of the towers.
        supervision: G as one feature, or a feature per modality.

    Raises:
        ValueError: when there is neither one tower nor one per modality.
    """

    def __init__(
        self,
        towers: Sequence[Any],
        modalities: tuple[str, ...],
        *,
        permutation: bool = True,
        reconstruction: Reconstruction = "loss+filling",
        reconstruction_depth: int = 1,
        num_heads: int = 8,
        supervision: Supervision = "joined",
    ) -> None:
        super().__init__()
        if len(towers) not in (1, len(modalities)):
            raise ValueError(f"towers must be one or {len(modalities)}, one per modality; received {len(towers)}")
        dim, count = towers[0].dim, len(modalities)
        self.towers = nn.ModuleList(towers)
        self.permutation = TokenPermutation(dim, count, num_heads=num_heads) if permutation else None
        self.reconstruction = None
        if reconstruction != "none" and count > 1:
            self.reconstruction = CrossModalReconstruction(dim, count, num_heads=num_heads, depth=reconstruction_depth)
        self.fills = reconstruction == "loss+filling"
        self.class_token_names = class_token_widths(modalities, dim, supervision)
        self.widths = self.class_token_names | ({"F": count * dim} if permutation else {})
        alone = "all" if len(self.widths) > 1 else next(iter(self.widths))
        self.headline = "F" if permutation else alone

    def forward(self, batch: Batch) -> Outputs:
        """Return G and F of a batch, and in training the term CRM.

        The part of an absent modality is 0 in G, and also in F unless CRM fills it in.
        """
        present, terms = batch.present, {}  # (b m) or None
        patches, class_tokens = self.tower_tokens(batch)  # (b m n d), (b m d)
        outputs = class_token_features(class_tokens, present, self.class_token_names)
        if self.reconstruction is not None and self.training:
            terms["CRM"] = self.reconstruction_term(class_tokens, patches, present)
        if self.permutation is None:
            return outputs._replace(terms=terms)
        if self.reconstruction is not None and self.fills and not self.training and present is not None:
            tokens = self.reconstruction(join(class_tokens, patches), present)  # (b m 1+n d)
            class_tokens, patches, present = tokens[:, :, 0], tokens[:, :, 1:], None  # now all are there
        fused = self.permutation(class_tokens, patches, present)  # (b m d)
        return outputs._replace(features={**outputs.features, "F": fused.flatten(1)}, terms=terms)

    def tower_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return patches (batch modalities patches dim) and class tokens (batch modalities dim), 0 where absent."""
        if len(self.towers) == 1:
            return tower_tokens(self.towers[0], batch)
        parts = [tower_tokens(tower, only(batch, index)) for index, tower in enumerate(self.towers)]
        patches, class_tokens = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return patches, class_tokens

    def reconstruction_term(self, class_tokens: Tensor, patches: Tensor, present: Tensor | None) -> Tensor:
        """Sum, over ordered pairs of modalities, the mean over samples of all processes that have both modalities."""
        assert self.reconstruction is not None
        parts = join(class_tokens, patches).unbind(1)  # (b 1+n d) each
        there = class_tokens.new_ones(class_tokens.shape[:2], dtype=torch.bool) if present is None else present
        means, counts = [], []
        for source, target in permutations(range(len(parts)), 2):
            both = there[:, source] & there[:, target]
            made = self.reconstruction.translate(parts[source], source, target)
            # The targets also have a gradient, which draws the towers together.
            means.append(reconstruction_loss(made, parts[target], both))
            counts.append(both.sum())
        return whole_mean(torch.stack(means), torch.stack(counts)).sum()

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Return None, because captions are not read."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the towers, and the strengths of SFM in the towers."""
        groups = parameter_groups(self, backbone=nn.ModuleList(trunk_of(tower) for tower in self.towers))
        return {"new": groups["rest"], "backbone": groups["backbone"], "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Return alpha and beta of every block with SFM, numbered through all towers."""
        return watch_strengths(self.towers)


def only(batch: Batch, modality: int) -> Batch:
    """Return the batch with one of its modalities."""
    one = slice(modality, modality + 1)
    masks, present = (None if part is None else part[:, one] for part in (batch.masks, batch.present))
    return batch._replace(images=batch.images[:, one], masks=masks, present=present)


def join(class_tokens: Tensor, patches: Tensor) -> Tensor:
    """Join class token and patches of every modality, (batch modalities 1+patches dim)."""
    return torch.cat([class_tokens[:, :, None], patches], dim=2)
