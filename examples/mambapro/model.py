"""MambaPro without its Mamba: a frozen tower with adapters and prompts, then a readout, read from top to bottom.

Every block of the tower gets a small network beside its feed-forward network (PFA), and prompts of all modalities among
its tokens (SRP); the pretrained weights stay. Instead of the Mamba aggregation, which is not part of this library, the
class tokens read the patches of all modalities. Then class token and mean patch of every modality become one vector, as
in the research code; these vectors joined are the descriptor F. F and the class tokens G have the identity and triplet
losses of `Objective` in `stmi_layers.training`.

Paper: "MambaPro: Multi-Modal Object Re-Identification with Mamba Aggregation and Synergistic Prompt", AAAI 2025,
<https://arxiv.org/abs/2412.10707>.
"""

from collections.abc import Sequence
from typing import Any

from einops import repeat
from torch import Tensor, nn

from examples.mambapro.settings import Settings
from examples.towers.class_tokens import Supervision, class_token_features, class_token_widths
from examples.towers.pretrained import PretrainedBackbone
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from examples.towers.vit import Block, VisionTransformer
from stmi_layers import GlobalCrossAttention, GlobalPatchReduction, ParallelAdapter
from stmi_layers.backbones import adapt, parameter_groups
from stmi_layers.training import Batch, Facts, Outputs


def build(settings: Settings, facts: Facts, tower: Tower) -> "MambaPro":
    """Build the model of the settings, with random weights.

    Raises:
        ValueError: when the tower cannot take the adapters or prompts of the settings.
    """
    backbone, count = build_tower(tower, facts), len(facts.modalities)
    prompts = settings.num_prompts
    if isinstance(backbone, PretrainedBackbone):
        prompts = 4 if prompts is None else prompts
        if settings.adapters or prompts:
            adapt(
                backbone.tokens,
                adapters=settings.adapters,
                hidden=settings.hidden,
                zero_init=settings.zero_init,
                num_modalities=count if prompts else None,
                num_prompts=prompts or 1,
                freeze=settings.freeze,
            )
    elif prompts:
        raise ValueError(
            f"num_prompts needs a pretrained tower, --backbone open_clip or timm; received {prompts} with --backbone "
            f"{tower.backbone}"
        )
    elif settings.adapters and not isinstance(backbone, VisionTransformer):
        raise ValueError(f"adapters need the blocks of a transformer; received --backbone {tower.backbone}")
    elif settings.adapters:
        adapt_small(backbone, hidden=settings.hidden, zero_init=settings.zero_init)
    readout = None
    if settings.aggregation == "attention":
        readout = GlobalCrossAttention(backbone.dim, num_heads=settings.num_heads)
    # Prompts know the modality of an image by its position, so that absent images are run as well, as zeros.
    together = isinstance(backbone, PretrainedBackbone) and bool(prompts)
    return MambaPro(backbone, facts.modalities, readout, supervision=settings.supervision, run_absent=together)


class MambaPro(nn.Module):
    """MambaPro without Mamba around a tower: a `ReIDModel` that reads no captions.

    Args:
        backbone: an image tower, a `Backbone`, adapted or not; masks steer it when it has SFM.
        modalities: names of the modalities.
        readout: layer by which class tokens read the patches of all modalities; None leaves class tokens as they are.
        supervision: G as one feature, or a feature per modality.
        run_absent: also run absent images through the tower in training.
    """

    def __init__(
        self,
        backbone: Any,
        modalities: tuple[str, ...],
        readout: GlobalCrossAttention | None,
        *,
        supervision: Supervision = "joined",
        run_absent: bool = False,
    ) -> None:
        super().__init__()
        dim, count = backbone.dim, len(modalities)
        self.backbone, self.readout, self.run_absent = backbone, readout, run_absent
        self.reduction = GlobalPatchReduction(dim, count, activation="none")
        self.class_token_names = class_token_widths(modalities, dim, supervision)
        self.widths = {**self.class_token_names, "F": count * dim}
        self.headline = "F"

    def forward(self, batch: Batch) -> Outputs:
        """Return G and F of a batch; the part of an absent modality is 0."""
        present = batch.present  # (b m) or None
        patches, class_tokens = tower_tokens(self.backbone, batch, run_absent=self.run_absent)  # (b m n d), (b m d)
        outputs = class_token_features(class_tokens, present, self.class_token_names)
        if self.readout is not None:
            keep = None if present is None else repeat(present, "b m -> b (m n)", n=patches.shape[2])
            class_tokens = self.readout(class_tokens, patches.flatten(1, 2), keep)  # (b m d)
        fused = self.reduction(class_tokens, patches, present=present)  # (b m d)
        return outputs._replace(features={**outputs.features, "F": fused.flatten(1)})

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Return None, because captions are not read."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules (with adapters and prompts), the tower, and the strengths of SFM in the tower."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        adapters = [module for module in self.modules() if isinstance(module, ParallelAdapter)]
        added = {id(parameter): parameter for module in adapters for parameter in module.parameters()}
        tower = [parameter for parameter in groups["backbone"] if id(parameter) not in added]
        of_small = [parameter for parameter in groups["backbone"] if id(parameter) in added]
        return {"new": groups["rest"] + of_small, "backbone": tower, "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Return alpha and beta of every block with SFM."""
        return watch_strengths(self.backbone)


class AdaptedBlock(Block):
    """A block of the small vision transformer with a network beside its feed-forward network."""

    adapter: ParallelAdapter

    def forward(self, tokens: Tensor, foreground: Tensor | None) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens), foreground)  # (b 1+n d)
        return tokens + self.mlp(self.mlp_norm(tokens)) + self.adapter(tokens)


def adapt_small(backbone: VisionTransformer, *, hidden: int | None, zero_init: bool) -> None:
    """Put adapters into the blocks of the small vision transformer, which `adapt` of the library does not support.

    This transformer takes no prompts, because its training leaves out absent images, and then the position of an image
    does not tell its modality.
    """
    for block in backbone.blocks:
        block.adapter = ParallelAdapter(backbone.dim, hidden=hidden, zero_init=zero_init)
        block.__class__ = AdaptedBlock
