"""Cloud Optimized GeoTIFF of the labels, with colours and class names that QGIS and ArcGIS read."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from rasterio.shutil import copy as raster_copy
from rasterio.windows import Window as RasterWindow

from ovrs import store
from ovrs.errors import StoreError
from ovrs.pyramid import strips

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK = 512
_CACHE = 16 << 20
"""Bytes of GDAL's cache: blocks are written whole and copied once, so a larger one would only fill up."""


def write_cog(path: Path, out: Path) -> Path:
    """Export the labels of a finished store as `out` (a COG) plus `out.aux.xml` (class names, attribute table).

    Streams in chunk rows; overviews take the most frequent class. The file appears only when it is complete.

    Raises:
        StoreError: The store is not finished, or `out` cannot be written.
    """
    group = store.open_complete(path)
    label = store.array(group, "label")
    names, colours = legend(group)
    geobox = store.geobox_of(group)
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = uuid.uuid4().hex[:8]
    plain, cog = out.with_name(f".{out.stem}.{stem}.plain.tif"), out.with_name(f".{out.stem}.{stem}.cog.tif")
    nodata = int(np.iinfo(label.dtype).max)
    profile = {
        "driver": "GTiff",
        "height": geobox.height,
        "width": geobox.width,
        "count": 1,
        "dtype": str(label.dtype),
        "nodata": nodata,
        "crs": None if geobox.crs is None else geobox.crs.to_wkt(),
        "transform": geobox.affine,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "bigtiff": "IF_SAFER",
    }
    try:
        with rasterio.Env(GDAL_NUM_THREADS="1", GDAL_CACHEMAX=_CACHE):
            with rasterio.open(plain, "w", **profile) as target:
                if label.dtype == np.uint8:
                    target.write_colormap(1, {i: (*c, 255) for i, c in enumerate(colours)} | {nodata: (0, 0, 0, 0)})
                target.set_band_description(1, "class")
                target.update_tags(1, **{f"CLASS_{i}": name for i, name in enumerate(names)})
                target.update_tags(SOFTWARE=f"ovrs {store.facts(group)['version']}")
                for window in strips(label.shape, 4 * _BLOCK):
                    values = np.asarray(label[window.row_off : window.row_end, window.col_off : window.col_end])
                    target.write(
                        values, 1, window=RasterWindow(window.col_off, window.row_off, window.width, window.height)
                    )
            raster_copy(
                plain,
                cog,
                driver="COG",
                overview_resampling="MODE",
                resampling="NEAREST",
                blocksize=_BLOCK,
                bigtiff="IF_SAFER",
                compress="deflate",
            )
    except rasterio.errors.RasterioError as error:
        cog.unlink(missing_ok=True)
        raise StoreError(f"writing {out} failed: {error}") from error
    finally:
        plain.unlink(missing_ok=True)
        plain.with_name(plain.name + ".aux.xml").unlink(missing_ok=True)
    cog.replace(out)
    cog.with_name(cog.name + ".aux.xml").unlink(missing_ok=True)
    out.with_name(out.name + ".aux.xml").write_text(
        attribute_table(names, colours, _counts(group, len(names))), "utf-8"
    )
    return out


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
