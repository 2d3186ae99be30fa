"""Three sensors that see a painted scene from slightly different places.

- RGB sees the visible albedo times the light, which is day, night or glare;
- NI sees the near-infrared albedo by the sun, or by its own illuminator at night;
- TI sees temperature and emissivity, whatever the light.

Every function is deterministic in its arguments.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from examples.prepare.synthetic.scenes import Array, Layer, View, crop, downsample

SKY = -18.0  # temperature of the reflected sky, in kelvin above the air


def _blur(image: Array, sigma: float) -> Array:
    reach = max(1, round(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (0, 1):
        widths = [(reach, reach) if a == axis else (0, 0) for a in range(image.ndim)]
        padded, length = np.pad(image, widths, mode="edge"), image.shape[axis]
        steps = (padded.take(range(k, k + length), axis) * w for k, w in enumerate(kernel / kernel.sum()))
        image = sum(steps, np.zeros_like(image))
    return image


def smooth_field(rng: Generator, size: tuple[int, int], cells: int = 6) -> Array:
    """Draw noise of unit variance that changes over about a `cells`-th of the frame."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _grid(size: tuple[int, int]) -> tuple[Array, Array]:
    return np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")


def _spot(rng: Generator, size: tuple[int, int], radius: float) -> Array:
    y, x = _grid(size)
    centre_y, centre_x = rng.uniform(-0.6, 0.6, 2)
    return np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / radius**2)


def _develop(signal: Array, rng: Generator, *, gain: float, read_noise: float, sigma: float) -> NDArray[np.uint8]:
    """Apply optics, photon and read noise, automatic gain up to `gain`, and a tone curve."""
    signal = _blur(signal, sigma)
    noise = np.sqrt(read_noise**2 + 6e-4 * np.clip(signal, 0, None)) * rng.normal(size=signal.shape)
    exposed = (signal + noise) * min(gain, 0.32 / max(float(signal.mean()), 1e-6))
    return (np.clip(exposed, 0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)


def _see_visible(albedo: Array, light: str, rng: Generator, sigma: float) -> NDArray[np.uint8]:
    size = (albedo.shape[0], albedo.shape[1])
    albedo = albedo * (1 + 0.08 * smooth_field(rng, size))[..., None]
    spot = _spot(rng, size, 0.75)[..., None]
    if light == "night":
        signal = albedo * (0.045 + 0.16 * spot) * np.array([1.0, 0.82, 0.6])
    else:
        signal = albedo * (1 - 0.15 * _grid(size)[0])[..., None] * rng.uniform([0.95, 0.95, 0.85], [1.0, 1.0, 1.05])
    if light == "glare":
        signal = 0.85 * signal + 0.12 + 0.7 * spot
    return _develop(signal, rng, gain=5.0, read_noise=0.005, sigma=0.45 * sigma)


def _see_near_infrared(albedo: Array, light: str, rng: Generator, sigma: float) -> NDArray[np.uint8]:
    size = (albedo.shape[0], albedo.shape[1])
    y, x = _grid(size)
    albedo = albedo * (1 + 0.08 * smooth_field(rng, size))
    illumination = 0.1 + 0.7 * np.exp(-0.9 * (x**2 + y**2)) if light == "night" else 0.9 - 0.1 * y
    veil = 0.2 * _spot(rng, size, 0.6) if light == "glare" else 0.0
    return _develop(albedo * illumination + veil, rng, gain=3.0, read_noise=0.012, sigma=0.6 * sigma)


def _see_thermal(warmth: Array, emissivity: Array, air: float, rng: Generator, sigma: float) -> NDArray[np.uint8]:
    temperature = air + warmth + 1.2 * smooth_field(rng, (warmth.shape[0], warmth.shape[1]))
    radiance = emissivity * temperature**4 + (1 - emissivity) * (air + SKY) ** 4
    apparent = _blur(radiance, 0.75 * sigma) ** 0.25 + 0.6 * rng.normal(size=warmth.shape)
    coldest, hottest = np.percentile(apparent, [1, 99])
    return (np.clip(0.04 + 0.92 * (apparent - coldest) / (hottest - coldest), 0, 1) * 255).round().astype(np.uint8)


def expose(view: View, behind: Layer, front: Layer) -> dict[str, NDArray[np.uint8]]:
    """Photograph a painted view with the three sensors: RGB (height, width, 3), NI and TI (height, width)."""
    sigma = min(view.size) / 64

    def surface(band: str, columns: slice) -> Array:
        x, y = view.parallax[band]
        back, fore = crop(behind.labels, view.size, (x / 2, y / 2)), crop(front.labels, view.size, (x, y))
        seen = np.where(fore[..., None] > 0, front.materials[:, columns][fore], behind.materials[:, columns][back])
        return downsample(seen)

    visible, near_infrared, thermal = (np.random.default_rng((view.key, band)) for band in range(3))
    albedo, (warmth, emissivity) = surface("NI", slice(3, 4))[..., 0], np.moveaxis(surface("TI", slice(4, 6)), -1, 0)
    return {
        "RGB": _see_visible(surface("RGB", slice(0, 3)), view.light, visible, sigma),
        "NI": _see_near_infrared(albedo, view.light, near_infrared, sigma),
        "TI": _see_thermal(warmth, emissivity, view.air, thermal, sigma),
    }
