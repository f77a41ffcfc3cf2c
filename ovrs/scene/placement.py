"""Polygons of any CRS on the grid of a scene.

They are cut to the scene's surroundings in their own CRS first and densified, so that a world-wide polygon, the
antimeridian and a pole cannot spoil the reprojection.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from ovrs.scene.polygons import Layer

    Bounds = tuple[float, float, float, float]

_STEPS = 2000
"""Edges longer than this fraction of the scene's surroundings are divided before reprojection."""
_MARGIN = 0.05
"""Share of the scene's size that is kept around it."""


def areas_only(shape: Any) -> Any:
    """Return the polygonal part of a geometry."""
    import shapely

    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    pieces = (
        [areas_only(piece) for piece in shapely.get_parts(shape)] if shape.geom_type == "GeometryCollection" else []
    )
    return shapely.union_all(pieces) if pieces else shapely.Polygon()


class Placement:
    """Carries polygons of one CRS to a grid of another."""

    def __init__(self, geobox: GeoBox, layer: Layer) -> None:
        from pyproj import CRS, Transformer
        from pyproj.exceptions import ProjError

        assert geobox.crs is not None  # the caller has looked
        self.told = layer.told
        theirs, ours = layer.crs, CRS.from_wkt(geobox.crs.to_wkt())
        theirs = theirs.to_2d() if len(theirs.axis_info) == 3 else theirs
        self.same = bool(theirs == ours) or theirs.equals(ours, ignore_axis_order=True)
        self.turn, self.grid_turn = _full_turn(theirs), _full_turn(ours)
        try:
            self.forward = Transformer.from_crs(theirs, ours, always_xy=True)
            self.boxes = self._surroundings(geobox, Transformer.from_crs(ours, theirs, always_xy=True))
        except ProjError as error:
            raise OptionError(
                f"{self.told}: its CRS cannot be brought to the scene's: {str(error).splitlines()[0]}"
            ) from error
        self.grid = _grown(geobox.boundingbox)

    def _surroundings(self, geobox: GeoBox, back: Any) -> list[Bounds]:
        """left, bottom, right, top of the scene in the polygons' CRS, with a margin; longitudes may pass a half turn.

        Two boxes where the scene lies at both ends of a projection (Web Mercator at the antimeridian).
        """
        cols = np.linspace(-_MARGIN, 1 + _MARGIN, 41) * geobox.width
        rows = np.linspace(-_MARGIN, 1 + _MARGIN, 41) * geobox.height
        across, down = np.meshgrid(cols, rows)
        a, b, c, d, e, f = tuple(geobox.affine)[:6]
        x, y = a * across + b * down + c, d * across + e * down + f
        if not self.same:
            x, y = (np.asarray(v) for v in back.transform(x, y))
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            raise OptionError(f"{self.told}: the scene lies where the CRS of the area is not defined")
        x, y = x[known], y[known]
        if self.turn is None:
            return [_grown((part.min(), y.min(), part.max(), y.max())) for part in _clusters(x)]
        left, right, around = _longitudes(x, self.turn)
        bottom, top = float(y.min()), float(y.max())
        if around:  # the scene holds a pole: everything from its lowest latitude on
            top, bottom = (self.turn / 4, bottom) if top > 0 else (top, -self.turn / 4)
        return [_grown((left, bottom, right, top), limit=self.turn / 4)]

    def on_grid(self, shapes: NDArray[Any]) -> Iterator[Any]:
        """Yield the parts of polygons near the scene, in the CRS of the grid."""
        import shapely

        for box, shift in itertools.product(self.boxes, _shifts(self.turn)):
            longest = max(box[2] - box[0], box[3] - box[1]) / _STEPS
            moved = _moved(shapes, shift)
            near = moved[shapely.intersects(moved, shapely.box(*box))]
            if not near.size:
                continue
            cut = np.array([areas_only(s) for s in shapely.intersection(near, shapely.box(*box))], object)
            cut = cut[~shapely.is_empty(cut)]
            yield from self._projected(shapely.segmentize(cut, longest))

    def _projected(self, shapes: NDArray[Any]) -> Iterator[Any]:
        import shapely

        if not self.same and shapes.size:
            shapes = shapely.transform(shapes, self._project)
            shapes = shapely.make_valid(shapes)
        for shift in _shifts(self.grid_turn):
            moved = _moved(shapes, shift)
            for shape in shapely.intersection(moved, shapely.box(*self.grid)):
                yield areas_only(shape)

    def _project(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = self.forward.transform(coordinates[:, 0], coordinates[:, 1])
        found = np.column_stack([x, y])
        if not np.isfinite(found).all():
            raise OptionError(f"{self.told}: near the scene it holds places where the scene's CRS is not defined")
        return found


def _full_turn(crs: Any) -> float | None:
    """360 degrees in the unit of a geographic CRS; None for every other."""
    if not crs.is_geographic:
        return None
    return float(2 * math.pi / (crs.axis_info[0].unit_conversion_factor or math.radians(1)))


def _shifts(turn: float | None) -> tuple[float, ...]:
    return (0.0,) if turn is None else (0.0, turn, -turn)


def _moved(shapes: NDArray[Any], by: float) -> NDArray[Any]:
    """Geometries moved along the first axis."""
    import shapely

    return np.asarray(shapely.transform(shapes, lambda c: c + np.array([by, 0.0]))) if by else shapes


def _longitudes(x: NDArray[np.float64], turn: float) -> tuple[float, float, bool]:
    """Return the shortest interval of longitudes that holds all of `x`, and whether it goes all around."""
    order = np.sort(np.unique(np.mod(x, turn)))
    gaps = np.diff(np.append(order, order[0] + turn))
    widest = int(gaps.argmax())
    if gaps[widest] < turn / 4:
        return -turn / 2, turn / 2, True
    left = float(order[(widest + 1) % len(order)])
    right = left + float(turn - gaps[widest])
    back = turn * round((left + right) / 2 / turn)
    return left - back, right - back, False


def _clusters(x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """`x` in one piece, or in two where more than half of its range is empty."""
    order = np.sort(x)
    gaps = np.diff(order)
    widest = int(gaps.argmax())
    return [order[: widest + 1], order[widest + 1 :]] if gaps[widest] > (order[-1] - order[0]) / 2 else [order]


def _grown(bounds: Any, limit: float | None = None) -> Bounds:
    """Bounds with a margin; the second axis stays within `limit`."""
    left, bottom, right, top = (float(v) for v in bounds)
    across, up = _MARGIN * (right - left), _MARGIN * (top - bottom)
    low, high = bottom - up, top + up
    if limit is not None:
        low, high = max(low, -limit), min(high, limit)
    return left - across, low, right + across, high
