"""Areas of interest and zones: polygons of a vector file on the grid of a scene or map.

A pixel belongs to a polygon when its centre lies inside.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import OptionError, SceneReadError
from ovrs.scene.grid import crop_to_bounds
from ovrs.scene.placement import Placement, areas_only
from ovrs.scene.polygons import Layer, open_layer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

log = logging.getLogger(__name__)

_PIXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Area:
    """Where a scene is mapped."""

    geobox: GeoBox
    """The grid, cut to the area."""
    wkt: str
    """The area in the CRS of the grid."""
    note: str
    """What a reader of the map should know of it: layer taken, geometries mended or left out. Empty: nothing."""


def restrict(geobox: GeoBox, source: str | Path, option: str = "--aoi") -> Area:
    """Cut a grid to the polygons of a vector file.

    Raises:
        OptionError: The file cannot be used, holds no polygon, or its polygons cover no pixel centre of the grid.
    """
    import shapely

    if geobox.crs is None:
        raise OptionError(f"{option} needs a georeferenced scene")
    layer = open_layer(source, option)
    place = Placement(geobox, layer)
    parts, seen = [], _Seen()
    for batch in layer.geometries():
        shapes = _polygonal(batch, seen)
        parts += [shape for shape in place.on_grid(shapes) if not shape.is_empty]
    if not seen.polygons:
        raise OptionError(f"{layer.told} holds no polygon ({seen.features} features: points, lines or nothing)")
    if not parts:
        raise OptionError(
            f"{layer.told}: the area does not touch the scene, whose bounds are {tuple(geobox.boundingbox)} in its CRS"
        )
    shape = areas_only(shapely.make_valid(shapely.union_all(parts)))
    if shape.is_empty or not _touches(geobox, shape):
        raise OptionError(
            f"{layer.told}: the area does not touch the scene, whose bounds are {tuple(geobox.boundingbox)} in its CRS"
        )
    cut = crop_to_bounds(geobox, shape.bounds)
    if not _holds_a_centre(cut, shape):
        raise OptionError(
            f"{layer.told}: the area covers no pixel's centre, so nothing would be mapped; it is smaller than a pixel or "
            f"lies between pixels"
        )
    return Area(cut, shape.wkt, "; ".join(filter(None, (layer.note, seen.told(layer)))))


def zones(geobox: GeoBox, source: str | Path, option: str = "--zones") -> tuple[NDArray[Any], dict[str, list[Any]]]:
    """Every feature of a vector file on a grid, with its attributes.

    Returns:
        One polygonal geometry per feature in the CRS of the grid, cut to the grid's surroundings, empty where it has no
        area there; and the columns of attributes.

    Raises:
        SceneReadError: The file cannot be used.
        OptionError: It holds no polygon.
    """
    import shapely

    layer = open_layer(source, option, SceneReadError, placed=geobox.crs is not None)
    attributes = layer.attributes()
    shapes, seen = [], _Seen()
    place = None if geobox.crs is None else Placement(geobox, layer)
    for batch in layer.geometries():
        for shape in _polygonal(batch, seen, keep_all=True):
            parts = [shape] if place is None else list(place.on_grid(np.array([shape], object)))
            shapes.append(areas_only(shapely.make_valid(shapely.union_all(parts))) if parts else shapely.Polygon())
    if not seen.polygons:
        raise OptionError(f"{layer.told} holds no polygon ({seen.features} features: points, lines or nothing)")
    seen.told(layer)
    return np.array(shapes, object), attributes


class _Seen:
    """Counts of what a file held."""

    def __init__(self) -> None:
        self.features = self.polygons = self.mended = 0

    def told(self, layer: Layer) -> str:
        """Tell what was done to the geometries, and warn about it."""
        found = []
        if self.mended:
            found.append(f"{self.mended} invalid polygons were mended")
        if self.features > self.polygons:
            found.append(f"{self.features - self.polygons} features without area do not count")
        if not found:
            return ""
        text = f"{layer.told}: {', '.join(found)}"
        log.warning(text)
        return text


def _polygonal(shapes: NDArray[Any], seen: _Seen, *, keep_all: bool = False) -> NDArray[Any]:
    """Return the polygons among geometries, made valid; with `keep_all` an empty one for everything else."""
    import shapely

    seen.features += len(shapes)
    shapes = np.where(shapely.is_missing(shapes), shapely.Polygon(), shapes)
    invalid = ~shapely.is_valid(shapes)
    shapes = np.where(invalid, shapely.make_valid(shapes), shapes) if invalid.any() else shapes
    flat = np.array([areas_only(shape) for shape in shapes], object)
    kept = ~shapely.is_empty(flat)
    seen.polygons += int(kept.sum())
    seen.mended += int((kept & invalid).sum())
    return flat if keep_all else np.asarray(flat[kept])


def _touches(geobox: GeoBox, shape: Any) -> bool:
    from shapely import box

    return bool(shape.intersection(box(*geobox.boundingbox)).area > 0)


def _holds_a_centre(geobox: GeoBox, shape: Any) -> bool:
    """Whether a pixel's centre of the grid lies inside; the largest polygons are looked at first."""
    import shapely
    from rasterio.features import rasterize

    for piece in sorted(shapely.get_parts(shape), key=lambda p: -p.area):
        try:
            part = crop_to_bounds(geobox, piece.bounds)
        except OptionError:  # beside the grid
            continue
        rows = max(1, _PIXELS_AT_ONCE // part.width)
        for row in range(0, part.height, rows):
            strip = part[row : row + rows, :]
            if rasterize([piece], out_shape=tuple(strip.shape), transform=strip.affine, dtype="uint8").any():
                return True
    return False
