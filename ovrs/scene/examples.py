"""Labelled places of a scene: points or polygons with a class, on the grid of a map."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import OptionError
from ovrs.scene.polygons import open_layer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from ovrs.scene.polygons import Layer

OPTION = "--examples"
FIELDS = ("reference", "class", "label", "name")
"""Attributes that may hold the class, the first that is there; else the only one."""
PER_POLYGON = 16
"""Pixels that stand for a polygon, spread over it."""
MOST = 5000
"""Places in all; a hundred are plenty."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Pixels of a grid and the class that a person saw there."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    labels: NDArray[np.int64]
    """Class numbers."""
    features: NDArray[np.int64]
    """Number of the point or polygon that each pixel comes from."""

    @property
    def digest(self) -> str:
        """SHA-256 of places and classes, 16 digits: the same examples of a file that was moved give the same."""
        found = hashlib.sha256()
        for values in (self.rows, self.cols, self.labels):
            found.update(np.ascontiguousarray(values, "<i8").tobytes())
        return found.hexdigest()[:16]


def read_examples(geobox: GeoBox, source: str | Path, names: Sequence[str]) -> Places:
    """Read examples: points, and polygons by some of their pixels.

    Args:
        geobox: Grid of the map.
        source: Vector file, or `FILE|layer=NAME`. The class stands in an attribute of `FIELDS`, or in the only one.
        names: Classes of the map; case does not matter.

    Raises:
        OptionError: The file cannot be used, a class is none of the map's, or no example lies on the grid.
    """
    import shapely

    layer = open_layer(source, OPTION, placed=geobox.crs is not None)
    shapes = np.concatenate([*layer.geometries(), np.array([], object)])
    labels = _classes(layer, names)
    rows, cols, own, of = [], [], [], []
    for number, (shape, label) in enumerate(zip(_on_grid(geobox, layer, shapes), labels.tolist(), strict=True)):
        if shape is None or shape.is_empty or label < 0:
            continue
        for part in shapely.get_parts(shape):
            if part.geom_type not in ("Point", "Polygon"):
                raise OptionError(f"{layer.told} holds a {part.geom_type}; give points or polygons")
            y, x = _pixels(part)
            inside = (y >= 0) & (y < geobox.height) & (x >= 0) & (x < geobox.width)
            rows += y[inside].tolist()
            cols += x[inside].tolist()
            own += [label] * int(inside.sum())
            of += [number] * int(inside.sum())
    if not rows:
        raise OptionError(f"{layer.told}: no example with a class lies on the map")
    if len(rows) > MOST:
        raise OptionError(f"{layer.told} gives {len(rows)} places; {MOST} are the most, some ten a class are enough")
    return Places(rows=np.array(rows), cols=np.array(cols), labels=np.array(own), features=np.array(of))


def _classes(layer: Layer, names: Sequence[str]) -> NDArray[np.int64]:
    """Class number of each feature, −1 for an empty one."""
    attributes = layer.attributes()
    field = next((f for f in FIELDS if f in attributes), next(iter(attributes)) if len(attributes) == 1 else None)
    if field is None:
        raise OptionError(
            f"{layer.told}: no attribute holds a class; name it {FIELDS[1]!r} (it has: {', '.join(attributes) or 'none'})"
        )
    known = {name.strip().casefold(): index for index, name in enumerate(names)}
    found = []
    for value in attributes[field]:
        text = "" if value is None or value != value else str(value).strip()
        if text and text.casefold() not in known:
            raise OptionError(
                f"{layer.told}: {text!r} in attribute {field!r} is no class of the map; it has: {', '.join(names)}"
            )
        found.append(known[text.casefold()] if text else -1)
    return np.array(found, np.int64)


def _on_grid(geobox: GeoBox, layer: Layer, shapes: NDArray[Any]) -> list[Any]:
    """Geometries in pixels of the grid."""
    import shapely
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    back = ~geobox.affine
    way = None
    if geobox.crs is not None and layer.crs is not None and layer.crs != geobox.crs.proj:
        try:
            way = Transformer.from_crs(layer.crs, geobox.crs.proj, always_xy=True)
        except ProjError as error:
            raise OptionError(f"{layer.told}: its CRS cannot be brought to the scene's: {error}") from error

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points[:, 0], points[:, 1]
        if way is not None:
            x, y = (np.asarray(v) for v in way.transform(x, y))
        x, y = (np.where(np.isfinite(v), v, 1e300) for v in (x, y))
        return np.stack([back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f], 1)

    return [None if shape is None else shapely.transform(shape, moved) for shape in shapes]


def _pixels(shape: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixel under a point, or some of those whose centre lies in a polygon (at least one inside it)."""
    import shapely

    if shape.geom_type == "Point":
        points = np.array([[shape.x, shape.y]])
    else:
        left, top, right, bottom = shape.bounds
        step = max(1.0, (shape.area / PER_POLYGON) ** 0.5)
        x, y = np.meshgrid(np.arange(left + step / 2, right, step), np.arange(top + step / 2, bottom, step))
        inside = shapely.contains_xy(shape, x, y)
        points = np.stack([x[inside], y[inside]], 1)
        if not len(points):
            spot = shapely.point_on_surface(shape)
            points = np.array([[spot.x, spot.y]])
    whole = np.clip(np.floor(points), -2, 1 << 40).astype(np.int64)
    return whole[:, 1], whole[:, 0]
