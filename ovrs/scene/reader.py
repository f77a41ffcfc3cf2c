"""Reading values and validity of a raster's windows: straight from the file, or warped onto another grid."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from ovrs.scene.channels import differs
from ovrs.scene.composed import open_composed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from ovrs.scene.channels import Channels

    Values = tuple[NDArray[Any], NDArray[np.bool_]]

_CACHE = 64 << 20
"""Bytes (rasterio passes numbers on as they are); small, as windows are read once."""


def environment(uri: str) -> rasterio.Env:
    """GDAL's settings for opening and for reading a scene: the same, so that side files count in both or in neither.

    Files beside a scene (masks, nodata, world files, headers) are found as GDAL does by default, whatever the process is told
    by environment variables. A URL with a query, such as a signed one, stands for one file alone.
    """
    alone = "?" in uri and ("://" in uri or uri.startswith("/vsi"))
    return rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR" if alone else "FALSE",
        GDAL_CACHEMAX=_CACHE,
        GDAL_NUM_THREADS="1",
        GDAL_HTTP_MERGE_CONSECUTIVE_RANGES="YES",
    )


_FILTERS = threading.Lock()
"""Filters of warnings belong to the process."""


class Reader(Protocol):
    """Windows of a grid as `(band, y, x)` values and `(y, x)` validity."""

    def read(self, window: RasterWindow, shape: tuple[int, int] | None = None) -> Values:
        """Read stored numbers `(band, y, x)` and validity `(y, x)` of a window, resampled to `shape` if given."""
        ...


def open_reader(uri: str, channels: Channels, geobox: GeoBox, resampling: str | None) -> Reader:
    """Open a raster for reading on a grid. To be called, and read from, inside `environment(uri)`.

    Args:
        uri: What GDAL can open.
        channels: What to read of it.
        geobox: The grid.
        resampling: How pixels come onto the grid; None if the grid is the raster's own, cropped or mirrored.

    Raises:
        RasterioError: Not readable.
    """
    with quiet():
        source = rasterio.open(uri)
        if resampling is not None:
            return _Warped(source, channels, geobox, resampling)
        mixed = len({source.dtypes[b - 1] for b in channels.bands}) > 1
        return (_Composed if mixed or channels.palette else _Straight)(source, channels, geobox)


@contextmanager
def quiet() -> Iterator[None]:
    """Without rasterio's warning of a missing georeference, which a scene is refused for, or was allowed to lack."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


class _OnGrid:
    """Windows of the grid as windows of a source with the same pixels, which may be stored mirrored."""

    def __init__(self, source: Any, channels: Channels, geobox: GeoBox) -> None:
        self._source, self._channels = source, channels
        own = source.transform
        col, row = (~own) @ (geobox.affine.c, geobox.affine.f)
        self._col, self._row = round(col), round(row)
        self._flip_x, self._flip_y = own.a * geobox.affine.a < 0, own.e * geobox.affine.e < 0

    def _there(self, window: RasterWindow) -> RasterWindow:
        col = self._col - window.col_off - window.width if self._flip_x else self._col + window.col_off
        row = self._row - window.row_off - window.height if self._flip_y else self._row + window.row_off
        return RasterWindow(col, row, window.width, window.height)

    def _back(self, values: Values) -> Values:
        step = (slice(None, None, -1 if self._flip_y else None), slice(None, None, -1 if self._flip_x else None))
        return values[0][:, *step], values[1][step]


class _Straight(_OnGrid):
    """The stored numbers."""

    def read(self, window: RasterWindow, shape: tuple[int, int] | None = None) -> Values:
        source, channels, there = self._source, self._channels, self._there(window)
        size = {} if shape is None else {"out_shape": (len(channels.bands), *shape)}
        data = source.read(list(channels.bands), window=there, **size)
        return self._back((data, self._valid(data, there, shape)))

    def _valid(self, data: NDArray[Any], window: RasterWindow, shape: tuple[int, int] | None) -> NDArray[np.bool_]:
        size = {} if shape is None else {"out_shape": shape}
        source, channels = self._source, self._channels
        valid: NDArray[np.bool_] | None = None
        for values, band, nodata in zip(data, channels.bands, channels.nodata, strict=True):
            found = differs(values, nodata)
            if channels.band_mask(source, band):
                mask = source.read_masks(band, window=window, **size) > 0
                found = mask if found is None else found & mask
            if found is None:  # nothing can make this band no data
                valid = None
                break
            valid = found if valid is None else valid | found
        valid = np.ones(data.shape[1:], np.bool_) if valid is None else valid
        if channels.shared_mask(source):
            valid &= source.read_masks(channels.bands[0], window=window, **size) > 0
        if channels.alpha is not None:
            valid &= source.read(channels.alpha, window=window, **size) > 0
        if data.dtype.kind == "f":
            valid &= np.isfinite(data).all(axis=0)
        return valid


class _Composed(_OnGrid):
    """The numbers that a composed view gives, on the source's own grid."""

    def __init__(self, source: Any, channels: Channels, geobox: GeoBox) -> None:
        super().__init__(source, channels, geobox)
        self._view = open_composed(source, channels)

    def read(self, window: RasterWindow, shape: tuple[int, int] | None = None) -> Values:
        return self._back(_read_with_alpha(self._view, self._there(window), shape))


class _Warped:
    """The numbers resampled onto the grid; pixels that are no data have no weight."""

    def __init__(self, source: Any, channels: Channels, geobox: GeoBox, resampling: str) -> None:
        base = open_composed(source, channels)
        placed = place_by_points(base) or base
        self._kept = (source, base, placed)
        self._view = WarpedVRT(
            placed,
            crs=None if geobox.crs is None else geobox.crs.to_wkt(),
            transform=geobox.affine,
            height=geobox.height,
            width=geobox.width,
            resampling=Resampling[resampling],
            warp_mem_limit=64,
            add_alpha=not _has_alpha(placed),
        )

    def read(self, window: RasterWindow, shape: tuple[int, int] | None = None) -> Values:
        return _read_with_alpha(self._view, window, shape)


def place_by_points(source: Any) -> WarpedVRT | None:
    """North-up view of a source that is placed by ground control points alone; None for every other source.

    GDAL uses the points only when it may choose the grid itself, so other grids are made from this view.
    """
    points, crs = source.gcps
    if not points or crs is None or not (source.crs is None or source.transform.is_identity):
        return None
    return WarpedVRT(source, src_crs=crs, crs=crs, add_alpha=not _has_alpha(source))


def _has_alpha(source: Any) -> bool:
    return ColorInterp.alpha in source.colorinterp


def _read_with_alpha(view: Any, window: RasterWindow, shape: tuple[int, int] | None) -> Values:
    """Values of all bands but an alpha band, which is the last, and where it is above zero."""
    alpha = _has_alpha(view)
    bands = list(view.indexes)[:-1] if alpha else list(view.indexes)
    sizes = ({}, {}) if shape is None else ({"out_shape": (len(bands), *shape)}, {"out_shape": shape})
    data = view.read(bands, window=window, **sizes[0])
    valid = np.ones(data.shape[1:], np.bool_)
    if alpha:
        valid &= view.read(view.count, window=window, **sizes[1]) > 0
    if data.dtype.kind == "f":
        valid &= np.isfinite(data).all(axis=0)
    return data, valid
