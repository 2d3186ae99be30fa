"""TOP-ReID: a tower per modality, then TPM, and CRM beside it, read from top to bottom.

The class token of every modality goes round the patches of the others and ends at its own (TPM); the joined result F
is the descriptor. CRM learns to make the tokens of one modality of those of another: a term of the objective in
training, and the place of a missing modality at test time. Identity and triplet loss, on F and on the class tokens G
before TPM, are those of `Objective` of `stmi_layers.training`.

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
    """The model of the settings, with random weights."""
    first = build_tower(tower, facts)
    count = len(facts.modalities) if settings.towers == "separate" else 1
    return TOPReID(
        # Equal at the start, as copies of one pretrained tower are: what CRM and TPM compare is then comparable.
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
        towers: a `Backbone` per modality, or one for all. Masks steer those that listen to them.
        modalities: names of the modalities.
        permutation: TPM; False leaves the class tokens as they are.
        reconstruction: CRM; one modality alone has none.
        reconstruction_depth: blocks per ordered pair of modalities.
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
        """G and F of a batch, and in training the term CRM.

        The part of G that belongs to an absent modality is 0, and that of F where CRM does not fill it in.
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
        """Patches (batch modalities patches dim) and class tokens (batch modalities dim), 0 where absent."""
        if len(self.towers) == 1:
            return tower_tokens(self.towers[0], batch)
        parts = [tower_tokens(tower, only(batch, index)) for index, tower in enumerate(self.towers)]
        patches, class_tokens = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return patches, class_tokens

    def reconstruction_term(self, class_tokens: Tensor, patches: Tensor, present: Tensor | None) -> Tensor:
        """Sum over ordered pairs of modalities of the mean over the samples, of all processes, that have both."""
        assert self.reconstruction is not None
        parts = join(class_tokens, patches).unbind(1)  # (b 1+n d) each
        there = class_tokens.new_ones(class_tokens.shape[:2], dtype=torch.bool) if present is None else present
        means, counts = [], []
        for source, target in permutations(range(len(parts)), 2):
            both = there[:, source] & there[:, target]
            made = self.reconstruction.translate(parts[source], source, target)
            # The targets have a gradient, too: it draws the towers together.
            means.append(reconstruction_loss(made, parts[target], both))
            counts.append(both.sum())
        return whole_mean(torch.stack(means), torch.stack(counts)).sum()

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Nothing: captions are not read."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """New modules, the towers, and the strengths of SFM in them."""
        groups = parameter_groups(self, backbone=nn.ModuleList(trunk_of(tower) for tower in self.towers))
        return {"new": groups["rest"], "backbone": groups["backbone"], "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Alpha and beta of every block with SFM, counted through all towers."""
        return watch_strengths(self.towers)


def only(batch: Batch, modality: int) -> Batch:
    """The batch with one of its modalities."""
    one = slice(modality, modality + 1)
    masks, present = (None if part is None else part[:, one] for part in (batch.masks, batch.present))
    return batch._replace(images=batch.images[:, one], masks=masks, present=present)


def join(class_tokens: Tensor, patches: Tensor) -> Tensor:
    """Class token and patches of every modality, (batch modalities 1+patches dim)."""
    return torch.cat([class_tokens[:, :, None], patches], dim=2)
