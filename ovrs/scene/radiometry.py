"""From stored numbers to the 8-bit RGB that the models know. One stretch per scene, never per tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import SceneReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray


DEFAULT_PERCENTILES = (2.0, 98.0)
"""Of every type but `uint8`."""

_USUAL_NODATA = (0, -999, -9999, -99999, -32768, -32767, 65535, 32767, 255, 1e20, 9.969209968386869e36, -1e30)
"""Numbers that often stand for no data without a tag that says so."""

_HUGE = 1e30
"""Numbers beyond it are stretched in 64 bits."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Linear stretch of each band to 0..255; a band whose `high` lies below its `low` comes out inverted."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    percentiles: tuple[float, float]
    sample_shape: tuple[int, int]
    """Rows and columns of the decimated read that the limits come from; zero if no pixel was read for them."""

    def apply(self, bands: NDArray[np.generic]) -> NDArray[np.uint8]:
        """`(band, y, x)` of any real type to uint8; values that are not finite become 0."""
        kind = self._kind(bands.dtype)
        low: NDArray[Any] = np.asarray(self.low, kind)[:, None, None]
        span: NDArray[Any] = np.asarray(self.high, kind)[:, None, None] - low
        span[span == 0] = 1
        values: NDArray[Any] = bands.astype(kind, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # nodata values such as 3.4e38; masked by the caller
            scaled = (values - low) * (np.asarray(255, kind) / span)
        finite = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
        return np.asarray(np.rint(np.clip(finite, 0, 255)), np.uint8)

    def _kind(self, dtype: np.dtype[Any]) -> type[np.floating[Any]]:
        """Arithmetic in which neither the numbers nor their range are lost."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        ordinary = max(np.abs(low).max(), np.abs(high).max()) < _HUGE and (np.abs(high - low) > 1 / _HUGE).all()
        return np.float32 if ordinary and (dtype.itemsize < 4 or dtype == np.float32) else np.float64


def fixed_stretch(bits: int, inverted: tuple[bool, ...]) -> Stretch | None:
    """Return the stretch of bytes: all of the range of their bits, from white to black where inverted; None to leave them be."""
    if bits == 8 and not any(inverted):
        return None
    top = float(2**bits - 1)
    return Stretch(
        low=tuple(top if i else 0.0 for i in inverted),
        high=tuple(0.0 if i else top for i in inverted),
        percentiles=(0.0, 100.0),
        sample_shape=(0, 0),
    )


def measure_stretch(
    bands: NDArray[np.generic],
    valid: NDArray[np.bool_],
    percentiles: tuple[float, float],
    inverted: tuple[bool, ...] | None = None,
) -> Stretch:
    """Percentile limits per band from a decimated read.

    Args:
        bands: `(band, y, x)`.
        valid: `(y, x)` or `(band, y, x)`, True where the pixel counts.
        percentiles: Those that become 0 and 255, in 0..100.
        inverted: True for each band whose low numbers are bright. Default: none.

    Raises:
        SceneReadError: Nothing valid to measure, or a range that no floating-point number holds.
    """
    limits = []
    for k, (band, counted) in enumerate(zip(bands, np.broadcast_to(valid, bands.shape), strict=True)):
        values = band[counted & np.isfinite(band)].astype(np.float64)
        if values.size == 0:
            raise SceneReadError(
                "the scene holds no valid pixel to take stretch limits from; check its nodata value and bands"
            )
        scale = (
            2.0**-100 if np.abs(values).max() > 1e290 else 1.0
        )  # between numbers of 1e308 lie more than a float holds
        low, high = np.percentile(values * scale, percentiles) / scale
        if not np.isfinite(high / 2 - low / 2) or abs(high / 2 - low / 2) > np.finfo(np.float64).max / 4:
            raise SceneReadError(
                f"band {k + 1} of the scene spans {low:.3g} to {high:.3g}, more than can be stretched; give its no data value "
                f"by --set scene.nodata=…, or scale it down first"
            )
        low, high = float(low), float(high)
        if not high > low:
            high = low + (1.0 if abs(low) < 1e15 else abs(low))
        limits.append((high, low) if inverted is not None and inverted[k % len(inverted)] else (low, high))
    return Stretch(
        low=tuple(v[0] for v in limits),
        high=tuple(v[1] for v in limits),
        percentiles=percentiles,
        sample_shape=(bands.shape[1], bands.shape[2]),
    )


def suspected_nodata(bands: NDArray[np.generic], valid: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return a number that stands for no data by its looks, and its share of the valid pixels; None if there is none.

    It is the lowest or highest number, the same in every band, in one pixel of a thousand or more, and farther from all
    others than the middle 96 percent of them spread. Of the usual numbers a twentieth of that spread is enough.

    Args:
        bands: `(band, y, x)`.
        valid: `(y, x)`, True where the pixel counts.
    """
    values = bands[:, valid & np.isfinite(bands).all(axis=0)].astype(np.float64)
    same = (values == values[:1]).all(axis=0)
    if not same.any():
        return None
    for candidate in (values.min(), values.max()):
        chosen = same & (values[0] == candidate)
        share, rest = float(chosen.mean()), values[:, ~chosen]
        if share < 1e-3 or rest.size == 0:
            continue
        low, high = np.percentile(rest / 2, (2, 98)) * 2
        gap, spread = np.abs(rest / 2 - candidate / 2).min(), high / 2 - low / 2
        usual = np.isclose(candidate, _USUAL_NODATA, rtol=1e-6, atol=0).any()
        if gap > spread or (usual and share >= 1e-2 and gap > spread / 20):
            return float(candidate), share
    return None


def to_rgb(bands: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replicate a single band; three bands pass."""
    return np.repeat(bands, 3, axis=0) if bands.shape[0] == 1 else bands
