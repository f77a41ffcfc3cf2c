"""The grid of a map is an `odc.geo.geobox.GeoBox`; this module adds the integer window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.errors import GridMismatchError, OptionError
from ovrs.scene import ground

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
        """The first row below the window."""
        return self.row_off + self.height

    @property
    def col_end(self) -> int:
        """The first column to the right of the window."""
        return self.col_off + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    def intersect(self, other: Window) -> Window | None:
        """Return the common part, or None."""
        top, left = max(self.row_off, other.row_off), max(self.col_off, other.col_off)
        bottom, right = min(self.row_end, other.row_end), min(self.col_end, other.col_end)
        return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None

    def union(self, other: Window) -> Window:
        """Return the smallest window that holds both."""
        top, left = min(self.row_off, other.row_off), min(self.col_off, other.col_off)
        return Window(top, left, max(self.row_end, other.row_end) - top, max(self.col_end, other.col_end) - left)

    def relative_to(self, outer: Window) -> Window:
        """Return the same window counted from the corner of `outer`."""
        return Window(self.row_off - outer.row_off, self.col_off - outer.col_off, self.height, self.width)

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Row and column slices of this window inside an array that covers `outer`."""
        top, left = self.row_off - outer.row_off, self.col_off - outer.col_off
        if top < 0 or left < 0 or self.row_end > outer.row_end or self.col_end > outer.col_end:
            raise GridMismatchError(f"{self} does not lie inside {outer}")
        return slice(top, top + self.height), slice(left, left + self.width)


_FINEST_REGRID = 100
"""How many times finer than its pixels a scene may be resampled."""

_SAME_SIZE = 0.01
"""Where a projection's metres differ less than this from metres on the ground, they are taken for the same."""


def pixel_size_m(geobox: GeoBox) -> tuple[float, float]:
    """Metres on the ground per pixel along x and y at the centre of the grid, on the ellipsoid of its CRS.

    Without a CRS: units of the transform. In a CRS without a place on Earth (a site grid): by its own unit.
    """
    if geobox.crs is None:
        return abs(geobox.affine.a), abs(geobox.affine.e)
    col, row = geobox.width / 2, geobox.height / 2
    if geobox.crs.geographic:
        per_x, per_y = ground.metres_per_unit(geobox.crs.proj, (geobox.affine @ (col, row))[1])
        return abs(geobox.affine.a) * per_x, abs(geobox.affine.e) * per_y
    return ground.pixel_size(geobox.crs.proj, geobox.affine, col, row)


def has_ground(geobox: GeoBox) -> bool:
    """Whether sizes and areas of this grid are those on the ground; otherwise they are in units of its CRS or transform."""
    return geobox.crs is not None and ground.is_known(
        geobox.crs.proj, geobox.affine, geobox.width / 2, geobox.height / 2
    )


def nominal_size_m(geobox: GeoBox) -> tuple[float, float]:
    """As `pixel_size_m`, but by the unit of the CRS where both agree within one percent: 0.3 m stay 0.3 m in UTM."""
    size = pixel_size_m(geobox)
    if geobox.crs is None or geobox.crs.geographic:
        return size
    unit = ground.unit(geobox.crs.proj)
    own = abs(geobox.affine.a) * unit, abs(geobox.affine.e) * unit
    return own if max(abs(o / s - 1) for o, s in zip(own, size, strict=True)) < _SAME_SIZE else size


def regrid(geobox: GeoBox, gsd: float) -> GeoBox:
    """Return the same footprint at `gsd` metres on the ground per pixel, at the centre of the grid.

    Raises:
        OptionError: `gsd` is no size, hundreds of times finer than the pixels, or coarser than the whole grid.
    """
    from odc.geo.geobox import GeoBox as Box

    if not (gsd > 0 and math.isfinite(gsd)):
        raise OptionError(f"--gsd must be a positive number of metres, got {gsd}")
    size_x, size_y = nominal_size_m(geobox)
    if gsd < min(size_x, size_y) / _FINEST_REGRID:
        raise OptionError(
            f"--gsd {gsd:g} is more than {_FINEST_REGRID} times finer than the scene's pixels of {min(size_x, size_y):.3g} m"
        )
    if gsd > max(geobox.width * size_x, geobox.height * size_y):
        raise OptionError(
            f"--gsd {gsd:g} is coarser than the whole scene of {geobox.width * size_x:.3g} x {geobox.height * size_y:.3g} m"
        )
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
    """Return the true ground area of a pixel in each row of `window`, in square metres, `(height,)`, on the ellipsoid of the CRS.

    Degrees and grads: exact, row by row, zero beyond the poles. Projected: as at the window's centre. Without a CRS: 1.
    """
    if geobox.crs is None:
        return np.ones(window.height)
    crs = geobox.crs.proj
    if geobox.crs.geographic:
        edges = geobox.affine.f + geobox.affine.e * np.arange(window.row_off, window.row_end + 1, dtype=np.float64)
        return ground.cell_areas(crs, edges, abs(geobox.affine.a))
    col, row = window.col_off + window.width / 2, window.row_off + window.height / 2
    return np.full(window.height, ground.pixel_area(crs, geobox.affine, col, row))
