"""Model of the toy method: one small tower per modality, skipped where no sample of the batch has the modality."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmi_layers.training.contract import Batch, Facts, Outputs
from stmi_layers.training.distributed import whole_batch
from toy_method.settings import Settings


class Tower(nn.Module):
    """A convolution, a batch norm over the images that are there, and the mean over places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 4, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """Return a row per image."""
        return F.relu(self.norm(self.convolution(images - 0.5))).mean(dim=(-2, -1))


class Toy(nn.Module):
    """Concatenated towers ("whole"), and the letters of the captions ("text")."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({name: Tower(settings.width) for name in facts.modalities})
        self.mix = nn.Linear(len(facts.modalities) * settings.width, settings.width)
        self.letters = nn.Embedding(128, settings.width) if settings.reads_captions else None
        self.scale = nn.Parameter(torch.ones(()))
        self.agreement = settings.agreement
        self.widths = {"whole": settings.width} | ({"text": settings.width} if settings.reads_captions else {})
        self.headline = "whole"

    def forward(self, batch: Batch) -> Outputs:
        """Return the features, and in training the disagreement of the modalities."""
        count, modalities = batch.images.shape[:2]
        present = torch.ones(count, modalities, dtype=torch.bool) if batch.present is None else batch.present
        tokens = []
        for index, tower in enumerate(self.towers.values()):
            images = batch.images[:, index][present[:, index]]
            rows = tower(images)
            tokens.append(
                torch.zeros(count, rows.shape[1], dtype=rows.dtype).masked_scatter(present[:, index, None], rows)
            )
        features, rows = {"whole": self.scale * self.mix(torch.cat(tokens, dim=1))}, {}
        if self.letters is not None:
            assert batch.texts is not None
            features["text"], rows["text"] = self.letters(batch.texts).mean(dim=1), batch.has_text
        terms = {"agreement": self.disagreement(tokens, present)} if self.agreement and self.training else {}
        return Outputs(features, terms, rows)

    def disagreement(self, tokens: list[Tensor], present: Tensor) -> Tensor:
        """Compare the similarities of all samples of the batch between modalities, where both are there."""
        there = whole_batch(present)
        similarities = [rows @ rows.T for rows in map(whole_batch, tokens)]
        pairs = [(first, second) for second in range(len(tokens)) for first in range(second)]
        terms = []
        for first, second in pairs:
            both = there[:, first] & there[:, second]
            gap = (similarities[first] - similarities[second]).square()
            terms.append(torch.where(both[:, None] & both, gap, 0.0).mean())
        return torch.stack(terms).sum() if terms else self.scale * 0

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Return the first eight letters of each caption."""
        if self.letters is None:
            return None
        texts = [" ".join(parts)[:8].ljust(8) for parts in captions]
        return torch.tensor([[ord(letter) % 128 for letter in text] for text in texts])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the scale apart from all others."""
        return {"new": [p for p in self.parameters() if p is not self.scale], "strengths": [self.scale]}

    def watch(self) -> dict[str, float]:
        """Return the scale."""
        return {"scale": self.scale.item()}


def build(settings: Settings, facts: Facts) -> Toy:
    """Build the model for a training set."""
    return Toy(settings, facts)
