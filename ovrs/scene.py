"""A raster as the engine sees it: a north-up grid, 8-bit RGB windows and a validity mask."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from ovrs.errors import OptionError, SceneReadError
from ovrs.grid import Window, crop_to_bounds, pixel_size_m, regrid
from ovrs.radiometry import Stretch, measure_stretch, to_rgb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ovrs.options import SceneOptions

_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 256, "GDAL_NUM_THREADS": "1"}
_SAMPLE_SIDE = 1024
"""Longest side of the decimated read that stretch limits come from."""


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
            raise SceneReadError(f"reading {window} of {self.uri} failed: {error}. Is the file complete and reachable?") from error
        pixels = self.stretch.apply(bands) if self.stretch else bands.astype(np.uint8)
        if self.aoi is not None:
            valid &= self._inside(window)
        rgb = to_rgb(pixels)
        rgb[:, ~valid] = 0
        return Pixels(rgb, valid)

    def _read_raw(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        raster = RasterWindow(window.col_off, window.row_off, window.width, window.height)
        with rasterio.Env(**_GDAL):
            return _read_valid(self._handle(), self.bands, self.alpha, raster, None)

    def _handle(self) -> Any:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            source = rasterio.open(self.uri)
            handle = source
            if self.warp or self.nodata_override:
                handle = WarpedVRT(source, **_vrt_options(source, self.geobox, self.resampling, self.nodata, self.nodata_override))
            elif self.geobox.shape != source.shape:
                handle = _Offset(source, self.geobox)
            self._local.handle, self._local.source = handle, source
        return handle

    def _inside(self, window: Window) -> NDArray[np.bool_]:
        from rasterio.features import rasterize
        from shapely import from_wkt

        part = self.geobox[window.row_off : window.row_end, window.col_off : window.col_end]
        inside = rasterize([(from_wkt(self.aoi), 1)], out_shape=window.shape, transform=part.affine, fill=0, dtype="uint8")
        return np.asarray(inside == 1)

    def decimated(self, side: int) -> Pixels:
        """The whole scene, at most `side` pixels along its longer side (nearest overview; for quicklooks)."""
        shape = _decimated_shape(self.geobox.shape, side)
        with rasterio.Env(**_GDAL):
            whole = RasterWindow(0, 0, self.geobox.width, self.geobox.height)
            bands, valid = _read_valid(self._handle(), self.bands, self.alpha, whole, shape)
        pixels = to_rgb(self.stretch.apply(bands) if self.stretch else bands.astype(np.uint8))
        return Pixels(pixels, valid)


class _Offset:
    """A source dataset shifted to the origin of a cropped grid on the same pixels."""

    def __init__(self, source: Any, geobox: GeoBox) -> None:
        col, row = (~source.transform) * (geobox.affine.c, geobox.affine.f)
        self._source, self._row, self._col = source, round(row), round(col)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def _shift(self, window: RasterWindow) -> RasterWindow:
        return RasterWindow(window.col_off + self._col, window.row_off + self._row, window.width, window.height)

    def read(self, indexes: Any, window: RasterWindow, **kwargs: Any) -> Any:
        return self._source.read(indexes, window=self._shift(window), **kwargs)

    def read_masks(self, indexes: Any, window: RasterWindow, **kwargs: Any) -> Any:
        return self._source.read_masks(indexes, window=self._shift(window), **kwargs)


def open_scene(uri: str | Path, options: SceneOptions) -> RasterScene:
    """Open a raster and settle its grid, bands, validity rule and stretch.

    Raises:
        SceneReadError: Not readable, or no georeference (the message names the way out).
        OptionError: Bands, bounds or area of interest do not fit the raster.
    """
    with _opened(uri) as source:
        bands, alpha = _choose_bands(source, options.bands)
        nodata = options.nodata if options.nodata is not None else source.nodata
        geobox, warp = _settle_grid(source, options)
        geobox, aoi = _restrict(geobox, options)
        resampling = "average" if _is_coarser(source, geobox) else "bilinear"
        scene = RasterScene(
            uri=str(uri), geobox=geobox, bands=bands, alpha=alpha, warp=warp, resampling=resampling, nodata=nodata,
            nodata_override=options.nodata is not None and options.nodata != source.nodata, stretch=None, aoi=aoi, source=_facts(source, uri),
        )
        needs_stretch = options.stretch or any(source.dtypes[b - 1] != "uint8" for b in bands)
    return _with_stretch(scene, options.stretch or (2.0, 98.0)) if needs_stretch else scene


def _with_stretch(scene: RasterScene, percentiles: tuple[float, float]) -> RasterScene:
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise OptionError(f"--stretch needs two rising percentiles in 0..100, got {percentiles}")
    shape = _decimated_shape(scene.geobox.shape, _SAMPLE_SIDE)
    with rasterio.Env(**_GDAL):
        whole = RasterWindow(0, 0, scene.geobox.width, scene.geobox.height)
        bands, valid = _read_valid(scene._handle(), scene.bands, scene.alpha, whole, shape)
    state = {**scene.__getstate__(), "stretch": measure_stretch(bands, valid, percentiles)}
    return RasterScene(**state)


@contextmanager
def _opened(uri: str | Path) -> Iterator[Any]:
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # we report it ourselves, as an error with a way out
            source = rasterio.open(uri)
    except RasterioError as error:
        raise SceneReadError(f"cannot open {uri} as a raster: {error}") from error
    with source:
        if source.count == 0:
            raise SceneReadError(f"{uri} opens without bands; name one of its sub-datasets: {', '.join(source.subdatasets) or 'none found'}")
        yield source


def _choose_bands(source: Any, wanted: tuple[int, ...] | None) -> tuple[tuple[int, ...], int | None]:
    interpretation = list(source.colorinterp)
    alpha = interpretation.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interpretation else None
    colour = [i + 1 for i in range(source.count) if i + 1 != alpha]
    if wanted is not None:
        if len(wanted) not in (1, 3) or any(not 1 <= b <= source.count for b in wanted):
            raise OptionError(f"--bands takes one or three numbers in 1..{source.count} (this raster's bands), got {','.join(map(str, wanted))}")
        return tuple(wanted), alpha
    by_name = [interpretation.index(c) + 1 for c in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) if c in interpretation]
    if len(by_name) == 3:
        return tuple(by_name), alpha
    return (tuple(colour[:3]) if len(colour) >= 3 else (colour[0],)), alpha


def _settle_grid(source: Any, options: SceneOptions) -> tuple[GeoBox, bool]:
    """The north-up grid to work on, and whether pixels must be resampled to get there."""
    gcps, gcp_crs = source.gcps
    transform, crs = source.transform, source.crs
    ungeoreferenced = crs is None or transform.is_identity
    if ungeoreferenced and gcps and gcp_crs is not None:
        with WarpedVRT(source, src_crs=gcp_crs, crs=gcp_crs) as warped:
            geobox, warp = GeoBox(warped.shape, warped.transform, gcp_crs.to_wkt()), True
    elif ungeoreferenced:
        if not options.allow_ungeoreferenced:
            lacking = "CRS" if crs is None else "transform"
            raise SceneReadError(f"{source.name} has no {lacking}, so a map of it has no place on the ground. Add one (gdal_edit -a_srs/-a_ullr), "
                                 f"or pass --allow-ungeoreferenced to map it on its pixel grid")
        if options.gsd is not None:
            raise OptionError("--gsd needs a georeferenced scene: without one the size of a pixel is unknown")
        geobox, warp = GeoBox(source.shape, transform, None if crs is None else crs.to_wkt()), False
    elif transform.b == 0 and transform.d == 0 and transform.a > 0 and transform.e < 0:
        geobox, warp = GeoBox(source.shape, transform, crs.to_wkt()), False
    else:  # rotated, sheared or south-up
        with WarpedVRT(source, crs=crs) as warped:
            geobox, warp = GeoBox(warped.shape, warped.transform, crs.to_wkt()), True
    if options.gsd is not None:
        here = pixel_size_m(geobox)
        if max(abs(size / options.gsd - 1) for size in here) > 1e-6:
            geobox, warp = regrid(geobox, options.gsd), True
    return geobox, warp


def _restrict(geobox: GeoBox, options: SceneOptions) -> tuple[GeoBox, str | None]:
    if options.bbox is not None:
        geobox = crop_to_bounds(geobox, options.bbox)
    if options.aoi is None:
        return geobox, None
    import geopandas

    if not options.aoi.exists():
        raise OptionError(f"--aoi {options.aoi} does not exist")
    if geobox.crs is None:
        raise OptionError("--aoi needs a georeferenced scene")
    frame = geopandas.read_file(options.aoi)
    if frame.crs is None:
        raise OptionError(f"--aoi {options.aoi} has no CRS; set one so that it can be placed on the scene")
    shape = frame.to_crs(geobox.crs.to_wkt()).geometry.union_all()
    if shape.is_empty:
        raise OptionError(f"--aoi {options.aoi} holds no polygon")
    return crop_to_bounds(geobox, shape.bounds), shape.wkt


def _is_coarser(source: Any, geobox: GeoBox) -> bool:
    if source.crs is None or source.transform.is_identity:
        return False
    own = abs(source.transform.a * source.transform.e - source.transform.b * source.transform.d) ** 0.5
    return abs(geobox.affine.a * geobox.affine.e) ** 0.5 > 1.2 * own


def _vrt_options(source: Any, geobox: GeoBox, resampling: str, nodata: float | None, override: bool) -> dict[str, Any]:
    gcps, gcp_crs = source.gcps
    options: dict[str, Any] = {"crs": None if geobox.crs is None else geobox.crs.to_wkt(), "transform": geobox.affine, "height": geobox.height,
                               "width": geobox.width, "resampling": Resampling[resampling], "warp_mem_limit": 64}
    if source.crs is None and gcps:
        options["src_crs"] = gcp_crs
    if override:
        options["src_nodata"] = nodata
    if nodata is not None:
        options["nodata"] = nodata
    elif ColorInterp.alpha not in source.colorinterp:
        options["add_alpha"] = True  # otherwise pixels outside the source would be valid zeros
    return options


def _read_valid(handle: Any, bands: tuple[int, ...], alpha: int | None, window: RasterWindow,
                shape: tuple[int, int] | None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
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


def _decimated_shape(shape: tuple[int, int], side: int) -> tuple[int, int]:
    factor = max(1.0, max(shape) / side)
    return max(1, round(shape[0] / factor)), max(1, round(shape[1] / factor))


def _facts(source: Any, uri: str | Path) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": Path(str(uri)).name, "driver": source.driver, "height": source.height, "width": source.width, "count": source.count,
        "dtypes": list(source.dtypes), "crs": None if source.crs is None else source.crs.to_string(), "transform": list(source.transform)[:6],
        "nodata": None if source.nodata is None else repr(source.nodata),
    }
    path = Path(str(uri))
    if path.is_file():
        stat = path.stat()
        facts |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "head_sha256": _head_hash(path)}
    return facts


def _head_hash(path: Path, size: int = 1 << 20) -> str:
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(size)).hexdigest()
