"""Model as a function of tensors only, and random inputs for it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.run import Run
from stmi_layers.training import Batch, Facts
from stmi_layers.training.evaluation import concatenate

Example = dict[str, Tensor]


class Serving(nn.Module):
    """A model that takes tensors and returns descriptors of length 1, the headline first.

    Args:
        model: a `ReIDModel`.
        run: settings of its run, which tell whether it was trained with masks and embeds cameras.
        texts: take encoded captions as inputs.

    Attributes:
        inputs: names of the inputs, in order.
        outputs: names of the descriptors, in order.
    """

    def __init__(self, model: Any, run: Run, *, texts: bool = False) -> None:
        super().__init__()
        self.model = model
        silent = model.encode([()])
        if texts and silent is None:
            raise ValueError("texts must be left out for a model that reads no captions (--texts)")
        self.silent = None if silent is None or texts else nn.Buffer(silent)
        names = ["images"] + ([] if run.data.masks in ("none", "blank") else ["masks"]) + ["present"]
        names += ["cameras"] if run.tower is not None and run.tower.camera_embedding else []
        self.inputs = names + (["texts", "has_text"] if texts else [])
        self.outputs = [model.headline, *(name for name in model.widths if name != model.headline)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return descriptors in the order of `outputs`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        images = given["images"]
        count = images.shape[0]
        nowhere = torch.full((count,), -1, dtype=torch.int64, device=images.device)
        texts, has_text = given.get("texts"), given.get("has_text")
        if self.silent is not None:
            texts = self.silent.expand(count, *self.silent.shape[1:])
        if has_text is None:
            has_text = torch.zeros(count, dtype=torch.bool, device=images.device)
        cameras = given.get("cameras", nowhere)
        batch = Batch(
            images=images,
            # Files of torch.export silently take any dtype, so that masks may arrive as 0 and 255.
            masks=given["masks"] != 0 if "masks" in given else None,
            present=given["present"] != 0,
            labels=nowhere,
            cameras=cameras,
            views=nowhere,
            scenes=nowhere,
            texts=texts,
            has_text=has_text,
            indices=nowhere,
        )
        features = {name: F.normalize(value.float(), dim=-1) for name, value in self.model(batch).features.items()}
        joined = list(features) if self.model.headline == "all" else self.model.headline.split("+")
        return tuple(features[name] if name in features else concatenate(features, joined) for name in self.outputs)


def examples_of(serving: Serving, facts: Facts) -> list[Example]:
    """Return batches of 3, 1, 2 and 5 random samples; in all but the second, some modalities are absent."""
    return [example_of(serving, facts, count, seed) for seed, count in enumerate((3, 1, 2, 5))]


def example_of(serving: Serving, facts: Facts, count: int, seed: int) -> Example:
    """Draw random samples: the first has all modalities, others lack some; some masks are empty, and some full."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, len(facts.modalities))
    height, width = facts.image_size
    present = torch.rand(shape, generator=generator) < 0.5
    present[0] = True
    present[:, -1] |= ~present.any(dim=1)
    masks = torch.zeros(*shape, height, width, dtype=torch.bool)
    masks[..., height // 8 : -(height // 8), width // 4 : -(width // 4)] = True
    masks[1::3], masks[2::3] = False, True
    example = {
        "images": torch.rand(*shape, 3, height, width, generator=generator),
        "masks": masks,
        "present": present,
        "cameras": torch.tensor([-1, *facts.cameras])[torch.arange(count) % (1 + len(facts.cameras))],
        "has_text": torch.arange(count) % 2 == 0,
    }
    if "texts" in serving.inputs:
        words = " ".join(facts.words[:3])
        example["texts"] = serving.model.encode([(words,) if index % 2 == 0 else () for index in range(count)])
    return {name: example[name] for name in serving.inputs}
