"""Areas per class in hectares, for the whole map or for every zone of a polygon file. True ground areas in any CRS."""

from __future__ import annotations

import csv
import logging
import re
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.errors import OptionError
from ovrs.export import target
from ovrs.export.marks import PARQUET_KEY, SURE_COLUMN, TABLE_COLUMNS
from ovrs.export.product import TABLE
from ovrs.names import shown
from ovrs.scene.aoi import zones as polygons_on_grid
from ovrs.scene.grid import row_areas_m2
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ovrs.store.map import Map

log = logging.getLogger(__name__)

BLOCK = 2048
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]+)?")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters, also in full width, by which spreadsheets know a formula; tabs and line ends are gone before."""


AreaRow = TypedDict(
    "AreaRow",
    {
        "zone": str,
        "class": str,
        "pixels": int,
        "hectares": float,
        "percent": float,
        "confidence": NotRequired[float | None],
    },
)  # `class` is a keyword
"""One class in one zone; `percent` counts in the zone's valid ground area, `confidence` is the mean, 0..1."""


def class_areas(mapped: Map, *, sure: bool = False) -> list[AreaRow]:
    """Pixels, hectares and percent of each class of a map; with `sure` also the mean confidence."""
    rows: list[AreaRow] = [
        {"zone": "map", "class": c.name, "pixels": c.pixels, "hectares": c.hectares, "percent": c.percent}
        for c in mapped.classes
    ]
    if sure:
        sums = np.zeros(len(rows))
        areas = np.zeros(len(rows))
        for window in strips(mapped.label.shape, BLOCK):
            part = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
            labels = np.asarray(mapped.label[part]).astype(np.int64)
            certain, inside = _certain(mapped, part), labels < len(rows)
            weight = np.broadcast_to(row_areas_m2(mapped.grid, window)[:, None], labels.shape)
            areas += np.bincount(labels[inside], weight[inside], minlength=len(rows))
            sums += np.bincount(labels[inside], (weight * certain)[inside], minlength=len(rows))
        for row, mean in zip(rows, _means(sums, areas), strict=True):
            row["confidence"] = mean
    return rows


def _certain(mapped: Map, part: tuple[slice, slice]) -> NDArray[np.float64]:
    """Confidence of a part of a map, 0..1; 0 for no data."""
    stored = np.asarray(mapped.confidence[part])
    return np.where(stored == CONFIDENCE_NODATA, 0.0, stored / CONFIDENCE_SCALE)


def _means(sums: NDArray[np.float64], areas: NDArray[np.float64]) -> list[float | None]:
    return [round(float(s / a), 4) if a > 0 else None for s, a in zip(sums, areas, strict=True)]


def zone_areas(mapped: Map, zones: Path, name_field: str | None = None, *, sure: bool = False) -> list[AreaRow]:
    """Return areas for every polygon of a vector file, which may be in another CRS; zones may overlap.

    Args:
        mapped: The map.
        zones: Anything GDAL opens.
        name_field: Attribute that names a zone. Default: `name` where there is one, else the feature's number.
        sure: Add the mean confidence.

    Raises:
        SceneReadError: The file cannot be read or has no CRS while the map has one.
        OptionError: No such attribute, or no zone touches the map.
    """
    from rasterio.features import rasterize
    from shapely import STRtree, box

    geobox, label, names = mapped.grid, mapped.label, mapped.names
    shapes, attributes = polygons_on_grid(geobox, zones)
    field = name_field or ("name" if "name" in attributes else None)
    if field is not None and field not in attributes:
        raise OptionError(f"{zones} has no attribute {field!r}; it has: {', '.join(attributes) or 'none'}")
    titles = [str(i) for i in range(len(shapes))] if field is None else [str(v) for v in attributes[field]]
    tree = STRtree(shapes)
    pixels, areas = np.zeros((len(shapes), len(names)), np.int64), np.zeros((len(shapes), len(names)))
    sums = np.zeros_like(areas)
    for window in strips(label.shape, BLOCK):
        place = geobox.affine @ type(geobox.affine).translation(window.col_off, window.row_off)
        corners = [place @ c for c in ((0, 0), (window.width, window.height))]
        near = tree.query(box(*np.min(corners, 0), *np.max(corners, 0)), predicate="intersects")
        if not len(near):
            continue
        cut = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
        part = np.asarray(label[cut]).astype(np.int64)
        certain = _certain(mapped, cut) if sure else np.zeros(part.shape)
        weight = np.broadcast_to(row_areas_m2(geobox, window)[:, None], part.shape)
        for zone in near.tolist():
            inside = rasterize([shapes[zone]], part.shape, transform=place, dtype="uint8").astype(bool)
            inside &= part < len(names)
            pixels[zone] += np.bincount(part[inside], minlength=len(names))
            areas[zone] += np.bincount(part[inside], weight[inside], minlength=len(names))
            sums[zone] += np.bincount(part[inside], (weight * certain)[inside], minlength=len(names))
    if not pixels.any():
        raise OptionError(f"no polygon of {zones} covers a pixel of {mapped.name}")
    if empty := [title for title, count in zip(titles, pixels.sum(axis=1), strict=True) if not count]:
        log.warning("%s: no pixel's centre of the map lies in the zones %s", zones, ", ".join(empty[:10]))
    total = np.maximum(areas.sum(axis=1, keepdims=True), 1e-9)
    found: list[AreaRow] = [
        {
            "zone": title,
            "class": name,
            "pixels": int(pixels[z, c]),
            "hectares": round(float(areas[z, c]) / 1e4, 4),
            "percent": round(float(100 * areas[z, c] / total[z, 0]), 3),
        }
        for z, title in enumerate(titles)
        for c, name in enumerate(names)
    ]
    if sure:
        for row, mean in zip(found, _means(sums.ravel(), areas.ravel()), strict=True):
            row["confidence"] = mean
    return found


def check_table(mapped: Map, out: Path, zones: Path | None = None, *, overwrite: bool = False) -> None:
    """Refuse, before areas are counted, a path that no table of a map may be written to.

    Raises:
        OptionError: Neither `.csv` nor `.parquet`, or it may not be replaced (see `target.check`), or it is `zones`.
        OutputError: The folder cannot be written.
    """
    target.check(mapped, out, TABLE, overwrite=overwrite)
    if zones is not None and target.same_file(out, zones):
        raise OptionError(f"{out} holds the zones; choose another name for the table")


def write_table(rows: list[AreaRow], out: Path) -> Path:
    """Rows as `.csv` or `.parquet`, whole or not at all; see `check_table` for what may lie there.

    A cell of the CSV that a spreadsheet would take for a formula gets an apostrophe before it; Parquet keeps the text.

    Args:
        rows: From `class_areas` or `zone_areas`.
        out: The file.

    Raises:
        OptionError: Another file type.
        OutputError: `out` cannot be written.
    """
    if out.suffix.lower() not in TABLE.suffixes:
        raise OptionError(f"statistics are written as .csv or .parquet, not {out.suffix or 'without a suffix'}")
    with target.replaced(out) as temporary:
        if temporary.suffix == ".csv":
            _write_csv(rows, temporary)
        else:
            _write_parquet(rows, temporary)
    return out


def _write_csv(rows: list[AreaRow], out: Path) -> None:
    with out.open("w", encoding="utf-8", newline="") as stream:
        columns = (*TABLE_COLUMNS, SURE_COLUMN) if rows and SURE_COLUMN in rows[0] else TABLE_COLUMNS
        table = csv.DictWriter(stream, columns, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        table.writeheader()
        table.writerows({k: harmless(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)


def _write_parquet(rows: list[AreaRow], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.string(), pa.int64(), pa.float64(), pa.float64())
    told = {PARQUET_KEY: TABLE.name.encode()}
    columns = list(zip(TABLE_COLUMNS, kinds, strict=True))
    if rows and SURE_COLUMN in rows[0]:
        columns.append((SURE_COLUMN, pa.float64()))
    schema = pa.schema(columns, metadata=told)
    pq.write_table(pa.Table.from_pylist(rows, schema), out)


def harmless(text: str) -> str:
    """Text for a cell of a CSV: one line, and no formula for a spreadsheet. Plain numbers such as −1 stay."""
    cell = shown(text)
    return f"'{cell}" if cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell) else cell
