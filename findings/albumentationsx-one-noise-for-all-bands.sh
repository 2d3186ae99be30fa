#!/usr/bin/env bash
# Package: albumentationsx 2.5.1 (with torch 2.13.0 and opencv-python-headless 5.0.0.93)
# Guess: noise is drawn anew for each band, as sensors have it, or is the same in all bands, but by one rule.
# Seen: beside RGB a thermal image is an additional target. MultiplicativeNoise(elementwise=True), SaltAndPepper and
#   FilmGrain change the very pixels of the RGB image, by the same amounts; ShotNoise draws anew. GaussNoise and PixelDropout
#   depend on the channels: the same noise with three channels in each, noise of its own for a thermal image of one channel.
#   Stacked as `images`, bands share the noise of GaussNoise. A model can align bands by such noise, which no camera has.
# For us: random erasing, the one augmentation of values here, draws place and shape anew for each modality.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 albumentationsx==2.5.1 \
  opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
NO_ALBUMENTATIONS_UPDATE=1 venv/bin/python - <<'END'
import albumentations
import numpy as np

random = np.random.default_rng(0)
rgb = random.integers(100, 150, (128, 64, 3)).astype(np.uint8)
thermal = random.integers(100, 150, (128, 64, 1)).astype(np.uint8)
three = thermal.repeat(3, axis=2)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of what was added to the first channel of RGB and of thermal."""
    changes = [first.astype(float) - rgb, second.astype(float) - three[..., : second.shape[2]]]
    return float(np.corrcoef(changes[0][..., 0].ravel(), changes[1][..., 0].ravel())[0, 1])


def together(name: str, other: np.ndarray) -> float:
    options = {"elementwise": True} if name == "MultiplicativeNoise" else {}
    transform = getattr(albumentations, name)(p=1, **options)
    pair = albumentations.Compose([transform], additional_targets={"thermal": "image"}, seed=0, telemetry=False)
    result = pair(image=rgb, thermal=other)
    return agreement(result["image"], result["thermal"])


# Correlations with a thermal image of three channels and of one.
expected = {"MultiplicativeNoise": (1, 1), "SaltAndPepper": (1, 1), "FilmGrain": (1, 1)}
expected |= {"GaussNoise": (1, 0), "PixelDropout": (1, 0), "ShotNoise": (0, 0)}
for name, right in expected.items():
    seen = together(name, three), together(name, thermal)
    print(f"{name}: correlation {seen[0]:.2f} with three channels, {seen[1]:.2f} with one")
    assert np.allclose(seen, right, atol=0.1)
noise = albumentations.Compose([albumentations.GaussNoise(p=1)], seed=0, telemetry=False)
stacked = agreement(*noise(images=np.stack([rgb, three]))["images"])
print(f"GaussNoise on `images`: correlation {stacked:.2f}")
assert stacked > 0.9
END
