"""A raster as the engine sees it: a north-up grid, 8-bit RGB windows and a validity mask."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from ovrs import identity
from ovrs.errors import SceneReadError, told
from ovrs.radiometry import Stretch, to_rgb
from ovrs.redact import redacted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from ovrs.grid import Window
    from ovrs.identity import Origin


GDAL_SETTINGS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 64 << 20, "GDAL_NUM_THREADS": "1"}
"""The cache is in bytes here (rasterio passes numbers on as they are), small because windows are read once."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """One window of a scene."""

    rgb: NDArray[np.uint8]
    """`(3, height, width)`, 0 where not valid."""
    valid: NDArray[np.bool_]
    """`(height, width)`, True = valid."""


class SceneSource(Protocol):
    """What the engine needs of a scene."""

    @property
    def geobox(self) -> GeoBox: ...

    def read(self, window: Window) -> Pixels: ...


@dataclass(frozen=True)
class RasterScene:
    """Any raster GDAL can read. Thread-safe: each thread opens its own handle. Pickles as its fields."""

    uri: str
    geobox: GeoBox
    bands: tuple[int, ...]
    alpha: int | None
    warp: bool
    resampling: str
    nodata: float | None
    nodata_override: bool
    stretch: Stretch | None
    aoi: str | None
    """The area of interest as WKT in the CRS of the grid."""
    source: dict[str, Any]
    """Facts about the file for provenance and digest."""
    origin: Origin | None = None
    """What the file's bytes were when the scene was opened."""

    def __repr__(self) -> str:
        return f"RasterScene({redacted(self.uri)!r})"

    def require_unchanged(self) -> None:
        """Refuse to go on with a file that is no longer the one that was opened (errors as `Origin.require_unchanged`)."""
        if self.origin is not None:
            self.origin.require_unchanged()

    @cached_property
    def _local(self) -> threading.local:
        return threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def read(self, window: Window) -> Pixels:
        """Read one window of the grid.

        Raises:
            SceneReadError: GDAL could not deliver the pixels; the message names file and window.
        """
        try:
            bands, valid = self._read_raw(window)
        except RasterioError as error:
            raise SceneReadError(
                f"reading {window} of {self.uri} failed: {told(error)}. Is the file complete and reachable?"
            ) from error
        pixels = self.stretch.apply(bands) if self.stretch else bands.astype(np.uint8)
        if self.aoi is not None:
            valid &= self._inside(window)
        rgb = to_rgb(pixels)
        rgb[:, ~valid] = 0
        return Pixels(rgb, valid)

    def _read_raw(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        raster = RasterWindow(window.col_off, window.row_off, window.width, window.height)
        with rasterio.Env(**GDAL_SETTINGS):
            return read_valid(self.handle(), self.bands, self.alpha, raster, None)

    def handle(self) -> Any:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            identity.forget_cached(self.uri)  # another job of this process may have read another scene there
            source = rasterio.open(self.uri)
            base = ground_points_vrt(source, self.nodata) or source
            handle = base
            if self.warp or self.nodata_override:
                if not _same_grid(base, self.geobox) or self.nodata_override:
                    handle = WarpedVRT(
                        base, **_vrt_options(base, self.geobox, self.resampling, self.nodata, self.nodata_override)
                    )
            elif self.geobox.shape != source.shape:
                handle = _Offset(source, self.geobox)
            self._local.handle, self._local.source = handle, (source, base)
        return handle

    def _inside(self, window: Window) -> NDArray[np.bool_]:
        from rasterio.features import rasterize
        from shapely import from_wkt

        part = self.geobox[window.row_off : window.row_end, window.col_off : window.col_end]
        inside = rasterize(
            [(from_wkt(self.aoi), 1)], out_shape=window.shape, transform=part.affine, fill=0, dtype="uint8"
        )
        return np.asarray(inside == 1)

    def decimated(self, side: int) -> Pixels:
        """The whole scene, at most `side` pixels along its longer side (nearest overview; for quicklooks)."""
        whole = RasterWindow(0, 0, self.geobox.width, self.geobox.height)
        return self._thinned(whole, decimated_shape(self.geobox, side))

    def decimated_window(self, window: Window, factor: int) -> Pixels:
        """One window with `factor` times fewer pixels per side, at least one (for viewers)."""
        raster = RasterWindow(window.col_off, window.row_off, window.width, window.height)
        return self._thinned(raster, (-(-window.height // factor), -(-window.width // factor)))

    def _thinned(self, window: RasterWindow, shape: tuple[int, int]) -> Pixels:
        with rasterio.Env(**GDAL_SETTINGS):
            bands, valid = read_valid(self.handle(), self.bands, self.alpha, window, shape)
        return Pixels(to_rgb(self.stretch.apply(bands) if self.stretch else bands.astype(np.uint8)), valid)


class _Offset:
    """A source dataset shifted to the origin of a cropped grid on the same pixels."""

    def __init__(self, source: Any, geobox: GeoBox) -> None:
        col, row = (~source.transform) @ (geobox.affine.c, geobox.affine.f)
        self._source, self._row, self._col = source, round(row), round(col)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def _shift(self, window: RasterWindow) -> RasterWindow:
        return RasterWindow(window.col_off + self._col, window.row_off + self._row, window.width, window.height)

    def read(self, indexes: Any, window: RasterWindow, **kwargs: Any) -> Any:
        return self._source.read(indexes, window=self._shift(window), **kwargs)

    def read_masks(self, indexes: Any, window: RasterWindow, **kwargs: Any) -> Any:
        return self._source.read_masks(indexes, window=self._shift(window), **kwargs)


def ground_points_vrt(source: Any, nodata: float | None) -> WarpedVRT | None:
    """North-up view of a source that is placed by ground control points alone; None for every other source.

    GDAL uses the points only when it may choose the grid itself, so other grids are made from this view.
    """
    points, crs = source.gcps
    if not points or crs is None or not (source.crs is None or source.transform.is_identity):
        return None
    return WarpedVRT(source, src_crs=crs, crs=crs, **_outside(source, nodata))


def _same_grid(source: Any, geobox: GeoBox) -> bool:
    return bool(source.shape == tuple(geobox.shape) and source.transform.almost_equals(geobox.affine))


def _vrt_options(source: Any, geobox: GeoBox, resampling: str, nodata: float | None, override: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "crs": None if geobox.crs is None else geobox.crs.to_wkt(),
        "transform": geobox.affine,
        "height": geobox.height,
        "width": geobox.width,
        "resampling": Resampling[resampling],
        "warp_mem_limit": 64,
        **_outside(source, nodata),
    }
    return options | ({"src_nodata": nodata} if override else {})


def _outside(source: Any, nodata: float | None) -> dict[str, Any]:
    """How pixels outside the source are told apart from valid zeros."""
    if nodata is not None:
        return {"nodata": nodata}
    return {} if ColorInterp.alpha in source.colorinterp else {"add_alpha": True}


def read_valid(
    handle: Any, bands: tuple[int, ...], alpha: int | None, window: RasterWindow, shape: tuple[int, int] | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    out = {} if shape is None else {"out_shape": (len(bands), *shape)}
    data = handle.read(list(bands), window=window, **out)
    masks = handle.read_masks(list(bands), window=window, **out)
    valid = (masks > 0).any(axis=0)
    added = handle.count if isinstance(handle, WarpedVRT) and ColorInterp.alpha in handle.colorinterp else None
    alpha = alpha or added
    if alpha is not None and not any(MaskFlags.alpha in handle.mask_flag_enums[b - 1] for b in bands):
        single = {} if shape is None else {"out_shape": shape}
        valid &= handle.read(alpha, window=window, **single) > 0
    if data.dtype.kind == "f":
        valid &= np.isfinite(data).all(axis=0)
    return data, np.asarray(valid)


def decimated_shape(geobox: GeoBox, side: int) -> tuple[int, int]:
    factor = max(1.0, max(geobox.height, geobox.width) / side)
    return max(1, round(geobox.height / factor)), max(1, round(geobox.width / factor))
