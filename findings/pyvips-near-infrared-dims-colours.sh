#!/usr/bin/env bash
# Package: pyvips 3.2.0 with pyvips-binary 8.18.7 (images written by tifffile 2026.3.3)
# Guess: a TIFF with red, green, blue and near infrared of "unspecified" meaning gives its colours when it is saved as JPEG,
#   made smaller or stored as a pyramid; the fourth band is kept, dropped or refused.
# Seen: pyvips takes every band behind the colours for transparency. JPEG multiplies the colours by near infrared: a van of
#   230, which reflects little of it, becomes 81, darker than the meadow around it, and a lake, which reflects none,
#   becomes black. `thumbnail` and the smaller pages of a pyramid weigh pixels by near infrared: the lake is black, and of
#   pixels that are half van and half meadow the meadow has ten shares in eleven. The full page, `resize` and `shrink` are
#   right, so the error comes with the format or the page. Of five bands the last, as thermal, dims the JPEG. No error or
#   warning says so. `image[:3]`, or the interpretation "multiband", keeps the colours.
# For us: bands beyond the colours are not read; near infrared is a file, or a panel, of its own. The guide on data warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pyvips==3.2.0 pyvips-binary==8.18.7 tifffile==2026.3.3 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
import pyvips
import tifffile

bands = {"photometric": "rgb", "extrasamples": ["unspecified"]}
# Red, green, blue and near infrared of a meadow with a white van, a lake, and vans of one pixel's width.
scene = np.empty((256, 256, 4), np.uint8)
scene[:] = 90, 120, 70, 200
scene[32:96, 32:96] = 230, 230, 230, 90
scene[128:224, 32:224] = 60, 80, 100, 0
scene[16:240, 240:248:2] = 230, 230, 230, 20
tifffile.imwrite("scene.tif", scene, **bands)
image = pyvips.Image.new_from_file("scene.tif")
assert (image.numpy() == scene).all()


def places(name: str, pixels: np.ndarray) -> np.ndarray:
    """Return and print the colours of meadow, van, lake and narrow vans."""
    step = 256 // len(pixels)
    colours = np.array([pixels[y // step, x // step, :3] for y, x in ((4, 4), (64, 64), (176, 128), (128, 244))]).astype(int)
    print(f"{name}: meadow {colours[0]}, van {colours[1]}, lake {colours[2]}, narrow vans {colours[3]}")
    return colours


def as_jpeg(image: pyvips.Image) -> np.ndarray:
    return pyvips.Image.new_from_buffer(image.write_to_buffer(".jpg", Q=95), "").numpy()


true = places("TIFF", scene)
jpeg = places("JPEG", as_jpeg(image))
assert jpeg[1].mean() < jpeg[0].max() and jpeg[2].max() < 3
assert np.abs(jpeg - true * scene[[4, 64, 176, 128], [4, 64, 128, 244], 3:] / 255).max() < 4
for name, colours in (("first three bands", image[:3]), ("multiband", image.copy(interpretation="multiband"))):
    assert np.abs(places(f"JPEG, {name}", as_jpeg(colours)) - true).max() < 4
thermal = np.full((256, 256, 1), 51, np.uint8)
tifffile.imwrite("five.tif", np.concatenate([scene, thermal], 2), photometric="rgb", extrasamples=["unspecified"] * 2)
five = places("JPEG, thermal as fifth band", as_jpeg(pyvips.Image.new_from_file("five.tif")))
assert np.abs(five - true * 51 / 255).max() < 4

right = places("resize", image.resize(0.5).numpy())
assert np.abs(right[:3] - true[:3]).max() < 3
image.tiffsave("pyramid.tif", pyramid=True, tile=True, tile_width=64, tile_height=64)
with tifffile.TiffFile("pyramid.tif") as file:
    assert (file.pages[0].asarray() == scene).all()
    smaller = {"second page of a pyramid": file.pages[1].asarray(), "thumbnail": image.thumbnail_image(128).numpy()}
share = (230 * 20 + np.array([90, 120, 70]) * 200) / 220
for name, pixels in smaller.items():
    colours = places(name, pixels)
    assert (colours[2] == 0).all() and np.abs(colours[3] - share).max() < 3
assert np.abs(places("thumbnail, first three bands", image[:3].thumbnail_image(128).numpy()) - right).max() < 3
END
