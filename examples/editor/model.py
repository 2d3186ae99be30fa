"""EDITOR: a tower whose attention selects tokens, then HMA over the selected tokens, read from top to bottom.

Attention rollout tells what every head of the tower looked at. A patch that any head selects in any modality is kept
in all modalities. HMA joins the kept patches, first within each modality and then across. In training BCC makes
unselected patches alike in all modalities, and OCFR draws class tokens to moving centres of their identities.
Paper: CVPR 2024, <https://arxiv.org/abs/2403.10254>.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from examples.editor.settings import Settings
from examples.towers.class_tokens import Supervision, class_token_features, class_token_widths
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import (
    CentreAlignment,
    GlobalPatchReduction,
    MaskedAggregation,
    attention_rollout,
    background_consistency,
    select_tokens,
)
from stmi_layers.backbones import attention_layers, heads_of, parameter_groups, recording
from stmi_layers.training import Batch, Facts, Outputs, whole_batch, whole_mean


def build(settings: Settings, facts: Facts, tower: Tower) -> "EDITOR":
    """Build the model of the settings, with random weights."""
    return EDITOR(
        build_tower(tower, facts),
        facts.modalities,
        facts.num_identities,
        aggregation=settings.aggregation,
        keep_per_head=settings.keep_per_head,
        num_heads=settings.num_heads,
        mlp_ratio=settings.mlp_ratio,
        centre_rate=settings.centre_rate,
        centre_start=settings.centre_start,
        supervision=settings.supervision,
    )


class EDITOR(nn.Module):
    """EDITOR around a transformer: a `ReIDModel`.

    Differences from the research code: its additional selection of patches with most bright pixels, called a selection
    by frequency, is left out; class tokens that are supervised one by one have separate heads instead of a shared one.
    A missing modality selects nothing and takes no part, where the research code passes a black image through.

    Hooks read the attention of the tower: the model can be exported, but `torch.compile` breaks its graph at the hooks.

    Args:
        backbone: an image tower, a `Backbone` with self-attentions; masks steer it when it has SFM.
        modalities: names of the modalities, in the order of the images.
        num_identities: number of training identities, each of which has a centre per modality.
        aggregation: whether HMA, BCC and OCFR are used; False leaves only the class tokens.
        keep_per_head: patches that every head selects in every modality.
        num_heads: heads of HMA; divides the width of the tower.
        mlp_ratio: hidden width of the feed-forward networks of HMA, as a multiple of the token width.
        centre_rate: share of the new mean in a moved centre.
        centre_start: start of the centres, "mean" or "zero".
        supervision: one feature of all class tokens, "joined", or one per modality, "single".

    Raises:
        ValueError: when the tower has no self-attention, or fewer patches than a head should select.
    """

    def __init__(
        self,
        backbone: Any,
        modalities: Sequence[str],
        num_identities: int,
        *,
        aggregation: bool = True,
        keep_per_head: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        centre_rate: float = 0.8,
        centre_start: Literal["mean", "zero"] = "mean",
        supervision: Supervision = "joined",
    ) -> None:
        super().__init__()
        dim, count, patches = backbone.dim, len(modalities), backbone.grid[0] * backbone.grid[1]
        self.backbone, self.keep_per_head = backbone, keep_per_head
        self.class_token_names = class_token_widths(modalities, dim, supervision)
        self.widths = self.class_token_names | ({"F": count * dim} if aggregation else {})
        alone = "all" if len(self.widths) > 1 else next(iter(self.widths))
        self.headline = "F" if aggregation else alone
        self.aggregation = self.reduction = self.centres = None
        if aggregation:
            if not (layers := attention_layers(backbone)):
                rule = "backbone must have self-attentions of a kind that attention_layers knows, to select patches by"
                raise ValueError(f"{rule}; received {type(backbone).__name__}")
            if not 1 <= keep_per_head <= patches:
                rule = f"keep_per_head must lie between 1 and the number of patches, {patches}"
                raise ValueError(f"{rule}; received {keep_per_head}")
            heads: Any = layers[0].num_heads
            most = 1 + min(keep_per_head * heads * count, patches)  # with the class token
            options: dict[str, Any] = {"num_heads": num_heads, "mlp_ratio": mlp_ratio, "max_kept": most}
            self.aggregation = MaskedAggregation(dim, count, **options)
            self.reduction = GlobalPatchReduction(dim, count, norm=False, activation="none")
            self.centres = CentreAlignment(dim, num_identities, count, rate=centre_rate, start=centre_start)
        self._seen: Tensor | None = None  # patches kept per sample in a batch, for `watch`
        self._look = True

    def forward(self, batch: Batch) -> Outputs:
        """Return the features of class tokens and of the tokens that HMA joins; the part of an absent modality is 0."""
        present = batch.present  # (b m) or None
        if self.aggregation is None or self.reduction is None:
            _, classes = tower_tokens(self.backbone, batch)
            return class_token_features(classes, present, self.class_token_names)
        patches, classes, scores = self.look(batch)  # (b m n d), (b m d), (b m h n)
        selected = select_tokens(scores, self.keep_per_head, present)  # (b n)
        self._remember(selected)
        keep = torch.cat([torch.ones_like(selected[:, :1]), selected], dim=1)  # (b 1+n), the class token always
        keep = keep[:, None].expand(-1, classes.shape[1], -1)  # (b m 1+n)
        tokens = torch.cat([classes[:, :, None], patches], dim=2)  # (b m 1+n d)
        within = self.aggregation.within(tokens, keep, present)  # (b m 1+n d)
        across = self.aggregation.across(within, keep, present)  # (b m 1+n d)
        fused = self.reduction(across[:, :, 0], across[:, :, 1:], keep[:, :, 1:], present)  # (b m d)
        outputs = class_token_features(classes, present, self.class_token_names)
        outputs.features["F"] = fused.flatten(1)  # (b m*d)
        if not self.training:
            return outputs
        there = torch.ones_like(keep[:, :, 0]) if present is None else present  # (b m)
        terms = {
            "BCC": self.background_term(patches, selected, there),
            "OCFR": self.centre_term(within[:, :, 0], batch.labels, there),
        }
        return outputs._replace(terms=terms)

    def look(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens of the tower, and how much every head saw of each patch: (batch modalities heads patches)."""
        layers, present = attention_layers(self.backbone), batch.present
        with recording(layers) as calls:
            patches, classes = tower_tokens(self.backbone, batch)
        with torch.no_grad():
            maps = [heads_of(layer, of_layer[0]).weights for layer, of_layer in zip(layers, calls, strict=True)]
            prefix = maps[0].shape[-1] - patches.shape[2]
            scores = attention_rollout(*maps, prefix_tokens=prefix)  # (rows h n), a row per image that the tower saw
        if present is None or not self.training:
            return patches, classes, scores.unflatten(0, (-1, classes.shape[1]))
        empty = scores.new_zeros(*present.shape, *scores.shape[1:])
        return patches, classes, empty.masked_scatter(present[..., None, None], scores)

    def background_term(self, patches: Tensor, selected: Tensor, there: Tensor) -> Tensor:
        """Compute BCC: the sum over pairs of modalities of the mean over samples of all processes that have both."""
        means, counts = [], []
        for first, second in combinations(range(patches.shape[1]), 2):
            pair = torch.stack([patches[:, first], patches[:, second]], dim=1)  # (b 2 n d)
            both = torch.stack([there[:, first], there[:, second]], dim=1)  # (b 2)
            means.append(background_consistency(pair, selected, both))
            counts.append(both.all(dim=1).sum())
        if not means:
            return 0 * patches.sum()  # a single modality has no pairs
        return whole_mean(torch.stack(means), torch.stack(counts)).sum()

    def centre_term(self, classes: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        """Compute OCFR: the samples of all processes move the centres, so that all processes have equal centres."""
        assert self.centres is not None
        return self.centres(whole_batch(classes), whole_batch(labels), whole_batch(there))

    def encode(self, captions: Sequence[tuple[str, ...]]) -> None:
        """Return None, because EDITOR reads no captions."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the tower, and the strengths of SFM: two numbers per block, which need larger steps."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        return {"new": groups["rest"], "backbone": groups["backbone"], "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Return alpha and beta of every block, and the mean number of kept patches in the first batch of the mode.

        The number is small when all heads look at the same patches.
        """
        kept = {} if self._seen is None else {"kept": self._seen.float().mean().item()}
        return watch_strengths(self.backbone) | kept

    def train(self, mode: bool = True) -> "EDITOR":
        """Set the mode; `watch` then reports on the next batch."""
        self._look = True
        return super().train(mode)

    def _remember(self, selected: Tensor) -> None:
        if self._look and not torch.compiler.is_compiling():
            self._seen, self._look = selected.sum(dim=1), False
