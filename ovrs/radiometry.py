"""From stored numbers to the 8-bit RGB that the models know. One stretch per scene, never per tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.errors import SceneReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stretch:
    """Linear stretch of each band to 0..255."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    percentiles: tuple[float, float]
    sample_shape: tuple[int, int]
    """Rows and columns of the decimated read that the limits were taken from."""

    def apply(self, bands: NDArray[np.generic]) -> NDArray[np.uint8]:
        """`(band, y, x)` of any real type to uint8; values that are not finite become 0."""
        low = np.asarray(self.low, np.float32)[:, None, None]
        span = np.maximum(np.asarray(self.high, np.float32)[:, None, None] - low, np.float32(1e-12))
        with np.errstate(over="ignore", invalid="ignore"):  # nodata values such as 3.4e38; masked by the caller
            scaled = (bands.astype(np.float32) - low) * (np.float32(255) / span)
        finite = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
        return np.asarray(np.rint(np.clip(finite, 0, 255)), np.uint8)


def measure_stretch(bands: NDArray[np.generic], valid: NDArray[np.bool_], percentiles: tuple[float, float]) -> Stretch:
    """Percentile limits per band from a decimated read.

    Args:
        bands: `(band, y, x)`.
        valid: `(y, x)`, True where the pixel counts.
        percentiles: Those that become 0 and 255, in 0..100.

    Raises:
        SceneReadError: Nothing valid to measure.
    """
    limits = []
    for band in bands.astype(np.float64):
        values = band[valid & np.isfinite(band)]
        if values.size == 0:
            raise SceneReadError(
                "the scene holds no valid pixel to take stretch limits from; check its nodata value and bands"
            )
        low, high = np.percentile(values, percentiles)
        limits.append((float(low), float(high) if high > low else float(low) + 1.0))
    return Stretch(
        tuple(v[0] for v in limits), tuple(v[1] for v in limits), percentiles, (bands.shape[1], bands.shape[2])
    )


def to_rgb(bands: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replicate a single band; three bands pass."""
    return np.repeat(bands, 3, axis=0) if bands.shape[0] == 1 else bands
