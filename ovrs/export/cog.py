"""Cloud Optimized GeoTIFF of the labels, with colours and class names that QGIS and ArcGIS read."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.shutil import copy as raster_copy
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform
from rasterio.windows import Window as RasterWindow

from ovrs import store
from ovrs.decide import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.errors import OptionError, StoreError
from ovrs.pyramid import strips

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK = 512
_TILED = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "IF_SAFER"}
_CACHE = 16 << 20
"""Bytes of GDAL's cache: blocks are written whole and copied once, so a larger one would only fill up."""


def write_cog(path: Path, out: Path, *, crs: str | None = None, resolution: float | None = None) -> Path:
    """Export the labels of a finished store as `out` (a COG) plus `out.aux.xml` (class names, attribute table).

    Streams in chunk rows; overviews take the most frequent class. The file appears only when it is complete.

    Args:
        path: `NAME.zarr`.
        out: `NAME.tif`.
        crs: Reproject to this CRS (`EPSG:25832`, WKT, …).
        resolution: Pixel size in units of the target CRS; coarser pixels take the most frequent class, others the nearest.

    Raises:
        StoreError: The store is not finished, or `out` cannot be written.
        OptionError: Reprojection is asked of a map without CRS, or the CRS is unknown.
    """
    group = store.open_complete(path)
    names, colours = legend(group)
    nodata = int(np.iinfo(store.array(group, "label").dtype).max)
    palette = {i: (*c, 255) for i, c in enumerate(colours)} | {nodata: (0, 0, 0, 0)} if nodata == 255 else None
    tags = {f"CLASS_{i}": name for i, name in enumerate(names)}
    _export(group, "label", out, nodata, palette, "class", tags, crs, resolution)
    out.with_name(out.name + ".aux.xml").write_text(
        attribute_table(names, colours, _counts(group, len(names))), "utf-8"
    )
    return out


def write_confidence(path: Path, out: Path, *, crs: str | None = None, resolution: float | None = None) -> Path:
    """Export the confidence as a COG of bytes: 0..200 stand for 0..1 (scale 0.005), 255 is no data (see `write_cog`)."""
    group = store.open_complete(path)
    _export(group, "confidence", out, CONFIDENCE_NODATA, None, "confidence", {}, crs, resolution)
    return out


def _export(
    group: Any,
    name: str,
    out: Path,
    nodata: int,
    palette: dict[int, tuple[int, int, int, int]] | None,
    title: str,
    tags: dict[str, str],
    crs: str | None,
    resolution: float | None,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = uuid.uuid4().hex[:8]
    plain, warped, cog = (out.with_name(f".{out.stem}.{stem}.{kind}.tif") for kind in ("plain", "warped", "cog"))
    try:
        with rasterio.Env(GDAL_NUM_THREADS="1", GDAL_CACHEMAX=_CACHE):
            _write_plain(group, name, plain, nodata)
            source = plain
            if crs is not None or resolution is not None:
                _warp(plain, warped, crs, resolution, mode=name == "label")
                source = warped
            with rasterio.open(source, "r+") as target:
                if palette is not None:
                    target.write_colormap(1, palette)
                target.set_band_description(1, title)
                target.update_tags(1, **tags)
                target.update_tags(SOFTWARE=f"ovrs {store.facts(group)['version']}")
                if name == "confidence":
                    target.scales = (1 / CONFIDENCE_SCALE,)
            raster_copy(
                source,
                cog,
                driver="COG",
                overview_resampling="MODE" if name == "label" else "AVERAGE",
                resampling="NEAREST",
                blocksize=_BLOCK,
                bigtiff="IF_SAFER",
                compress="deflate",
            )
    except rasterio.errors.RasterioError as error:
        cog.unlink(missing_ok=True)
        raise StoreError(f"writing {out} failed: {error}") from error
    finally:
        for leftover in (plain, warped):
            leftover.unlink(missing_ok=True)
            leftover.with_name(leftover.name + ".aux.xml").unlink(missing_ok=True)
    cog.replace(out)
    cog.with_name(cog.name + ".aux.xml").unlink(missing_ok=True)


def _write_plain(group: Any, name: str, plain: Path, nodata: int) -> None:
    """A tiled GeoTIFF, strip by strip."""
    values, geobox = store.array(group, name), store.geobox_of(group)
    profile = {
        "driver": "GTiff",
        "height": geobox.height,
        "width": geobox.width,
        "count": 1,
        "dtype": str(values.dtype),
        "nodata": nodata,
        "crs": None if geobox.crs is None else geobox.crs.to_wkt(),
        "transform": geobox.affine,
        **_TILED,
    }
    with rasterio.open(plain, "w", **profile) as target:
        for window in strips(values.shape, 4 * _BLOCK):
            part = np.asarray(values[window.row_off : window.row_end, window.col_off : window.col_end])
            target.write(part, 1, window=RasterWindow(window.col_off, window.row_off, window.width, window.height))


def _warp(plain: Path, warped: Path, crs: str | None, resolution: float | None, *, mode: bool) -> None:
    """Reproject a plain file, window by window."""
    with rasterio.open(plain) as source:
        if source.crs is None:
            raise OptionError("--crs and --resolution need a map with a CRS")
        try:
            target_crs = source.crs if crs is None else rasterio.crs.CRS.from_user_input(crs)
        except rasterio.errors.CRSError as error:
            raise OptionError(f"--crs {crs!r} is no CRS: {error}") from error
        place, width, height = calculate_default_transform(
            source.crs, target_crs, source.width, source.height, *source.bounds, resolution=resolution
        )
        coarser = resolution is not None and _metres(place, target_crs) > 1.01 * _metres(source.transform, source.crs)
        by = (Resampling.mode if mode else Resampling.average) if coarser else Resampling.nearest
        grid = {"crs": target_crs, "transform": place, "width": width, "height": height}
        profile = {**source.profile, **grid, **_TILED}
        with (
            WarpedVRT(source, resampling=by, warp_mem_limit=64, **grid) as vrt,
            rasterio.open(warped, "w", **profile) as out,
        ):
            for window in strips((height, width), 4 * _BLOCK):
                part = RasterWindow(window.col_off, window.row_off, window.width, window.height)
                out.write(vrt.read(1, window=part), 1, window=part)


def _metres(place: Any, crs: Any) -> float:
    return float(abs(place.a)) * (111_320.0 if crs.is_geographic else float(crs.linear_units_factor[1]))


def legend(group: Any) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Class names and RGB colours of a store."""
    attributes: dict[str, Any] = dict(store.array(group, "label").attrs)
    hexes = attributes["flag_colors"].split()
    return list(attributes["class_names"]), [(int(h[1:3], 16), int(h[3:5], 16), int(h[5:7], 16)) for h in hexes]


def _counts(group: Any, classes: int) -> list[int]:
    found = store.facts(group)["classes"]
    return [int(c["pixels"]) for c in found] or [0] * classes


def attribute_table(names: Sequence[str], colours: Sequence[tuple[int, int, int]], counts: Sequence[int]) -> str:
    """GDAL's PAM side file: category names and a raster attribute table. rasterio has no call for either."""
    fields = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Count", 0, 1))
    columns = "".join(
        f'    <FieldDefn index="{i}"><Name>{n}</Name><Type>{t}</Type><Usage>{u}</Usage></FieldDefn>\n'
        for i, (n, t, u) in enumerate(fields)
    )
    rows = ""
    for i, (name, colour, count) in enumerate(zip(names, colours, counts, strict=True)):
        cells = "".join(f"<F>{escape(str(v))}</F>" for v in (i, name, *colour, count))
        rows += f'    <Row index="{i}">{cells}</Row>\n'
    categories = "".join(f"    <Category>{escape(n)}</Category>\n" for n in names)
    return (
        '<PAMDataset>\n <PAMRasterBand band="1">\n  <CategoryNames>\n' + categories + "  </CategoryNames>\n"
        '  <GDALRasterAttributeTable tableType="thematic">\n'
        + columns
        + rows
        + "  </GDALRasterAttributeTable>\n </PAMRasterBand>\n</PAMDataset>\n"
    )
