"""Small sets and settings that several tests share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from examples.methods import load_method
from examples.run import Run, default_run
from stmi_layers.training import Data, read_checkpoint

# Sizes of each method's own parts beside a tower of width 16.
SMALL: dict[str, dict[str, Any]] = {
    "stmi": {"num_heads": 2, "num_tokens": 2},
    "signal": {"num_heads": 2},
    "topreid": {"num_heads": 2},
    # Without what is drawn in training, so that two runs of the same batch can be compared.
    "demo": {"readout_heads": 2, "expert_heads": 2, "dropout": 0.0},
    "next": {"num_heads": 2, "num_experts": 2, "dropout": 0.0, "sentence_share": 1.0},
    "editor": {"num_heads": 2},
    "idea": {"num_heads": 2},
    "mambapro": {"num_heads": 2},
    "segtext": {"num_heads": 2},
}


def write_set(root: Path, modalities: tuple[str, ...] = ("RGB", "NI")) -> Path:
    """Identities as colours on noise, five for training and five for testing, two cameras, two images each."""
    random = np.random.default_rng(0)
    captions: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for identity in range(10):
        split = "train" if identity < 5 else "test"
        colour = random.integers(40, 216, 3)
        for camera, number in ((1, 0), (1, 1), (2, 0), (2, 1)):
            name = f"{identity:06d}_cam{camera}_0_{number:02d}"
            for modality in modalities:
                pixels = np.clip(colour + random.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                save(root / split / modality / f"{name}.png", pixels)
            mask = np.zeros((16, 16), np.uint8)
            mask[4:12, 4:12] = 255
            save(root / split / "mask" / f"{name}.png", mask)
            captions[split].append({"item": f"{name}.png", "description": f"colour {identity}"})
    (root / "text").mkdir()
    for split, entries in captions.items():
        (root / "text" / f"{split}.json").write_text(json.dumps(entries))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def tiny(folder: Path, method: str = "stmi", **changes: Any) -> Run:
    """A run that takes a second, with other settings by their names in recipes."""
    small = {
        "modalities": ("RGB", "NI"),
        "captions": "required",
        "image_size": (16, 16),
        "epochs": 3,
        "warmup_epochs": 1.0,
        "identities_per_batch": 5,
        "images_per_identity": 2,
        "evaluate_every": 2,
        "threads": 1,
        "device": "cpu",
        "quiet": True,
    }
    known = load_method(method)
    if known.reads_tower:
        small |= {"patch_size": 4, "dim": 16, "depth": 1, "tower_heads": 2, **SMALL.get(method, {})}
    return default_run(known, Data(folder)).changed({**small, **changes})


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the model in the checkpoint of a run."""
    return read_checkpoint(out / "checkpoint.pt").model


def assert_same_weights(one: Path, other: Path) -> None:
    """Compare the models of two runs bit for bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
