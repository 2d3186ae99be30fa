"""SAM 2 from a local folder, prompted once per image for the object in the middle.

Images of a re-identification set are crops: the object is known to be there, but not its outline. So every image gets
the same prompt, relative to its size: nearly the whole image as a box, its centre as a point, or both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from examples.optional import import_library
from examples.prepare.masks.regions import Probability

Prompt = Literal["box", "point", "composite"]


def build_prompt(size: tuple[int, int], prompt: Prompt, margin: float) -> dict[str, Any]:
    """Build the prompt for an image, in pixels of the image.

    Args:
        size: width and height in pixels.
        prompt: "box", the image without its margin; "point", its centre; "composite", both.
        margin: share of width and height left out on each side of the box, in [0, 0.5).

    Returns:
        Arguments of the SAM 2 processor for one image with one object.

    >>> build_prompt((128, 256), "composite", 0.25)
    {'input_boxes': [[32.0, 64.0, 96.0, 192.0]], 'input_points': [[[64.0, 128.0]]], 'input_labels': [[1]]}
    """
    width, height = size
    box = [margin * width, margin * height, (1 - margin) * width, (1 - margin) * height]
    arguments: dict[str, Any] = {}
    if prompt in ("box", "composite"):
        arguments["input_boxes"] = [box]
    if prompt in ("point", "composite"):
        arguments |= {"input_points": [[[width / 2, height / 2]]], "input_labels": [[1]]}
    return arguments


class Sam2:
    """Foreground probabilities from SAM 2. Needs the `hf` extra.

    A point alone is ambiguous (the shirt or the person?), so SAM 2 returns several masks, and the mask with the highest
    predicted overlap is taken. With a box SAM 2 returns one mask.

    Args:
        weights: folder with the model and its processor, as `save_pretrained` writes them or the model hub offers
            them. Nothing is downloaded.
        prompt: see `build_prompt`.
        margin: see `build_prompt`.
        device: device of the computation.

    Raises:
        FileNotFoundError: when the folder, or a file in it, is missing.
        ValueError: when the folder holds another model, weights are missing, or `margin` is out of range.
    """

    def __init__(
        self,
        weights: Path,
        *,
        prompt: Prompt = "composite",
        margin: float = 0.05,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must lie in [0, 0.5), so that a box is left; received {margin}")
        self.prompt: Prompt = prompt
        self.margin, self.device = margin, torch.device(device)
        self.model, self.processor = load(weights)
        self.model.to(self.device).eval()
        self.name = f"SAM 2, weights {weights.resolve().name}, {prompt} prompt, margin {margin}"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[Probability]:
        """Return one map per image, at the size of the image."""
        pictures = [image.convert("RGB") for image in images]
        each = [build_prompt(picture.size, self.prompt, self.margin) for picture in pictures]
        prompts = {name: [one[name] for one in each] for name in each[0]}
        inputs = self.processor(images=pictures, return_tensors="pt", **prompts).to(self.device)
        sizes = inputs.pop("original_sizes").tolist()
        answer = self.model(**inputs, multimask_output=self.prompt == "point")
        best = answer.iou_scores[:, 0].argmax(dim=1)
        logits = answer.pred_masks[torch.arange(len(best), device=best.device), 0, best][:, None, None].float()
        maps = self.processor.post_process_masks(list(logits), sizes, binarize=False)
        return [one[0, 0].sigmoid().cpu().numpy() for one in maps]


def load(weights: Path) -> tuple[Any, Any]:
    """Load model and processor from a folder, or refuse an incomplete folder.

    Raises:
        FileNotFoundError: when the folder, or a file in it, is missing.
        ImportError: when transformers or torchvision is not installed.
        ValueError: when the folder holds another model, or weights are missing.
    """
    if not (weights / "config.json").is_file():
        raise FileNotFoundError(f"weights must be a local folder with SAM 2 and its config.json; received {weights}")
    import_library("transformers", "hf")  # with torchvision, which the processor needs
    from transformers import AutoConfig, Sam2Model, Sam2Processor

    # Neither the network nor code in the folder is used, whatever its files name.
    closed: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(weights, **closed).model_type
        # The published folders hold the video model, of which the image model is a part.
        if kind not in ("sam2", "sam2_video"):
            raise ValueError(f"weights must be of SAM 2 (model type sam2 or sam2_video); {weights} holds {kind!r}")
        processor = Sam2Processor.from_pretrained(weights, **closed)
        loaded: Any = Sam2Model.from_pretrained(weights, **closed, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(f"{weights} lacks a file that SAM 2 needs: {error}") from error
    model, found = loaded
    missing = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if missing:
        raise ValueError(
            f"{weights} lacks {len(missing)} weights of SAM 2, or has them in another shape: {missing[:5]}"
        )
    return model, processor
