"""Areas per class in hectares, for the whole map or for every zone of a polygon file. True ground areas in any CRS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs import store
from ovrs.errors import OptionError, SceneReadError
from ovrs.export.cog import legend
from ovrs.grid import row_areas_m2
from ovrs.pyramid import strips

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas

BLOCK = 2048


def class_areas(path: Path) -> list[dict[str, Any]]:
    """Pixels, hectares and percent of each class of a finished map."""
    found: list[dict[str, Any]] = store.facts(store.open_complete(path))["classes"]
    return [{"zone": "map", "class": c["name"], **{k: c[k] for k in ("pixels", "hectares", "percent")}} for c in found]


def zone_areas(path: Path, zones: Path, name_field: str | None = None) -> list[dict[str, Any]]:
    """The same for every polygon of a vector file, which may be in another CRS; zones may overlap.

    Args:
        path: `NAME.zarr`.
        zones: Anything GDAL opens.
        name_field: Attribute that names a zone. Default: `name` where there is one, else the feature's number.

    Raises:
        SceneReadError: The file cannot be read or has no CRS while the map has one.
        OptionError: No such attribute, or no zone touches the map.
    """
    from rasterio.features import rasterize
    from shapely import STRtree, box

    group = store.open_complete(path)
    geobox, label, names = store.geobox_of(group), store.array(group, "label"), legend(group)[0]
    frame = _zones(zones, geobox.crs)
    field = name_field or ("name" if "name" in frame.columns else None)
    if field is not None and field not in frame.columns:
        raise OptionError(
            f"{zones} has no attribute {field!r}; it has: {', '.join(c for c in frame.columns if c != 'geometry')}"
        )
    titles = [str(i) for i in range(len(frame))] if field is None else [str(v) for v in frame[field]]
    tree = STRtree(frame.geometry.values)
    pixels, areas = np.zeros((len(frame), len(names)), np.int64), np.zeros((len(frame), len(names)))
    for window in strips(label.shape, BLOCK):
        place = geobox.affine @ type(geobox.affine).translation(window.col_off, window.row_off)
        corners = [place @ c for c in ((0, 0), (window.width, window.height))]
        near = tree.query(box(*np.min(corners, 0), *np.max(corners, 0)), predicate="intersects")
        if not len(near):
            continue
        part = np.asarray(label[window.row_off : window.row_end, window.col_off : window.col_end]).astype(np.int64)
        weight = np.broadcast_to(row_areas_m2(geobox, window)[:, None], part.shape)
        for zone in near.tolist():
            inside = rasterize([frame.geometry.iloc[zone]], part.shape, transform=place, dtype="uint8").astype(bool)
            inside &= part < len(names)
            pixels[zone] += np.bincount(part[inside], minlength=len(names))
            areas[zone] += np.bincount(part[inside], weight[inside], minlength=len(names))
    if not pixels.any():
        raise OptionError(f"no polygon of {zones} covers a pixel of {path.name}")
    total = np.maximum(areas.sum(axis=1, keepdims=True), 1e-9)
    return [
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


def write_table(rows: list[dict[str, Any]], out: Path) -> Path:
    """Rows as `.csv` or `.parquet`.

    Raises:
        OptionError: Another file type.
    """
    import pandas as pd

    if out.suffix not in (".csv", ".parquet"):
        raise OptionError(f"statistics are written as .csv or .parquet, not {out.suffix or 'without a suffix'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    frame, temporary = pd.DataFrame(rows), out.with_name(f".{out.name}.partial")
    if out.suffix == ".csv":
        frame.to_csv(temporary, index=False)
    else:
        frame.to_parquet(temporary, index=False)
    temporary.replace(out)
    return out


def _zones(path: Path, crs: Any) -> geopandas.GeoDataFrame:
    import geopandas
    from pyogrio.errors import DataSourceError

    try:
        frame = geopandas.read_file(path)
    except (DataSourceError, OSError) as error:
        raise SceneReadError(f"{path} cannot be read as vectors: {error}") from error
    if crs is None:
        return frame
    if frame.crs is None:
        raise SceneReadError(f"{path} has no CRS, so its polygons have no place on the map; give it one")
    return frame.to_crs(crs.to_wkt())
