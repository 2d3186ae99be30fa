#!/usr/bin/env bash
# Package: kornia 0.9.0 (with torch 2.13.0)
# Guess: AugmentationSequential with two images, RGB of 256 x 128 pixels and thermal of 128 x 64, keeps them registered, or
#   refuses them, as it refuses a mask of another size ("Image and mask must have matching spatial dimensions").
# Seen: flips and rotations keep them registered. Shifts, crops, perspectives and erased areas are drawn in pixels of the
#   first image, and these pixels are applied to the second: the thermal image moves twice as far, and shows another part
#   of the person than the RGB image. No warning says so. With images of one size all is right.
# For us: modalities are brought to one size before anything is augmented, and `examples.prepare.inspect` reports items
#   whose modalities differ in shape. The guide warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet kornia==0.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python -W ignore - <<'END'
import kornia.augmentation as augment
import torch
from torch.nn.functional import interpolate

torch.set_num_threads(1)


def places(height: int, width: int) -> torch.Tensor:
    """Return an image whose channels are its horizontal and vertical place from 0 to 1, and ones."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])[None]


def apart(transform: torch.nn.Module, rgb: torch.Tensor, thermal: torch.Tensor) -> float:
    """Return how far apart the same pixel of the two images lies, as a share of the size, on average of ten draws."""
    both = augment.AugmentationSequential(transform, data_keys=["input", "input"])
    distances = []
    for seed in range(10):
        torch.manual_seed(seed)
        first, second = both(rgb.clone(), thermal.clone())
        # Where both images show something; at the edges a pixel mixes image and background.
        first = interpolate(first, second.shape[-2:], mode="area")
        seen = ((first[:, 2] > 0.99) & (second[:, 2] > 0.99))[:, None].expand(-1, 2, -1, -1)
        distances.append((first - second)[:, :2][seen].abs().mean().nan_to_num(1.0))
    return torch.stack(distances).mean().item()


rgb, small = places(256, 128), places(128, 64)
right = {"RandomHorizontalFlip": augment.RandomHorizontalFlip(p=1.0), "RandomRotation": augment.RandomRotation(15.0, p=1.0)}
wrong = {
    "RandomAffine, shift": augment.RandomAffine(0.0, translate=(0.2, 0.2), p=1.0),
    "RandomResizedCrop": augment.RandomResizedCrop((128, 64), scale=(0.3, 0.6), p=1.0),
    "RandomPerspective": augment.RandomPerspective(0.5, p=1.0),
}
for name, transform in (right | wrong).items():
    one_size, two_sizes = apart(transform, rgb, rgb), apart(transform, rgb, small)
    print(f"{name:20}: pixels of one size {one_size:.3f} apart, of two sizes {two_sizes:.3f}")
    assert one_size < 0.001 and (two_sizes > 0.03 if name in wrong else two_sizes < 0.02)

torch.manual_seed(0)
erase = augment.AugmentationSequential(augment.RandomErasing(scale=(0.1, 0.1), p=1.0), data_keys=["input", "input"])
erased = [(image[0, 2] == 0).float().mean().item() for image in erase(rgb.clone(), small.clone())]
print(f"RandomErasing: {erased[0]:.2f} of the RGB image and {erased[1]:.2f} of the thermal image are erased")
assert abs(erased[0] - 0.1) < 0.02 and erased[1] < 0.06

try:
    augment.AugmentationSequential(wrong["RandomAffine, shift"], data_keys=["input", "mask"])(rgb, small)
    raise SystemExit("a mask of another size is accepted")
except ValueError as error:
    print("as a mask:", error)
END
