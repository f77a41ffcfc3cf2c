"""The outline of a map in longitude and latitude (WGS 84), as GeoJSON (RFC 7946) and STAC want it.

Polygons that cross the 180° meridian are split; their bounding box then has west > east. A map around a pole reaches
latitude ±90 and all longitudes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

_PER_SIDE = 64
"""Points along a side of the grid before those on straight lines are dropped."""
_DIGITS = 9
"""Decimals of a degree: a tenth of a millimetre."""
_STRAIGHT = 5e-5
"""Degrees that an outline may change where points are dropped: five metres, and never more than a thousandth of its width."""


_BODY = re.compile(
    r"\b(Mercury|Venus|Moon|Mars|Phobos|Deimos|Ceres|Vesta|Io|Europa|Ganymede|Callisto|Enceladus|Titan|Pluto)\b", re.I
)
"""Bodies that a CRS is known to belong to by the names of its datum and ellipsoid."""


@dataclass(frozen=True)
class Footprint:
    """Outline in degrees."""

    geometry: dict[str, object]
    """GeoJSON Polygon or MultiPolygon, outer rings counter-clockwise, longitudes −180..180."""
    bbox: list[float]
    """West, south, east, north; west > east across the 180° meridian."""
    body: str = "Earth"
    """Whose longitudes and latitudes they are: WGS 84 on Earth, else the CRS's own."""


def footprint(geobox: GeoBox) -> Footprint:
    """Return the outline of a grid.

    Raises:
        StoreError: The grid has no CRS, a local one, one of another planet, or lies outside its CRS's domain.
    """
    if geobox.crs is None:
        raise StoreError(
            "the map has no CRS, so it has no longitude and latitude; a STAC Item needs a place on the ground"
        )
    to_degrees, body = _to_degrees(geobox.crs.proj)
    geometry, bbox = _shape_and_box(geobox, to_degrees)
    return Footprint(geometry, bbox, body)


def _shape_and_box(geobox: GeoBox, to_degrees: Any) -> tuple[dict[str, object], list[float]]:
    lon, lat, poles = _outline(geobox, to_degrees)
    lat = lat.clip(-90, 90)  # grids of the whole world may hang half a pixel over
    around = round(float(lon[-1] - lon[0]) / 360)
    south, north = float(lat.min()), float(lat.max())
    if around or poles:
        south, north = (-90.0 if -1 in poles else south), (90.0 if 1 in poles else north)
        return _around_pole(lon, lat, around, poles, south, north)
    west, east = float(lon.min()), float(lon.max())
    if east - west >= 360 - 1e-9:
        return _rectangle(-180, south, 180, north), _rounded((-180, south, 180, north))
    shift = -360 * math.floor(((west + east) / 2 + 180) / 360)
    return _split(lon + shift, lat, west + shift, south, east + shift, north)


def union_of_boxes(boxes: Sequence[Sequence[float]]) -> list[float]:
    """Return the smallest west, south, east, north around boxes that may cross the 180° meridian."""
    spans = sorted((b[0], b[2] if b[2] >= b[0] else b[2] + 360) for b in boxes)
    south, north = min(b[1] for b in boxes), max(b[3] for b in boxes)
    joined = [list(spans[0])]
    for west, east in spans[1:]:
        if west <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], east)
        else:
            joined.append([west, east])
    reach = max(east for _, east in joined)
    following = [*(w for w, _ in joined[1:]), joined[0][0] + 360]
    gaps = [w - max(e for _, e in joined[: i + 1]) for i, w in enumerate(following)]
    widest = int(np.argmax(gaps))
    if gaps[widest] <= 0:
        return _rounded((-180, south, 180, north))
    if widest == len(joined) - 1:  # the gap lies behind the easternmost box
        west, east = joined[0][0], reach
    else:
        west, east = joined[widest + 1][0], joined[widest][1] + 360
    return _rounded((_wrapped(west), south, _wrapped(east), north))


def _to_degrees(crs: Any) -> tuple[Any, str]:
    """Return a transformer to longitude and latitude in degrees, and the name of the body."""
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(crs, "OGC:CRS84", always_xy=True), "Earth"
    except ProjError as error:
        own = crs.geodetic_crs
        body = None if own is None else _BODY.search(f"{own.name} {own.datum} {own.ellipsoid}".replace("_", " "))
        if own is None or body is None or not _counts_degrees(own):
            raise StoreError(
                f"the map's CRS ({crs.name}) has no tie to longitude and latitude on Earth, so a STAC Item cannot place it; "
                "leave --stac out"
            ) from error
        return Transformer.from_crs(crs, own, always_xy=True), body.group(1).capitalize()


def _counts_degrees(crs: Any) -> bool:
    return math.isclose(crs.axis_info[0].unit_conversion_factor, math.radians(1), rel_tol=1e-9)


def _outline(geobox: GeoBox, to_degrees: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], set[int]]:
    """Unwrapped longitudes and latitudes along the border, closed, and the poles (±1) inside it."""
    assert geobox.crs is not None  # the caller has looked
    steps = np.linspace(0, 1, _PER_SIDE + 1)[:-1]
    ones = np.ones_like(steps)
    cols = np.concatenate([steps, ones, 1 - steps, 0 * ones, [0]]) * geobox.width
    rows = np.concatenate([0 * ones, steps, ones, 1 - steps, [0]]) * geobox.height
    a, b, c, d, e, f = geobox.affine[:6]
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    lon, lat = (np.asarray(v, np.float64) for v in to_degrees.transform(x, y))
    if not (np.isfinite(lon) & np.isfinite(lat)).all():
        raise StoreError(
            f"part of the map lies outside the domain of its CRS ({geobox.crs.proj.name}), so its outline has no longitude "
            "and latitude; leave --stac out"
        )
    poles = set() if geobox.crs.geographic else {p for p in (-1, 1) if _holds_pole(geobox, to_degrees, p)}
    return np.rad2deg(np.unwrap(np.deg2rad(lon))) if poles or _jumps(lon) else lon, lat, poles


def _jumps(lon: NDArray[np.float64]) -> bool:
    return bool((np.abs(np.diff(lon)) > 180).any())


def _holds_pole(geobox: GeoBox, to_degrees: Any, pole: int) -> bool:
    """Whether a pole lies in the grid: its place there is known and leads back to it."""
    x, y = to_degrees.transform(0.0, 90.0 * pole, direction="INVERSE")
    if not (math.isfinite(x) and math.isfinite(y)):
        return False
    col, row = ~geobox.affine @ (x, y)
    edge = 1e-6 * max(geobox.width, geobox.height)
    inside = -edge <= col <= geobox.width + edge and -edge <= row <= geobox.height + edge
    return inside and _is_a_point(to_degrees, x, y, pole)


def _is_a_point(to_degrees: Any, x: float, y: float, pole: int) -> bool:
    """Whether a pole is a point; in cylindrical projections it is a line with a place for each longitude."""
    others = [to_degrees.transform(lon, 90.0 * pole, direction="INVERSE") for lon in (-120.0, 120.0)]
    return all(math.hypot(ox - x, oy - y) < 1e-3 for ox, oy in others)


def _around_pole(
    lon: NDArray[np.float64], lat: NDArray[np.float64], around: int, poles: set[int], south: float, north: float
) -> tuple[dict[str, object], list[float]]:
    """All longitudes: the outline cut open at 180° and closed along the pole; a rectangle where that is impossible."""
    import shapely

    whole = _rectangle(-180, south, 180, north)
    if abs(around) == 1 and len(poles) == 1:
        pole = 90.0 * next(iter(poles))
        order = np.argsort(((lon[:-1] + 180) % 360) - 180)
        inner_lon, inner_lat = (((lon[:-1] + 180) % 360) - 180)[order], lat[:-1][order]
        at_cut = float(np.interp(180, [inner_lon[-1], inner_lon[0] + 360], [inner_lat[-1], inner_lat[0]]))
        ring = [(-180, pole), (-180, at_cut), *zip(inner_lon, inner_lat, strict=True), (180, at_cut), (180, pole)]
        geometry = _polygons([ring]) if shapely.Polygon(ring).is_valid else whole
    else:
        geometry = whole
    return geometry, _rounded((-180, south, 180, north))


def _split(
    lon: NDArray[np.float64], lat: NDArray[np.float64], west: float, south: float, east: float, north: float
) -> tuple[dict[str, object], list[float]]:
    """Return a ring whose middle lies in −180..180 as one polygon, or as one on each side of the 180° meridian."""
    import shapely

    ring = shapely.simplify(shapely.Polygon(np.stack([lon, lat], 1)), min(_STRAIGHT, (east - west) / 1e3))
    parts = []
    for turn in (-360, 0, 360):
        part = shapely.intersection(ring, shapely.box(turn - 180, -90, turn + 180, 90))
        moved = shapely.transform(part, lambda points, turn=turn: points - (turn, 0))
        parts += [p for p in shapely.get_parts(moved) if p.geom_type == "Polygon" and p.area > 0]
    geometry = _polygons([list(p.exterior.coords) for p in parts])
    return geometry, _rounded((_wrapped(west), south, _wrapped(east), north))


def _polygons(rings: Sequence[Sequence[tuple[float, float]]]) -> dict[str, object]:
    import shapely

    shapes = [shapely.geometry.polygon.orient(shapely.Polygon(ring)) for ring in rings]
    rounded = [[[[round(float(v), _DIGITS) for v in point] for point in s.exterior.coords]] for s in shapes]
    if len(rounded) == 1:
        return {"type": "Polygon", "coordinates": rounded[0]}
    return {"type": "MultiPolygon", "coordinates": rounded}


def _rectangle(west: float, south: float, east: float, north: float) -> dict[str, object]:
    return _polygons([[(west, south), (east, south), (east, north), (west, north)]])


def _wrapped(lon: float) -> float:
    """Return a longitude in −180..180 of the same meridian; ±180 stay."""
    return lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(float(v), _DIGITS) for v in box]
