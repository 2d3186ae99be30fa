#!/usr/bin/env bash
# Package: captum 0.9.0 (with torch 2.13.0)
# Guess: the map of a layer of a backbone that RGB, near infrared and thermal share shows what the score owes to each image,
#   or the library refuses a layer that is called three times.
# Seen: captum shows the last call. LayerIntegratedGradients and LayerFeatureAblation also put what they vary of the last
#   call in the place of all three: a model that reads RGB alone owes its whole score to the thermal image, and completeness
#   holds. If the images are one batch band by band, as torch.cat gives, LayerIntegratedGradients spreads the score of RGB
#   alone over all three, and LayerDeepLift of a model that reads all puts thermal on the near infrared image, with the
#   opposite sign. Nothing warns. In a batch that is ordered item by item all maps are right.
# For us: `TokenBackbone` is called once, item by item, and figures show the attention of each image. The guide warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile captum==0.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'END'
import torch
from captum.attr import LayerDeepLift, LayerFeatureAblation, LayerGradCam, LayerIntegratedGradients
from torch import nn

NAMES, SPOTS = ("RGB", "near infrared", "thermal"), ((1, 1), (1, 5), (5, 1))
IMAGES = torch.zeros(1, 3, 8, 8)
for band, (row, column) in enumerate(SPOTS):
    IMAGES[0, band, row, column] = 1


class Model(nn.Module):
    """A shared backbone, called in one of three ways, and a score that reads each image by its weight."""

    def __init__(self, weights: tuple[float, ...], way: str):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.ReLU())
        nn.init.constant_(self.backbone[0].weight, 1 / 9)
        self.weights, self.way = torch.tensor(weights), way

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.way == "item by item":
            features = self.backbone(images.reshape(-1, 1, 8, 8)).reshape(-1, 3, 8, 8)
        elif self.way == "band by band":
            features = torch.cat(self.backbone(torch.cat(images.split(1, 1))).chunk(3), 1)
        else:
            features = torch.cat([self.backbone(band) for band in images.split(1, 1)], 1)
        return (features.sum((2, 3)) * self.weights).sum(1, keepdim=True)


def shares(method: type, weights: tuple[float, ...], way: str) -> list[list[float]]:
    """Return, for every map, the sum around the spot of each image."""
    model = Model(weights, way)
    maps = method(model, model.backbone).attribute(IMAGES, target=0).detach().sum(1)
    sums = [[round(float(one[r - 1 : r + 2, c - 1 : c + 2].sum()), 2) for r, c in SPOTS] for one in maps]
    print(f"weights {weights}, {way}, {method.__name__}: {sums}", flush=True)
    return sums


print("Spots of", NAMES)
RGB, ALL, CALLS, BANDS, ITEMS = (1.0, 0, 0), (1.0, 1, 1), "three calls", "band by band", "item by item"
assert shares(LayerGradCam, RGB, CALLS) == [[0, 0, 0]] and shares(LayerGradCam, ALL, CALLS) == [[0, 0, 1]]
assert shares(LayerIntegratedGradients, RGB, CALLS) == shares(LayerFeatureAblation, RGB, CALLS) == [[0, 0, 1]]
model = Model(RGB, CALLS)
_, error = LayerIntegratedGradients(model, model.backbone).attribute(IMAGES, target=0, return_convergence_delta=True)
print("error of completeness:", round(abs(float(error)), 4))
assert abs(float(error)) < 1e-3
found = shares(LayerIntegratedGradients, RGB, BANDS)
assert all(0.15 < found[image][image] < 0.35 for image in range(3))
assert shares(LayerDeepLift, ALL, BANDS) == [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
assert shares(LayerIntegratedGradients, RGB, ITEMS) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
assert shares(LayerDeepLift, ALL, ITEMS) == shares(LayerGradCam, ALL, ITEMS) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
END
