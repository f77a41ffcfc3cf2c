"""A STAC Item for a map, and a Collection for many: projection, classification, raster, processing and MLM extensions (`mlm`).

Identifiers and times come from the map, not from the clock, so the same map gives the same Item.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.errors import StoreError
from ovrs.export import mlm, target
from ovrs.export.footprint import footprint, union_of_boxes
from ovrs.export.product import CLASSES, CONFIDENCE, ITEM, PICTURE, Product
from ovrs.names import ascii_words, shown
from ovrs.redact import redacted
from ovrs.scene.grid import pixel_size_m
from ovrs.store.cautions import SKETCH, is_sketch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from odc.geo.geobox import GeoBox

    from ovrs.store.map import Map

STAC = "1.1.0"
SCHEMAS = {
    "projection": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
}


_SOLAR_SYSTEM = "https://stac-extensions.github.io/ssys/v1.1.1/schema.json"
"""Only for maps of other bodies: their longitudes and latitudes are not those of WGS 84."""


@dataclass(frozen=True, kw_only=True)
class _Legend:
    """What an Item says of the classes."""

    classes: list[dict[str, object]]
    """Entries of the classification extension."""
    names: list[str]
    dtype: str
    """NumPy's name of the labels' type."""


def write_item(mapped: Map, out: Path, products: Sequence[Product] = (), *, overwrite: bool = False) -> Path:
    """Write the Item of a map as `out` (JSON).

    Args:
        mapped: The map.
        out: The file.
        products: What was written from the map; each becomes an asset under the name of its kind.
        overwrite: Replace also a file that `ovrs` did not write.

    Raises:
        StoreError: The map has no place on the ground (see `footprint.footprint`), or `out` cannot be written.
        OptionError: `out` may not be replaced (see `target.check`).
    """
    target.check(mapped, out, ITEM, overwrite=overwrite)
    content = item(mapped, out.parent, products)
    target.write_text(out, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return out


def item(mapped: Map, base: Path, products: Sequence[Product] = ()) -> dict[str, object]:
    """The Item as a dictionary; asset links are relative to `base`."""
    record, geobox = mapped.record, mapped.grid
    outline = footprint(geobox)
    classes = _legend(mapped)
    when = record.acquired or record.finished
    modelled = mlm.has_model(record)
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": [
            *SCHEMAS.values(),
            *([mlm.SCHEMA] if modelled else []),
            *([_SOLAR_SYSTEM] if outline.body != "Earth" else []),
        ],
        "id": shown(mapped.name.removesuffix(".zarr") or "map"),
        "geometry": outline.geometry,
        "bbox": outline.bbox,
        "properties": {
            "datetime": _utc(when),
            "created": _utc(record.finished),
            "title": f"Land classes of {shown(record.scene.name)}",
            **({"description": SKETCH} if is_sketch(record) else {}),
            **_projection(geobox),
            **({"ssys:targets": [outline.body]} if outline.body != "Earth" else {}),
            "processing:software": {"ovrs": record.version},
            "processing:lineage": f"{record.model.model} with {record.model.method}, adapted at test time; "
            f"classes: {', '.join(classes.names)}",
            "processing:level": "L4",
            "processing:datetime": _utc(record.finished),
            **(mlm.fields(record, classes.classes) if modelled else {}),
        },
        "links": [],
        "assets": {
            "map": _map_asset(mapped, base, classes),
            **_assets(products, base, geobox, classes),
            **({"model": mlm.asset(record)} if modelled else {}),
        },
    }


def write_collection(items: Sequence[Path], out: Path, *, name: str, licence: str = "other") -> Path:
    """A Collection over Items that lie on disk.

    Raises:
        StoreError: There is no Item.
    """
    if not items:
        raise StoreError("a collection needs at least one item")
    found = [json.loads(p.read_text("utf-8")) for p in items]
    times = sorted(i["properties"]["datetime"] for i in found)
    overall = union_of_boxes([i["bbox"] for i in found])
    content = {
        "type": "Collection",
        "stac_version": STAC,
        "stac_extensions": [],
        "id": name,
        "description": f"Class maps of the collection {name}, made by ovrs",
        "license": licence,
        "extent": {"spatial": {"bbox": [overall]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "links": [
            {"rel": "item", "href": target.relative(p, out.parent), "type": "application/geo+json"}
            for p in sorted(items)
        ],
    }
    target.write_text(out, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return out


def _legend(mapped: Map) -> _Legend:
    names, colours = list(mapped.names), mapped.colours
    classes = [
        {"value": i, "name": word, "title": name, "color_hint": f"{r:02X}{g:02X}{b:02X}"}
        for i, (word, name, (r, g, b)) in enumerate(zip(ascii_words(names), names, colours, strict=True))
    ]
    return _Legend(classes=classes, names=names, dtype=str(mapped.label.dtype))


def _projection(geobox: GeoBox) -> dict[str, object]:
    """Fields of the projection extension for one grid."""
    crs = geobox.crs
    place: dict[str, object] = {"proj:code": f"EPSG:{crs.epsg}" if crs is not None and crs.epsg else None}
    if crs is not None and not crs.epsg:
        place["proj:wkt2"] = crs.to_wkt()
    return place | {
        "proj:shape": [geobox.height, geobox.width],
        "proj:transform": [float(v) for v in geobox.affine[:6]],
        "proj:bbox": [float(v) for v in geobox.boundingbox],
    }


def _classes_band(geobox: GeoBox, classes: _Legend) -> dict[str, object]:
    return {
        "data_type": classes.dtype,
        "nodata": int(np.iinfo(classes.dtype).max),
        "raster:spatial_resolution": _resolution(geobox),
        "classification:classes": classes.classes,
    }


def _confidence_band(geobox: GeoBox) -> dict[str, object]:
    return {
        "data_type": "uint8",
        "nodata": CONFIDENCE_NODATA,
        "raster:spatial_resolution": _resolution(geobox),
        "raster:scale": 1 / CONFIDENCE_SCALE,
        "raster:offset": 0.0,
    }


def _resolution(geobox: GeoBox) -> float:
    """Mean side of a pixel in metres on the ground."""
    return round(float(np.mean(pixel_size_m(geobox))), 9)


def _map_asset(mapped: Map, base: Path, classes: _Legend) -> dict[str, object]:
    return {
        "href": redacted(mapped.place) if mapped.path is None else target.relative(mapped.path, base),
        "type": f"application/vnd.zarr; version={mapped.label.metadata.zarr_format}",
        "title": "Class and confidence (Zarr, multiscale)",
        "roles": ["data"],
        **_classes_band(mapped.grid, classes),
    }


_TITLES = {CLASSES.name: "Classes", CONFIDENCE.name: "Confidence of the class", PICTURE.name: "Picture"}


def _assets(products: Sequence[Product], base: Path, own: GeoBox, classes: _Legend) -> dict[str, dict[str, object]]:
    """One asset for each product under its kind's name; `classes-2`, … for a second one of a kind."""
    assets: dict[str, dict[str, object]] = {}
    for product in products:
        key, number = product.kind.name, 2
        while key in assets:
            key, number = f"{product.kind.name}-{number}", number + 1
        assets[key] = _asset(product, base, own, classes)
    return assets


def _asset(product: Product, base: Path, own: GeoBox, classes: _Legend) -> dict[str, object]:
    asset: dict[str, object] = {
        "href": target.relative(product.path, base),
        "type": product.media_type,
        "title": _TITLES.get(product.kind.name, product.kind.name.capitalize()),
        "roles": [product.kind.stac_role],
    }
    if product.grid is None:
        return asset
    if product.kind is CLASSES:
        asset |= _classes_band(product.grid, classes)
    if product.kind is CONFIDENCE:
        asset |= _confidence_band(product.grid)
    moved = product.grid.crs != own.crs or product.grid.shape != own.shape or product.grid.affine != own.affine
    return asset | (_projection(product.grid) if moved else {})


def _utc(text: str) -> str:
    return datetime.fromisoformat(text).isoformat().replace("+00:00", "Z")
