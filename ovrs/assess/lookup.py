"""Values of one raster at the pixel centres of another grid: the nearest pixel, whatever the CRS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ovrs.errors import OptionError
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

LARGEST = 1 << 25
"""Pixels of the other raster that are read at once."""


class Raster(Protocol):
    """What is looked up: a layer of a map, or a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return rows and columns, after any leading axes."""
        ...

    def __getitem__(self, selection: Any) -> Any: ...


class Lookup:
    """Nearest values of a raster on another grid."""

    def __init__(self, values: Raster, own: GeoBox, grid: GeoBox, nodata: int, told: str) -> None:
        """Take the raster and its grid, the other grid, and what stands for a place beyond the raster.

        Raises:
            OptionError: Only one of the two has a CRS, or no way leads from one to the other.
        """
        from pyproj import Transformer
        from pyproj.exceptions import ProjError

        self.values, self.own, self.grid, self.nodata = values, own, grid, nodata
        self.transformer: Any = None
        if (own.crs is None) != (grid.crs is None):
            raise OptionError(f"{told}: one of the two grids has a CRS and the other has none; they cannot be compared")
        if own.crs is not None and grid.crs is not None and own.crs != grid.crs:
            try:
                self.transformer = Transformer.from_crs(grid.crs.proj, own.crs.proj, always_xy=True)
            except ProjError as error:
                raise OptionError(f"{told}: no way leads between the two CRS ({error})") from error

    def read(self, window: Window) -> NDArray[Any]:
        """Values at the pixel centres of a window of the other grid, `(height, width)`."""
        rows, cols = self._places(window)
        height, width = self.values.shape[-2:]
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        if not inside.any():
            return np.full(window.shape, self.nodata)
        top, bottom = int(rows[inside].min()), int(rows[inside].max()) + 1
        left, right = int(cols[inside].min()), int(cols[inside].max()) + 1
        if (bottom - top) * (right - left) > LARGEST and max(window.shape) > 1:
            return self._in_parts(window)
        part = np.asarray(self.values[top:bottom, left:right])
        found = np.full(window.shape, self.nodata, np.promote_types(part.dtype, np.min_scalar_type(self.nodata)))
        found[inside] = part[rows[inside] - top, cols[inside] - left]
        return found

    def _in_parts(self, window: Window) -> NDArray[Any]:
        """Halve the longer side until each part of the raster is small enough."""
        if window.height >= window.width:
            half = window.height // 2
            parts = [
                Window(window.row_off, window.col_off, half, window.width),
                Window(window.row_off + half, window.col_off, window.height - half, window.width),
            ]
            return np.concatenate([self.read(p) for p in parts], axis=0)
        half = window.width // 2
        parts = [
            Window(window.row_off, window.col_off, window.height, half),
            Window(window.row_off, window.col_off + half, window.height, window.width - half),
        ]
        return np.concatenate([self.read(p) for p in parts], axis=1)

    def _places(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the raster under each pixel centre; −1 where there is no place."""
        across, down = np.meshgrid(
            np.arange(window.col_off, window.col_end) + 0.5, np.arange(window.row_off, window.row_end) + 0.5
        )
        return at(self.own, *_moved(self.grid.affine, across, down), self.transformer)


def at(
    grid: GeoBox, x: NDArray[np.float64], y: NDArray[np.float64], transformer: Any = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels of a grid that hold points; −1 where a point has no place in its CRS.

    Args:
        grid: The grid.
        x: First coordinates, in the CRS that `transformer` begins with, else in the grid's.
        y: Second coordinates.
        transformer: Of pyproj, into the CRS of the grid.
    """
    if transformer is not None:
        x, y = (np.asarray(v) for v in transformer.transform(x, y))
    known = np.isfinite(x) & np.isfinite(y)
    col, row = _moved(~grid.affine, np.where(known, x, 0.0), np.where(known, y, 0.0))
    cols = np.floor(np.clip(col + 1e-9, -1, grid.width)).astype(np.int64)
    rows = np.floor(np.clip(row + 1e-9, -1, grid.height)).astype(np.int64)
    return np.where(known, rows, -1), np.where(known, cols, -1)


def _moved(
    affine: Any, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f
