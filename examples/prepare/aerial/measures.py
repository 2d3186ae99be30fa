"""Measurements of a crop, and the tree-crown mask and caption made from them."""

from typing import NamedTuple

import numpy as np

from examples.prepare.aerial.source import opencv

# Radius in pixels around an annotated point in which vegetation belongs to the tree.
CROWN_RADIUS = 9
# Lowest threshold of the vegetation index, whose 0 is at 127.5; Otsu's threshold may lie higher.
LEAST_INDEX = 128 + 6


class Measures(NamedTuple):
    """Measurements that a caption states.

    Attributes:
        trees: number of annotated trees in the crop.
        vegetation: share of the pixels that are vegetation.
        brightness: mean of the pixels without vegetation, 0 ... 255.
        reddish: share of the pixels that are red and not vegetation.
        pool: number of pixels in the colour of a swimming pool.
    """

    trees: int
    vegetation: float
    brightness: float
    reddish: float
    pool: int


def find_vegetation(crop: np.ndarray) -> np.ndarray:
    """Find pixels of vegetation, Bool, by near infrared against red (NDVI) and a threshold of the crop."""
    cv2 = opencv()
    infrared, red = crop[..., 3].astype(np.float32), crop[..., 0].astype(np.float32)
    smooth = cv2.GaussianBlur((infrared - red) / (infrared + red + 1), (0, 0), 1)
    index = np.clip((smooth + 1) * 127.5, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(index, 0, 255, cv2.THRESH_OTSU)
    return index > max(threshold, LEAST_INDEX)


def find_crowns(vegetation: np.ndarray, trees: np.ndarray) -> np.ndarray:
    """Find the crowns of annotated trees, Bool: vegetation near one of the points (trees, 2), without specks."""
    cv2 = opencv()
    near = np.zeros(vegetation.shape, np.uint8)
    for x, y in trees:
        cv2.circle(near, (round(x), round(y)), CROWN_RADIUS, 1, -1)
    return cv2.morphologyEx(vegetation & near, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(bool)


def measure(crop: np.ndarray, vegetation: np.ndarray, trees: int) -> Measures:
    """Measure a crop, bytes (height, width, 4)."""
    colours = np.ascontiguousarray(crop[..., :3])
    hue, saturation, value = np.moveaxis(opencv().cvtColor(colours, opencv().COLOR_RGB2HSV), -1, 0)
    bare = ~vegetation
    pool = (hue > 80) & (hue < 105) & (saturation > 90) & (value > 110)
    return Measures(
        trees=trees,
        vegetation=float(vegetation.mean()),
        brightness=float(colours.astype(np.float32)[bare if bare.any() else ...].mean()),
        reddish=float(((hue < 14) & (saturation > 60) & (value > 90) & bare).mean()),
        pool=int(pool.sum()),
    )


def caption(measures: Measures) -> str:
    """Write a caption in words that many places share.

    >>> caption(Measures(trees=2, vegetation=0.1, brightness=160, reddish=0.0, pool=30))
    'The aerial view shows a few trees with sparse vegetation and bright roofs or paved surfaces. A swimming pool is \
visible.'
    """
    trees, vegetation, brightness, reddish, pool = measures
    density = "sparse" if vegetation < 0.12 else "moderate" if vegetation < 0.3 else "dense"
    tone = "bright" if brightness > 150 else "mid-tone" if brightness > 115 else "dark"
    text = f"The aerial view shows {count_trees(trees)} with {density} vegetation and {tone} roofs or paved surfaces."
    if reddish > 0.04:
        text += " Reddish tiled roofs or bare soil are present."
    if pool >= 12:
        text += " A swimming pool is visible."
    return text


def count_trees(trees: int) -> str:
    """Express the number of trees in words."""
    if trees == 0:
        return "no visible trees"
    return "a few trees" if trees <= 3 else f"about {trees} trees"
