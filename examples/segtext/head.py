"""A head that finds an object by image or caption and keeps its features to what lies under a mask.

The parts are our readings of FusionSegReID / PS-ReID, whose formulas are not public; its language model is left out.
"""

import torch
from torch import Tensor, nn

import stmi_layers as sl


class SegTextHead(nn.Module):
    """Tokens of a frozen tower and captions in, features and losses out.

    Examples:
        >>> head = SegTextHead(dim=16, text_dim=8, grid=(4, 4), num_heads=2)
        >>> patches, mask = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16)
        >>> image, text = head(torch.randn(2, 3, 16), patches, mask, torch.randn(2, 8))
        >>> image.shape, text.shape
        (torch.Size([2, 16]), torch.Size([2, 16]))
    """

    def __init__(self, dim: int, text_dim: int, grid: tuple[int, int], *, num_heads: int = 8) -> None:
        super().__init__()
        self.of_images, self.of_texts = sl.AsymmetricAdapter(dim, dim), sl.AsymmetricAdapter(text_dim, dim)
        self.pooling = sl.SegmentationGuidedPooling(dim, grid, num_heads=num_heads)
        self.alignment, self.identity = sl.ImageTextAlignment(), sl.TokenIdentityLoss()

    def forward(
        self,
        class_tokens: Tensor,  # (batch modalities dim)
        patches: Tensor,  # (batch modalities patches dim)
        mask: Tensor | None,  # (batch modalities patches), share of each patch that is foreground
        text: Tensor,  # (batch text_dim)
        present: Tensor | None = None,  # (batch modalities)
        has_text: Tensor | None = None,  # (batch)
    ) -> tuple[Tensor, Tensor]:
        """One feature of all images of a sample, and one of its caption: (batch dim) each; 0 for what is missing."""
        present = class_tokens.new_ones(class_tokens.shape[:2], dtype=torch.bool) if present is None else present
        has_text = present.new_ones(len(text)) if has_text is None else has_text
        there, said = present[..., None], has_text[:, None]
        read = self.pooling(self.of_images(torch.where(there, class_tokens, 0.0)), patches, mask, present)
        image = torch.where(there, read, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        caption = self.of_texts(torch.where(said, text, 0.0)[:, None])[:, 0]
        return image, torch.where(said, caption, 0.0)

    def losses(
        self,
        features: tuple[Tensor, Tensor],
        labels: Tensor,  # (batch)
        patches: Tensor,  # (batch patches dim), of the modality whose mask is best
        mask: Tensor,  # (batch patches)
        has_text: Tensor | None = None,  # (batch)
    ) -> dict[str, Tensor]:
        """What the objective adds: images and captions of an identity together, features tied to their masks."""
        image, text = features
        has_token = None if has_text is None else has_text[:, None]
        tied = self.identity(text[:, None], image[:, None], labels, self.of_images(patches), mask, has_token)
        return {"alignment": self.alignment(image, text, labels, has_text), "token_identity": tied}
