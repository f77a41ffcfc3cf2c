"""The grid of a map is an `odc.geo.geobox.GeoBox`; this module adds the integer window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.errors import GridMismatchError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox


@dataclass(frozen=True, order=True)
class Window:
    """Pixel rectangle `[row_off, row_off + height) × [col_off, col_off + width)`. It may overhang the grid."""

    row_off: int
    col_off: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise OptionError(f"a window needs a positive size, got {self.height}x{self.width}")

    @property
    def row_end(self) -> int:
        return self.row_off + self.height

    @property
    def col_end(self) -> int:
        return self.col_off + self.width

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def intersect(self, other: Window) -> Window | None:
        """The common part, or None."""
        top, left = max(self.row_off, other.row_off), max(self.col_off, other.col_off)
        bottom, right = min(self.row_end, other.row_end), min(self.col_end, other.col_end)
        return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None

    def union(self, other: Window) -> Window:
        """The smallest window that holds both."""
        top, left = min(self.row_off, other.row_off), min(self.col_off, other.col_off)
        return Window(top, left, max(self.row_end, other.row_end) - top, max(self.col_end, other.col_end) - left)

    def relative_to(self, outer: Window) -> Window:
        """The same window counted from the corner of `outer`."""
        return Window(self.row_off - outer.row_off, self.col_off - outer.col_off, self.height, self.width)

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Row and column slices of this window inside an array that covers `outer`."""
        top, left = self.row_off - outer.row_off, self.col_off - outer.col_off
        if top < 0 or left < 0 or self.row_end > outer.row_end or self.col_end > outer.col_end:
            raise GridMismatchError(f"{self} does not lie inside {outer}")
        return slice(top, top + self.height), slice(left, left + self.width)


def pixel_size_m(geobox: GeoBox) -> tuple[float, float]:
    """Metres per pixel along x and y at the centre of the grid.

    Projected units are converted by the CRS's own unit; degrees by the ellipsoid (WGS 84 radii of curvature).
    """
    res_x, res_y = abs(geobox.affine.a), abs(geobox.affine.e)
    if geobox.crs is None:
        return res_x, res_y
    if not geobox.crs.geographic:
        factor = geobox.crs.proj.axis_info[0].unit_conversion_factor or 1.0
        return res_x * factor, res_y * factor
    _, latitude = geobox.affine @ (geobox.width / 2, geobox.height / 2)
    per_x, per_y = metres_per_degree(latitude)
    return res_x * per_x, res_y * per_y


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Length of one degree of longitude and of latitude in metres (WGS 84)."""
    a, e2 = 6378137.0, 0.00669437999014
    phi = math.radians(latitude)
    w = 1 - e2 * math.sin(phi) ** 2
    return math.radians(1) * a * math.cos(phi) / math.sqrt(w), math.radians(1) * a * (1 - e2) / w**1.5


def regrid(geobox: GeoBox, gsd: float) -> GeoBox:
    """The same footprint at `gsd` metres per pixel (per axis at the centre where the CRS is geographic)."""
    from odc.geo.geobox import GeoBox as Box

    if not gsd > 0:
        raise OptionError(f"--gsd must be a positive number of metres, got {gsd}")
    size_x, size_y = pixel_size_m(geobox)
    height = max(1, math.ceil(geobox.height * size_y / gsd - 1e-6))
    width = max(1, math.ceil(geobox.width * size_x / gsd - 1e-6))
    affine = geobox.affine @ geobox.affine.scale(gsd / size_x, gsd / size_y)
    return Box((height, width), affine, geobox.crs)


def crop_to_bounds(geobox: GeoBox, bounds: tuple[float, float, float, float]) -> GeoBox:
    """Part of a north-up grid that covers `bounds` (left, bottom, right, top in the grid's CRS), whole pixels.

    Raises:
        OptionError: The bounds are empty or do not touch the grid.
    """
    left, bottom, right, top = bounds
    if not (left < right and bottom < top):
        raise OptionError(f"bounds must be left,bottom,right,top with left < right and bottom < top, got {bounds}")
    inverse = ~geobox.affine
    corners = [inverse @ corner for corner in ((left, top), (right, bottom))]
    cols, rows = sorted(c[0] for c in corners), sorted(c[1] for c in corners)
    col0, col1 = max(0, math.floor(cols[0] + 1e-6)), min(geobox.width, math.ceil(cols[1] - 1e-6))
    row0, row1 = max(0, math.floor(rows[0] + 1e-6)), min(geobox.height, math.ceil(rows[1] - 1e-6))
    if col1 <= col0 or row1 <= row0:
        raise OptionError(f"the area {bounds} does not touch the scene, whose bounds are {tuple(geobox.boundingbox)}")
    return geobox[row0:row1, col0:col1]


def row_areas_m2(geobox: GeoBox, window: Window) -> NDArray[np.float64]:
    """True ground area of a pixel in each row of `window`, in square metres, `(height,)`.

    Degrees: by the ellipsoid, row by row. Projected: the nominal area divided by the projection's own areal scale at
    the window's centre (1 within a permille for UTM; cos² of the latitude for Web Mercator). Without a CRS: 1 per pixel.
    """
    if geobox.crs is None:
        return np.ones(window.height)
    if geobox.crs.geographic:
        rows = np.arange(window.row_off, window.row_end) + 0.5
        latitudes = geobox.affine.f + geobox.affine.e * rows
        per = [metres_per_degree(float(v)) for v in latitudes]
        return np.array([x * y for x, y in per]) * abs(geobox.affine.a * geobox.affine.e)
    size_x, size_y = pixel_size_m(geobox)
    return np.full(window.height, size_x * size_y / _areal_scale(geobox, window))


def _areal_scale(geobox: GeoBox, window: Window) -> float:
    from pyproj import Proj, Transformer
    from pyproj.exceptions import ProjError

    x, y = geobox.affine @ (window.col_off + window.width / 2, window.row_off + window.height / 2)
    assert geobox.crs is not None  # the caller has looked
    crs = geobox.crs.proj
    try:
        lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
        scale = float(Proj(crs).get_factors(lon, lat).areal_scale)
    except ProjError:  # outside the projection's domain
        return 1.0
    return scale if math.isfinite(scale) and scale > 0 else 1.0
