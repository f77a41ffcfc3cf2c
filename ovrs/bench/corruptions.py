"""The fifteen corruptions of ImageNet-C for measuring robustness, on 8-bit RGB images of any size.

Source: Hendrycks and Dietterich, arXiv 1903.12261 (the severities are theirs); on remote sensing:
`docs/methods.md#corruptions`. Every function takes `(H, W, 3)` uint8, a severity of 1 to 5 and a random generator, and returns uint8.
`frost` uses a generated texture instead of photographs, so figures with it are reported as `frost*`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

from ovrs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Floats = NDArray[np.float64]

SMALLEST = 32


def corrupt(rgb: Pixels, name: str, severity: int, seed: int) -> Pixels:
    """One corruption, repeatable by its seed (the papers use the image's index).

    Raises:
        OptionError: Unknown name, severity outside 1 to 5, or an image that is no RGB of at least 32 px.
    """
    if name not in CORRUPTIONS:
        raise OptionError(f"corruption {name!r} is unknown; choose one of {', '.join(CORRUPTIONS)}")
    if not 1 <= severity <= 5:
        raise OptionError(f"a severity lies between 1 and 5, got {severity}")
    if rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape[:2]) < SMALLEST or rgb.dtype != np.uint8:
        raise OptionError(
            f"corruptions need uint8 (height, width, 3) of at least {SMALLEST} px, got {rgb.shape} {rgb.dtype}"
        )
    return CORRUPTIONS[name](rgb, severity - 1, np.random.default_rng(seed))


def _to_uint8(x: Floats) -> Pixels:
    """From 0..1."""
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Add normal noise to every channel."""
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    return _to_uint8(rgb / 255 + rng.normal(scale=sigma, size=rgb.shape))


def shot_noise(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Draw every value from a Poisson distribution of few photons."""
    photons = (60, 25, 12, 5, 3)[level]
    return _to_uint8(rng.poisson(rgb / 255 * photons) / photons)


def impulse_noise(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Set a share of the values to black or white."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    hit, salt = rng.random(rgb.shape) < share, rng.random(rgb.shape) < 0.5
    return np.where(hit, np.where(salt, 255, 0), rgb).astype(np.uint8)


def _disk(radius: int, alias: float) -> Floats:
    reach = max(8, radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = ndimage.gaussian_filter((x * x + y * y <= radius * radius).astype(np.float64), alias)
    return np.asarray(kernel / kernel.sum())


def defocus_blur(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Blur with a disk, as a lens out of focus does."""
    from scipy.signal import fftconvolve

    kernel = _disk(*((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level])
    reach = len(kernel) // 2
    padded = np.pad(rgb / 255, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    return _to_uint8(fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))


def glass_blur(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Pixels swapped with near ones. The original swaps in a loop; here all pixels of one residue class at a time."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    x = ndimage.gaussian_filter(rgb / 255, (sigma, sigma, 0))
    height, width = x.shape[:2]
    step = 2 * reach + 1
    for _ in range(rounds):
        for oy in rng.permutation(step):
            for ox in rng.permutation(step):
                rows, cols = np.mgrid[reach + oy : height - reach : step, reach + ox : width - reach : step]
                dy, dx = rng.integers(-reach, reach + 1, (2, *rows.shape))
                other = (rows + dy, cols + dx)
                here = x[rows, cols].copy()
                x[rows, cols] = x[other]
                x[other] = here
    return _to_uint8(ndimage.gaussian_filter(x, (sigma, sigma, 0)))


def _motion(x: Floats, radius: int, sigma: float, angle: float) -> Floats:
    """Weighted mean of shifts along one direction, border repeated."""
    offsets = np.arange(2 * radius + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma * sigma))
    weights /= weights.sum()
    total = np.zeros_like(x)
    for offset, weight in zip(offsets, weights, strict=True):
        shift = (-offset * np.sin(np.deg2rad(angle)), -offset * np.cos(np.deg2rad(angle)))
        whole = tuple(int(np.ceil(s - 0.5)) for s in shift)
        total += weight * ndimage.shift(x, (*whole, *[0] * (x.ndim - 2)), order=0, mode="nearest")
    return total


def motion_blur(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Blur along one random direction."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _to_uint8(_motion(rgb / 255, radius, sigma, rng.uniform(-45, 45)))


def _zoomed(x: Floats, factor: float) -> Floats:
    """Enlarge the middle of an image to the size of the image."""
    height, width = x.shape[:2]
    rows, cols = int(np.ceil(height / factor)), int(np.ceil(width / factor))
    top, left = (height - rows) // 2, (width - cols) // 2
    part = x[top : top + rows, left : left + cols]
    scale = (height / rows, width / cols, *[1] * (x.ndim - 2))
    out = ndimage.zoom(part, scale, order=1, grid_mode=True, mode="nearest")
    return np.asarray(out[:height, :width])


def zoom_blur(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Average the image with enlarged copies of its middle."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    x = rgb / 255
    factors = np.arange(1, end, step)
    return _to_uint8((x + sum(_zoomed(x, f) for f in factors)) / (len(factors) + 1))


def snow(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Add flakes that are blurred along one direction, and whiten the image."""
    mean, spread, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    x = rgb / 255
    layer = _zoomed(rng.normal(mean, spread, x.shape[:2]), zoom)
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    layer = _motion(layer, int(radius), sigma, rng.uniform(-135, -45))[..., None]
    grey = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    x = keep * x + (1 - keep) * np.maximum(x, grey * 1.5 + 0.5)
    return _to_uint8(x + layer + np.rot90(layer, 2))


def frost(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Ice needles as ridges of smooth noise, in place of the original's photographs."""
    keep, amount = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    height, width = rgb.shape[:2]
    texture = np.zeros((height, width))
    for scale in (4, 8, 16, 32):
        noise = ndimage.gaussian_filter(rng.normal(size=(height, width)), (scale / 2, scale))
        texture += (1 - np.abs(noise) / (2 * noise.std())).clip(0) * scale
    texture = (texture - texture.min()) / np.ptp(texture)
    ice = texture[..., None] ** 2 * np.array([0.85, 0.93, 1.0])
    return _to_uint8(keep * rgb / 255 + amount * ice)


def _plasma(size: int, decay: float, rng: np.random.Generator) -> Floats:
    """Fractal noise by midpoint displacement on a torus of a power of two, in 0..1."""
    field = np.zeros((size, size))
    step, amplitude = size, 100.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        square = corners + np.roll(corners, -1, 0) + np.roll(corners, -1, 1) + np.roll(corners, (-1, -1), (0, 1))
        field[half::step, half::step] = square / 4 + rng.uniform(-amplitude, amplitude, square.shape)
        centres = field[half::step, half::step]
        above = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        left = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        field[::step, half::step] = above / 4 + rng.uniform(-amplitude, amplitude, above.shape)
        field[half::step, ::step] = left / 4 + rng.uniform(-amplitude, amplitude, left.shape)
        step, amplitude = half, amplitude / decay
    return np.asarray((field - field.min()) / np.ptp(field))


def fog(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Add fractal haze, and scale the image back to its range."""
    amount, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    height, width = rgb.shape[:2]
    size = 1 << (max(height, width) - 1).bit_length()
    x = rgb / 255
    highest = x.max()
    x = x + amount * _plasma(size, decay, rng)[:height, :width, None]
    return _to_uint8(x * highest / (highest + amount))


def brightness(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Raise the value of HSV: the largest channel grows, the ratios of channels stay."""
    x = rgb / 255
    value = x.max(axis=2, keepdims=True)
    lifted = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    return _to_uint8(np.where(value > 0, x * lifted / np.maximum(value, 1e-12), lifted))


def contrast(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Move every value toward the mean of its channel."""
    x = rgb / 255
    mean = x.mean(axis=(0, 1), keepdims=True)
    return _to_uint8((x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean)


def elastic_transform(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Shift an image by a random affine map of three points, then by a smooth random displacement."""
    strength, smooth, shift = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[level]
    height, width = rgb.shape[:2]
    side = min(height, width)
    # three corners of the middle third, each moved by up to a quarter of `shift`'s share of the height
    points = np.array([[1, 1], [-1, 1], [-1, -1]]) * side / 3
    moved = points + rng.uniform(-1, 1, points.shape) * shift * height / 4
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # output position to input position, from the middle
    y, x = np.mgrid[:height, :width].astype(np.float64)
    about = np.stack([y - height / 2, x - width / 2, np.ones_like(y)], -1) @ affine
    sigma = smooth * side
    fields = [
        ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) for _ in "yx"
    ]
    rows = about[..., 0] + height / 2 + fields[0] * strength * side
    cols = about[..., 1] + width / 2 + fields[1] * strength * side
    return _to_uint8(
        np.stack(
            [ndimage.map_coordinates(rgb[..., c] / 255, [rows, cols], order=1, mode="reflect") for c in range(3)], -1
        )
    )


def pixelate(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Shrink the image and enlarge it again without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = rgb.shape[:2]
    small = Image.fromarray(rgb).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def jpeg_compression(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Write the image as JPEG of low quality and read it again."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Image.open(buffer))


CORRUPTIONS: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    f.__name__: f
    for f in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}
