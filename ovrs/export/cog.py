"""Cloud Optimized GeoTIFF of the labels, with colours and class names that QGIS and ArcGIS read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.shutil import copy as raster_copy
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.errors import OptionError, OutputError
from ovrs.export import target
from ovrs.export.product import CLASSES, CONFIDENCE, Kind, Product
from ovrs.export.rendering import rendered
from ovrs.export.warp import is_coarser, target_grid
from ovrs.store.cautions import SKETCH, is_sketch
from ovrs.store.codec import pixel_crc
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from odc.geo.geobox import GeoBox

    from ovrs.store.layout import Layer
    from ovrs.store.map import Colour, Map

_BLOCK = 512
_TILED = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "IF_SAFER"}
_CACHE = 16 << 20
"""Bytes of GDAL's cache: blocks are written whole and copied once, so a larger one would only fill up."""


@dataclass(frozen=True, kw_only=True)
class _Band:
    """One layer of a map as it becomes a raster."""

    values: Layer
    kind: Kind
    title: str
    nodata: int
    grid: GeoBox | None
    """Where it is reprojected to."""
    palette: dict[int, tuple[int, int, int, int]] | None = None
    tags: dict[str, str] = field(default_factory=dict)


def write_cog(
    mapped: Map, out: Path, *, crs: str | None = None, resolution: float | None = None, overwrite: bool = False
) -> Product:
    """Export the labels of a map as `out` (a COG) plus `out.aux.xml` (class names, attribute table).

    Streams in chunk rows; overviews take the most frequent class. The file appears only when it is complete.

    Args:
        mapped: The map.
        out: `NAME.tif`.
        crs: Reproject to this CRS (`EPSG:25832`, WKT, …).
        resolution: Pixel size in units of the target CRS; coarser pixels take the most frequent class, others the nearest.
        overwrite: Replace also a file that `ovrs` did not write.

    Raises:
        StoreError: The map is damaged, or `out` cannot be written.
        OptionError: `out` may not be replaced (see `target.check`), or `crs` or `resolution` do not fit the map.
    """
    target.check(mapped, out, CLASSES, overwrite=overwrite)
    nodata = mapped.nodata
    band = _Band(
        values=mapped.label,
        kind=CLASSES,
        title="class",
        nodata=nodata,
        grid=target_grid(mapped.grid, crs, resolution),
        palette={i: (*c, 255) for i, c in enumerate(mapped.colours)} | {nodata: (0, 0, 0, 0)}
        if nodata == 255
        else None,
        tags={f"CLASS_{i}": name for i, name in enumerate(mapped.names)},
    )
    made = _export(mapped, band, out)
    side = attribute_table(mapped.names, mapped.colours, [c.pixels for c in mapped.classes])
    target.write_text(out.with_name(out.name + ".aux.xml"), side)
    return made


def write_confidence(
    mapped: Map, out: Path, *, crs: str | None = None, resolution: float | None = None, overwrite: bool = False
) -> Product:
    """Export the confidence as a COG of bytes: 0..200 stand for 0..1 (scale 0.005), 255 is no data (see `write_cog`)."""
    target.check(mapped, out, CONFIDENCE, overwrite=overwrite)
    grid = target_grid(mapped.grid, crs, resolution)
    band = _Band(values=mapped.confidence, kind=CONFIDENCE, title="confidence", nodata=CONFIDENCE_NODATA, grid=grid)
    made = _export(mapped, band, out)
    out.with_name(out.name + ".aux.xml").unlink(
        missing_ok=True
    )  # of a raster that was here: its statistics are not ours
    return made


def _export(mapped: Map, band: _Band, out: Path) -> Product:
    with target.replaced(out) as cog:
        plain, warped = (cog.with_name(f"{cog.stem}.{kind}.tif") for kind in ("plain", "warped"))
        try:
            with rasterio.Env(GDAL_NUM_THREADS="1", GDAL_CACHEMAX=_CACHE):
                source, sent = plain, _write_plain(mapped.grid, band, plain)
                if band.grid is not None:
                    _check_pixels(plain, sent, out)
                    source, sent = warped, _warp(plain, warped, band, mapped.grid)
                said = {"OVRS_TREATMENT": mapped.note} if mapped.note else {}
                if is_sketch(mapped.record):
                    said["OVRS_CAUTION"] = SKETCH
                _describe(source, band, mapped.record.version, said)
                _copy_as_cog(source, cog, band)
                _check_pixels(cog, sent, out)
                grid = _grid_of(cog)
        except (RasterioError, CPLE_BaseError) as error:
            raise OutputError(f"{out} cannot be written: {error.__cause__ or error}") from error
    return Product(path=out, kind=band.kind, grid=grid)


def _parts(shape: tuple[int, int]) -> Iterator[RasterWindow]:
    for window in strips(shape, 4 * _BLOCK):
        yield RasterWindow(window.col_off, window.row_off, window.width, window.height)


def _write_plain(geobox: GeoBox, band: _Band, plain: Path) -> int:
    """Write a tiled GeoTIFF, strip by strip; returns the CRC-32 of its pixels."""
    values = band.values
    profile = {
        "driver": "GTiff",
        "height": geobox.height,
        "width": geobox.width,
        "count": 1,
        "dtype": str(values.dtype),
        "nodata": band.nodata,
        "crs": None if geobox.crs is None else geobox.crs.to_wkt(),
        "transform": geobox.affine,
        **_TILED,
    }
    sent = 0
    with rasterio.open(plain, "w", **profile) as raster:
        for part in _parts((geobox.height, geobox.width)):
            rows, cols = part.toslices()
            pixels = np.ascontiguousarray(values[rows, cols])
            sent = pixel_crc((pixels,), sent)
            raster.write(pixels, 1, window=part)
    return sent


def _warp(plain: Path, warped: Path, band: _Band, own: GeoBox) -> int:
    """Reproject a plain file, window by window; returns the CRC-32 of the new pixels.

    Raises:
        OptionError: The map has valid pixels and none of them arrives.
    """
    goal = band.grid
    assert goal is not None  # the caller has looked
    assert goal.crs is not None  # `target_grid` gives one
    coarse = Resampling.mode if band.kind is CLASSES else Resampling.average
    by = coarse if is_coarser(goal, own) else Resampling.nearest
    grid = {
        "crs": rasterio.crs.CRS.from_wkt(goal.crs.to_wkt()),
        "transform": goal.affine,
        "width": goal.width,
        "height": goal.height,
    }
    sent, arrived = 0, False
    with (
        rasterio.open(plain) as source,
        WarpedVRT(source, resampling=by, warp_mem_limit=64, **grid) as vrt,
        rasterio.open(warped, "w", **{**source.profile, **grid, **_TILED}) as out,
    ):
        for part in _parts((goal.height, goal.width)):
            pixels = np.ascontiguousarray(vrt.read(1, window=part))
            arrived = arrived or bool((pixels != band.nodata).any())
            sent = pixel_crc((pixels,), sent)
            out.write(pixels, 1, window=part)
        if not arrived and any((source.read(1, window=p) != band.nodata).any() for p in _parts(source.shape)):
            raise OptionError(
                f"no pixel of the map arrives in {goal.crs.proj.name}; choose another --crs or --resolution"
            )
    return sent


def _check_pixels(raster: Path, sent: int, out: Path) -> None:
    """Read a raster back: GDAL does not always say that a disk is full.

    Raises:
        OutputError: Other pixels than those that were written.
    """
    found = 0
    with rasterio.open(raster) as source:
        for part in _parts(source.shape):
            found = pixel_crc((source.read(1, window=part),), found)
    if found != sent:
        raise OutputError(f"{out} cannot be written: not all pixels reached the disk; is it full?")


def _describe(source: Path, band: _Band, version: str, said: Mapping[str, str]) -> None:
    with rasterio.open(source, "r+") as raster:
        if band.palette is not None:
            raster.write_colormap(1, band.palette)
        raster.set_band_description(1, band.title)
        raster.update_tags(1, **band.tags)
        raster.update_tags(SOFTWARE=f"ovrs {version}", **said)
        if band.kind is CONFIDENCE:
            raster.scales = (1 / CONFIDENCE_SCALE,)


def _copy_as_cog(source: Path, cog: Path, band: _Band) -> None:
    raster_copy(
        source,
        cog,
        driver="COG",
        overview_resampling="MODE" if band.kind is CLASSES else "AVERAGE",
        resampling="NEAREST",
        blocksize=_BLOCK,
        bigtiff="IF_SAFER",
        compress="deflate",
    )


def _grid_of(raster: Path) -> GeoBox:
    """Grid of a raster file as its readers find it."""
    from odc.geo.geobox import GeoBox as Box

    with rasterio.open(raster) as source:
        return Box(source.shape, source.transform, None if source.crs is None else source.crs.to_wkt())


FIELDS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Count", 0, 1))
"""Columns of the attribute table with GDAL's numbers of their type and usage."""


def attribute_table(names: Sequence[str], colours: Sequence[Colour], counts: Sequence[int]) -> str:
    """Return GDAL's PAM side file: category names and a raster attribute table. rasterio has no call for either."""
    return rendered("raster.aux.xml", classes=list(zip(names, colours, counts, strict=True)), fields=FIELDS)
