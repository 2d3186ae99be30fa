"""SAM 3 from a local folder, prompted by the name of a thing: it tells crops with several things or none.

The published weights have a separate licence, Meta's SAM License, not that of this repository.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from examples.optional import import_library
from examples.prepare.masks.regions import Probability
from stmi_layers._checks import check_choice, check_probability

Several = Literal["largest", "middle"]
Nothing = Literal["empty", "whole", "error"]
SAME = 0.5  # intersection over union from which two masks count as one thing


class Sam3:
    """Foreground probabilities of a named thing, from SAM 3. Needs the `hf` extra.

    Args:
        weights: folder with the model and its processor, as `save_pretrained` writes them. Nothing is downloaded.
        prompt: name of the thing: person, yellow bus ...; or several names with commas, each of which costs a pass.
        several: choice among several found things: the largest mask, or the box nearest the middle.
        nothing: policy if nothing is found: an empty mask, a mask of the whole image, or an error.
        least: lowest score, 0 to 1, at which a thing counts as found.
        device: device of the computation.

    Raises:
        FileNotFoundError: when the folder, or a file in it, is missing.
        ValueError: when the folder holds another model, weights are missing, or an option is out of range.
    """

    def __init__(
        self,
        weights: Path,
        prompt: str,
        *,
        several: Several = "middle",
        nothing: Nothing = "empty",
        least: float = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        check_choice("several", several, get_args(Several))
        check_choice("nothing", nothing, get_args(Nothing))
        check_probability("least", least)
        self.words = [word.strip() for word in prompt.split(",")]
        if not all(self.words):
            raise ValueError(f"prompt must name what to look for; received {prompt!r}")
        self.prompt, self.several, self.nothing, self.least = prompt, several, nothing, least
        self.device = torch.device(device)
        self.model, self.processor = load(weights)
        self.model.to(self.device).eval()
        self.name = (
            f"SAM 3, weights {weights.resolve().name}, prompt {prompt!r} from score {least}, of several the {several}, "
            f"of none {nothing}"
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[Probability]:
        """Return one map per image, at the size of the image."""
        return [probability for probability, _ in self.look(images)]

    @torch.no_grad()
    def look(self, images: Sequence[Image.Image]) -> Iterator[tuple[Probability, int]]:
        """Yield one map per image, at the size of the image, and the number of things found in the image."""
        pictures = [image.convert("RGB") for image in images]
        answers = zip(*(self._ask(pictures, word) for word in self.words), strict=True)
        scores, masks, boxes = (torch.cat(parts, dim=1) for parts in answers)
        for image, score, mask, box in zip(pictures, scores, masks, boxes, strict=True):
            found = distinct(score, mask, self.least)
            yield self._choose(image, found, mask, box), len(found)

    def _ask(self, pictures: list[Image.Image], word: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, masks and boxes of all candidates for a name."""
        inputs = self.processor(images=pictures, text=[word] * len(pictures), return_tensors="pt")
        answer = self.model(**inputs.to(self.device))
        scores = answer.pred_logits.float().sigmoid()
        if answer.presence_logits is not None:
            scores = scores * answer.presence_logits.float().sigmoid()
        return scores, answer.pred_masks.float().sigmoid(), answer.pred_boxes.float()

    def _choose(self, image: Image.Image, found: Tensor, masks: Tensor, boxes: Tensor) -> Probability:
        """Return the map of one of the found things."""
        if len(found) == 0:
            if self.nothing == "error":
                raise ValueError(f"an image of {image.size} pixels shows no {self.prompt!r}; pass nothing='empty'")
            level = 1.0 if self.nothing == "whole" else 0.0
            return torch.full((image.height, image.width), level).numpy()
        masks, boxes = masks[found], boxes[found]
        if self.several == "largest":
            best = (masks > 0.5).sum(dim=(1, 2)).argmax()
        else:  # corners as shares of width and height
            best = ((boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5).square().sum(dim=1).argmin()
        size = (image.height, image.width)
        whole = F.interpolate(masks[best][None, None], size, mode="bilinear", align_corners=False)
        return whole[0, 0].cpu().numpy()


def distinct(scores: Tensor, masks: Tensor, least: float) -> Tensor:
    """Return the indices of things with a score of at least `least`, best first, each thing once across names.

    Args:
        scores: in [0, 1], (things).
        masks: probabilities (things height width).
        least: lowest score.
    """
    shapes = masks.flatten(1) > 0.5
    kept: list[int] = []
    for thing in scores.argsort(descending=True, stable=True).tolist():
        union = [(shapes[thing] | shapes[other]).sum() for other in kept]
        shared = [(shapes[thing] & shapes[other]).sum() for other in kept]
        if scores[thing] >= least and not any(a >= SAME * b > 0 for a, b in zip(shared, union, strict=True)):
            kept.append(thing)
    return torch.tensor(kept, dtype=torch.int64)


def load(weights: Path) -> tuple[Any, Any]:
    """Load model and processor from a folder, or refuse an incomplete folder.

    Raises:
        FileNotFoundError: when the folder, or a file in it, is missing.
        ImportError: when transformers or torchvision is not installed.
        ValueError: when the folder holds another model, or weights are missing.
    """
    if not (weights / "config.json").is_file():
        raise FileNotFoundError(f"weights must be a local folder with SAM 3 and its config.json; received {weights}")
    import_library("transformers", "hf")  # with torchvision, which the processor needs
    from transformers import AutoConfig, Sam3Model, Sam3Processor

    # Neither the network nor code in the folder is used, whatever its files name.
    closed: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(weights, **closed).model_type
        # The published folder holds the video model, of which the image model is a part.
        if kind not in ("sam3", "sam3_video"):
            raise ValueError(f"weights must be of SAM 3 (model type sam3 or sam3_video); {weights} holds {kind!r}")
        processor = Sam3Processor.from_pretrained(weights, **closed)
        loaded: Any = Sam3Model.from_pretrained(weights, **closed, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(f"{weights} lacks a file that SAM 3 needs: {error}") from error
    model, found = loaded
    missing = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if missing:
        raise ValueError(f"{weights} lacks {len(missing)} weights of SAM 3, or has other shapes: {missing[:5]}")
    return model, processor
