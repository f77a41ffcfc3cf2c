"""Lengths and areas on the ground, in metres of the ellipsoid that a CRS names."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray
    from pyproj import CRS, Transformer

log = logging.getLogger(__name__)

_REACH = 100.0
"""Metres around a point over which scale is measured; far above the rounding of projections, far below their changes."""


def unit(crs: CRS) -> float:
    """Metres per unit of a projected or local CRS; radians per unit of a geographic one."""
    axes = crs.axis_info or (crs.source_crs.axis_info if crs.source_crs is not None else [])
    return float(axes[0].unit_conversion_factor or 1.0) if axes else 1.0


def metres_per_unit(crs: CRS, latitude: float) -> tuple[float, float]:
    """Length of one unit (degree, grad) of longitude and of latitude in metres, at a latitude in the same unit.

    Beyond the poles a unit of longitude has no length.
    """
    semi_major, eccentricity_2 = _ellipsoid(crs)
    phi = min(max(latitude * unit(crs), -math.pi / 2), math.pi / 2)
    w = 1 - eccentricity_2 * math.sin(phi) ** 2
    along_parallel = semi_major * math.cos(phi) / math.sqrt(w)
    along_meridian = semi_major * (1 - eccentricity_2) / w**1.5
    return unit(crs) * along_parallel, unit(crs) * along_meridian


def cell_areas(crs: CRS, edges: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Square metres between neighbouring latitudes.

    Args:
        crs: A geographic CRS.
        edges: Latitudes of `n + 1` edges, in units of the CRS; those beyond the poles count as the poles.
        width: Difference of longitude, in units of the CRS.

    Returns:
        `(n,)`.
    """
    semi_major, eccentricity_2 = _ellipsoid(crs)
    sine = np.sin(np.clip(np.asarray(edges, np.float64) * unit(crs), -np.pi / 2, np.pi / 2))
    eccentricity = math.sqrt(max(eccentricity_2, 0.0))
    second = sine if eccentricity < 1e-8 else np.arctanh(eccentricity * sine) / eccentricity
    to_equator = (1 - eccentricity_2) * (sine / (1 - eccentricity_2 * sine**2) + second) / 2
    return np.asarray(np.abs(np.diff(to_equator)) * semi_major**2 * width * unit(crs), np.float64)


def pixel_size(crs: CRS, affine: Affine, col: float, row: float) -> tuple[float, float]:
    """Metres on the ground along x and y of a pixel of a projected grid, at a position in pixels.

    By the unit of the CRS where that has no place on Earth, or, with a warning, where the position has none.
    """
    half = _half_side(crs, affine)
    there = _to_degrees(crs, affine, [(col - half, row), (col + half, row), (col, row - half), (col, row + half)])
    geod = crs.get_geod()
    if there is None or geod is None:
        return abs(affine.a) * unit(crs), abs(affine.e) * unit(crs)
    longitudes, latitudes = there
    _, _, lengths = geod.inv(longitudes[::2], latitudes[::2], longitudes[1::2], latitudes[1::2])
    return float(lengths[0]) / (2 * half), float(lengths[1]) / (2 * half)


def pixel_area(crs: CRS, affine: Affine, col: float, row: float) -> float:
    """Square metres on the ground of a pixel of a projected grid, at a position in pixels; otherwise as `pixel_size`."""
    half = _half_side(crs, affine)
    around = [(col - half, row - half), (col + half, row - half), (col + half, row + half), (col - half, row + half)]
    there = _to_degrees(crs, affine, around)
    geod = crs.get_geod()
    if there is None or geod is None:
        return float(abs(affine.a * affine.e)) * unit(crs) ** 2
    area, _ = geod.polygon_area_perimeter(*there)
    return abs(float(area)) / (2 * half) ** 2


def is_known(crs: CRS, affine: Affine, col: float, row: float) -> bool:
    """Whether a position of a grid has a place on the ground, so that metres are those of the ground."""
    return crs.is_geographic or _to_degrees(crs, affine, [(col, row)]) is not None


def _half_side(crs: CRS, affine: Affine) -> float:
    """Pixels on each side of a position over which scale is measured."""
    return max(0.5, _REACH / (max(abs(affine.a), abs(affine.e)) * unit(crs)))


def _to_degrees(
    crs: CRS, affine: Affine, positions: list[tuple[float, float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Longitudes and latitudes in degrees of positions in pixels; None if the CRS or any position has none.

    Far outside its domain a projection folds: the way back leads to another northing, or to none.
    """
    transformer = _transformer(crs)
    if transformer is None:
        return None
    x, y = np.array([affine @ p for p in positions], np.float64).T
    longitudes, latitudes = transformer.transform(x, y)
    _, northings = transformer.transform(longitudes, latitudes, direction="INVERSE")
    if not (np.abs(northings - y) * unit(crs) < _REACH).all():  # also where any number is infinite
        _warn_outside(crs.name, f"{x[0]:.9g}", f"{y[0]:.9g}")
        return None
    assert crs.geodetic_crs is not None  # or there would be no transformer
    degrees = math.degrees(unit(crs.geodetic_crs))
    return np.asarray(longitudes) * degrees, np.asarray(latitudes) * degrees


@lru_cache(maxsize=64)
def _transformer(crs: CRS) -> Transformer | None:
    from pyproj import Transformer

    if crs.geodetic_crs is None or crs.get_geod() is None:
        return None
    return Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)


@lru_cache(maxsize=256)
def _warn_outside(name: str, x: str, y: str) -> None:
    log.warning(
        "x %s, y %s lie outside the domain of %s; its own metres are taken for metres on the ground", x, y, name
    )


def _ellipsoid(crs: CRS) -> tuple[float, float]:
    """Semi-major axis in metres and squared eccentricity."""
    geod: Any = crs.get_geod()
    return float(geod.a), float(geod.es)
