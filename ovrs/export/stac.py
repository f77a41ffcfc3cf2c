"""A STAC Item for a map, and a Collection for many: projection, classification, raster, processing and MLM extensions.

Identifiers and times come from the map, not from the clock, so the same map gives the same Item.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs import store
from ovrs.errors import StoreError
from ovrs.export.cog import legend

if TYPE_CHECKING:
    from collections.abc import Sequence

STAC = "1.1.0"
SCHEMAS = {
    "projection": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "mlm": "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
}


def write_item(path: Path, out: Path, products: Sequence[Path] = ()) -> Path:
    """Write the Item of a finished map as `out` (JSON).

    Args:
        path: `NAME.zarr`.
        out: The file.
        products: Files made from the map (`.tif`, `.gpkg`, `.parquet`, `.png`, …) that become assets.

    Raises:
        StoreError: The map has no CRS, so it has no place on the ground.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    content = item(path, out.parent, products)
    temporary = out.with_name(f".{out.name}.partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    temporary.replace(out)
    return out


def item(path: Path, base: Path, products: Sequence[Path] = ()) -> dict[str, Any]:
    """The Item as a dictionary; asset links are relative to `base`."""
    group = store.open_complete(path)
    facts, geobox = store.facts(group), store.geobox_of(group)
    if geobox.crs is None:
        raise StoreError(f"{path} has no CRS; a STAC Item needs a place on the ground")
    names, colours = legend(group)
    footprint = geobox.geographic_extent
    epsg = geobox.crs.epsg
    assets = {
        "map": {
            "href": _relative(path, base),
            "type": "application/vnd.zarr; version=3"
            if (path / "zarr.json").exists()
            else "application/vnd.zarr; version=2",
            "title": "Class and confidence (Zarr, multiscale)",
            "roles": ["data"],
            **_band(facts, names, colours, str(store.array(group, "label").dtype)),
        }
    }
    for product in products:
        assets[_key(product)] = _asset(product, base, facts, names, colours, str(store.array(group, "label").dtype))
    when = facts.get("acquired") or facts["finished"]
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": list(SCHEMAS.values()),
        "id": path.name.removesuffix(".zarr"),
        "geometry": json.loads(json.dumps(footprint.json)),
        "bbox": [round(float(v), 9) for v in footprint.boundingbox],
        "properties": {
            "datetime": _utc(when),
            "created": _utc(facts["finished"]),
            "title": f"Land classes of {facts['scene']['name']}",
            "proj:code": None if epsg is None else f"EPSG:{epsg}",
            **({} if epsg else {"proj:wkt2": geobox.crs.to_wkt()}),
            "proj:shape": [geobox.height, geobox.width],
            "proj:transform": [float(v) for v in geobox.affine[:6]],
            "proj:bbox": [float(v) for v in geobox.boundingbox],
            "processing:software": {"ovrs": facts["version"]},
            "processing:lineage": f"{facts['model']['model']} with {facts['model']['method']}, adapted at test time; "
            f"classes: {', '.join(names)}",
            "processing:level": "L4",
            **_mlm(facts, names, colours),
        },
        "links": [],
        "assets": assets,
    }


def write_collection(items: Sequence[Path], out: Path, *, name: str, licence: str = "other") -> Path:
    """A Collection over Items that lie on disk.

    Raises:
        StoreError: There is no Item.
    """
    if not items:
        raise StoreError("a collection needs at least one item")
    found = [json.loads(p.read_text("utf-8")) for p in items]
    boxes = np.array([i["bbox"] for i in found])
    times = sorted(i["properties"]["datetime"] for i in found)
    overall = [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]
    content = {
        "type": "Collection",
        "stac_version": STAC,
        "stac_extensions": [],
        "id": name,
        "description": f"Class maps of the collection {name}, made by ovrs",
        "license": licence,
        "extent": {"spatial": {"bbox": [overall]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "links": [
            {"rel": "item", "href": _relative(p, out.parent), "type": "application/geo+json"} for p in sorted(items)
        ],
    }
    out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return out


def _band(
    facts: dict[str, Any], names: Sequence[str], colours: Sequence[tuple[int, int, int]], dtype: str
) -> dict[str, Any]:
    classes = [
        {"value": i, "name": _slug(n), "title": n, "color_hint": f"{r:02X}{g:02X}{b:02X}"}
        for i, (n, (r, g, b)) in enumerate(zip(names, colours, strict=True))
    ]
    nodata = int(np.iinfo(dtype).max)
    size = float(facts["pixel_size_m"][0])
    return {
        "data_type": dtype,
        "nodata": nodata,
        "raster:spatial_resolution": size,
        "classification:classes": classes,
    }


def _asset(
    product: Path,
    base: Path,
    facts: dict[str, Any],
    names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    dtype: str,
) -> dict[str, Any]:
    kind = {
        ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
        ".gpkg": "application/geopackage+sqlite3",
        ".parquet": "application/vnd.apache.parquet",
        ".png": "image/png",
        ".html": "text/html",
        ".csv": "text/csv",
    }.get(product.suffix, "application/octet-stream")
    role = {".png": "thumbnail", ".html": "metadata", ".csv": "metadata"}.get(product.suffix, "data")
    asset: dict[str, Any] = {"href": _relative(product, base), "type": kind, "roles": [role]}
    if product.suffix == ".tif" and "confidence" not in product.stem:
        asset |= _band(facts, names, colours, dtype)
    return asset


def _mlm(facts: dict[str, Any], names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """The model as the MLM extension describes it."""
    crop = int(facts["plan"]["crop"])
    return {
        "mlm:name": str(facts["model"]["model"]),
        "mlm:architecture": "Vision Transformer",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "pytorch",
        "mlm:input": [
            {
                "name": "RGB",
                "bands": [],
                "input": {
                    "shape": [-1, 3, crop, crop],
                    "dim_order": ["batch", "channel", "height", "width"],
                    "data_type": "float32",
                },
            }
        ],
        "mlm:output": [
            {
                "name": "class",
                "tasks": ["semantic-segmentation"],
                "result": {
                    "shape": [-1, len(names), crop, crop],
                    "dim_order": ["batch", "class", "height", "width"],
                    "data_type": "float32",
                },
                "classification:classes": [
                    {"value": i, "name": _slug(n), "color_hint": f"{r:02X}{g:02X}{b:02X}"}
                    for i, (n, (r, g, b)) in enumerate(zip(names, colours, strict=True))
                ],
            }
        ],
    }


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _key(product: Path) -> str:
    kind = product.suffix.removeprefix(".")
    return "confidence" if "confidence" in product.stem else {"tif": "classes", "png": "thumbnail"}.get(kind, kind)


def _relative(path: Path, base: Path) -> str:
    return "./" + Path(os.path.relpath(path.absolute(), base.absolute())).as_posix()


def _utc(text: str) -> str:
    return datetime.fromisoformat(text).isoformat().replace("+00:00", "Z")
