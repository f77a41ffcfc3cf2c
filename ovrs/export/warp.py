"""The grid of a reprojected product: settled, or refused, before anything is written."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import OptionError
from ovrs.scene.grid import pixel_size_m

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

log = logging.getLogger(__name__)

FINER, COARSER = 100, 10_000
"""How many times finer or coarser than the map's own pixels a product may be, along a side."""
_MOST_PIXELS = 2**31 - 1
"""Along a side; GDAL counts them in 32 bits."""
_TORN = 20
"""GDAL suggests pixels about as long as the map's; so many times longer ones mean that the map's corners lie far apart."""


def target_grid(geobox: GeoBox, crs: str | None, resolution: float | None) -> GeoBox | None:
    """Grid of a raster product, or None for the map's own grid.

    Args:
        geobox: Grid of the map.
        crs: CRS to reproject to (`EPSG:25832`, WKT, …); None keeps the map's.
        resolution: Side of a pixel in units of the target CRS; None keeps about the map's ground size.

    Raises:
        OptionError: The CRS is unknown, has not two horizontal axes, or cannot be reached from the map's; the
            resolution is no positive number or far from the map's pixels.
    """
    if crs is None and resolution is None:
        return None
    if resolution is not None and not (math.isfinite(resolution) and resolution > 0):
        raise OptionError(f"--resolution must be a positive number of units of the CRS, got {resolution}")
    if geobox.crs is None:
        raise OptionError("--crs and --resolution need a map with a CRS")
    target = _horizontal(geobox.crs.to_wkt() if crs is None else crs)
    place, width, height = _fitted(geobox, target, None)
    if min(width, height) < 1 or not abs(place.a) < _TORN * _step(geobox, target):
        raise OptionError(
            f"the map cannot be placed in {target.name}: it lies across that CRS's edge (often the 180° meridian) or "
            "outside its area; choose another --crs"
        )
    if resolution is not None:
        _check_resolution(resolution, abs(place.a), width, height, target)
        place, width, height = _fitted(geobox, target, resolution)
    if not (0 < width <= _MOST_PIXELS and 0 < height <= _MOST_PIXELS):
        raise OptionError(f"a product of {width} x {height} pixels cannot be written; choose another --resolution")
    _warn_if_far(geobox, target)
    from odc.geo.geobox import GeoBox as Box

    return Box((height, width), place, target.to_wkt())


def is_coarser(grid: GeoBox, than: GeoBox) -> bool:
    """Whether pixels of `grid` are more than one percent longer on the ground than those of `than`."""
    return max(pixel_size_m(grid)) > 1.01 * max(pixel_size_m(than))


def _horizontal(crs: str) -> Any:
    """Return the CRS with two horizontal axes that a text names."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        found = CRS.from_user_input(crs)
    except CRSError as error:
        raise OptionError(
            f"--crs {crs!r} is no CRS: {str(error).splitlines()[0] if str(error) else 'empty'}"
        ) from error
    if not (found.is_geographic or found.is_projected) or len(found.axis_info) != 2:
        raise OptionError(
            f"--crs {crs if len(crs) < 60 else found.name!r} is a {found.type_name} with {len(found.axis_info)} axes; "
            "a raster needs one with two horizontal axes, such as EPSG:4326"
        )
    return found


def _fitted(geobox: GeoBox, target: Any, resolution: float | None) -> tuple[Any, int, int]:
    """Transform, width and height that GDAL suggests."""
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError
    from rasterio.warp import calculate_default_transform

    assert geobox.crs is not None  # the caller has looked
    box = geobox.boundingbox
    try:
        place, width, height = calculate_default_transform(
            CRS.from_wkt(geobox.crs.to_wkt()),
            CRS.from_wkt(target.to_wkt()),
            geobox.width,
            geobox.height,
            box.left,
            box.bottom,
            box.right,
            box.top,
            resolution=resolution,
        )
    except (RasterioError, ValueError, OverflowError) as error:
        raise OptionError(
            f"the map cannot be placed in {target.name}: no way is known there from its own CRS, "
            f"{geobox.crs.proj.name} ({' '.join(str(error).split())[:120]})"
        ) from error
    return place, int(width), int(height)


def _warn_if_far(geobox: GeoBox, target: Any) -> None:
    """Say when the map's middle lies outside the area that a CRS is made for."""
    from pyproj import Transformer

    area = target.area_of_use
    if area is None or geobox.crs is None:
        return
    x, y = geobox.affine @ (geobox.width / 2, geobox.height / 2)
    lon, lat = Transformer.from_crs(geobox.crs.proj, "OGC:CRS84", always_xy=True).transform(x, y)
    eastward = (lon - area.west) % 360 <= ((area.east - area.west) % 360 or 360)
    if not (eastward and area.south <= lat <= area.north):
        log.warning("the map lies outside the area of %s (%s); shapes are distorted there", target.name, area.name)


def _step(geobox: GeoBox, target: Any) -> float:
    """Length of a pixel's side in units of the target CRS: the median over 5 × 5 places of the map; 0 if none is known."""
    from pyproj import Transformer

    assert geobox.crs is not None  # the caller has looked
    cols, rows = np.meshgrid(*(np.linspace(0, 1, 7)[1:-1] * n for n in (geobox.width, geobox.height)))
    there = Transformer.from_crs(geobox.crs.proj, target, always_xy=True)
    affine = geobox.affine
    x, y = affine.c + affine.a * cols, affine.f + affine.e * rows
    here = np.array(there.transform(x, y))
    east, south = np.array(there.transform(x + affine.a, y)), np.array(there.transform(x, y + affine.e))
    steps = np.maximum(np.hypot(*(east - here)), np.hypot(*(south - here)))
    known = steps[np.isfinite(steps)]
    return float(np.median(known)) if known.size else 0.0


def _check_resolution(wanted: float, own: float, width: int, height: int, target: Any) -> None:
    """Refuse pixels that only another unit explains, such as metres where the CRS has degrees."""
    unit = target.axis_info[0].unit_name
    said = f"the unit of {target.name} is the {unit}, and the map's pixels are {own:.3g} {unit}"
    if wanted > own * max(width, height):
        raise OptionError(f"--resolution {wanted:g} makes a pixel larger than the whole map: {said}")
    if wanted > own * COARSER or wanted < own / FINER:
        raise OptionError(f"--resolution {wanted:g} is far from the map's pixels: {said}")
