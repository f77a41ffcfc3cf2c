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
from ovrs.export.product import CLASSES, CONFIDENCE, ITEM, PICTURE, Kind, Product
from ovrs.names import ascii_words, shown
from ovrs.redact import redacted
from ovrs.scene.grid import pixel_size_m
from ovrs.store.cautions import SKETCH, is_sketch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pystac
    from odc.geo.geobox import GeoBox

    from ovrs.store.map import Map

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
    """Return the Item as a dictionary; asset links are relative to `base`."""
    import pystac

    record, geobox = mapped.record, mapped.grid
    outline = footprint(geobox)
    classes = _legend(mapped)
    modelled, elsewhere = mlm.has_model(record), outline.body != "Earth"
    extensions = [*SCHEMAS.values(), *([mlm.SCHEMA] if modelled else []), *([_SOLAR_SYSTEM] if elsewhere else [])]
    properties = {
        "created": _utc(record.finished),
        "title": f"Land classes of {shown(record.scene.name)}",
        **({"description": SKETCH} if is_sketch(record) else {}),
        **_projection(geobox),
        **({"ssys:targets": [outline.body]} if elsewhere else {}),
        "processing:software": {"ovrs": record.version},
        "processing:lineage": f"{record.model.model} with {record.model.method}, adapted at test time; "
        f"classes: {', '.join(classes.names)}",
        "processing:level": "L4",
        "processing:datetime": _utc(record.finished),
        **(mlm.fields(record, classes.classes) if modelled else {}),
    }
    made = pystac.Item(
        id=shown(mapped.name.removesuffix(".zarr") or "map"),
        geometry=outline.geometry,
        bbox=outline.bbox,
        datetime=datetime.fromisoformat(record.acquired or record.finished),
        properties=properties,
        stac_extensions=extensions,
        assets={"map": _map_asset(mapped, base, classes), **_assets(products, base, geobox, classes)},
    )
    if modelled:
        made.add_asset("model", pystac.Asset.from_dict(mlm.asset(record)))
    return made.to_dict(include_self_link=False, transform_hrefs=False)


def write_collection(items: Sequence[Path], out: Path, *, name: str, licence: str = "other") -> Path:
    """Write a Collection over Items that lie on disk.

    Raises:
        StoreError: There is no Item.
    """
    if not items:
        raise StoreError("a collection needs at least one item")
    import pystac

    found = [json.loads(p.read_text("utf-8")) for p in items]
    times = sorted(datetime.fromisoformat(i["properties"]["datetime"]) for i in found)
    overall = union_of_boxes([i["bbox"] for i in found])
    made = pystac.Collection(
        id=name,
        description=f"Class maps of the collection {name}, made by ovrs",
        license=licence,
        extent=pystac.Extent(pystac.SpatialExtent([overall]), pystac.TemporalExtent([[times[0], times[-1]]])),
    )
    made.clear_links()
    for path in sorted(items):
        link = pystac.Link(pystac.RelType.ITEM, target.relative(path, out.parent), pystac.MediaType.GEOJSON)
        made.add_link(link)
    content = made.to_dict(include_self_link=False, transform_hrefs=False)
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
    """Return the fields of the projection extension for one grid."""
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


def _map_asset(mapped: Map, base: Path, classes: _Legend) -> pystac.Asset:
    import pystac

    return pystac.Asset(
        href=redacted(mapped.place) if mapped.path is None else target.relative(mapped.path, base),
        media_type=f"application/vnd.zarr; version={mapped.label.metadata.zarr_format}",
        title="Class and confidence (Zarr, multiscale)",
        roles=["data"],
        extra_fields=_classes_band(mapped.grid, classes),
    )


_TITLES = {CLASSES.name: "Classes", CONFIDENCE.name: "Confidence of the class", PICTURE.name: "Picture"}


def _assets(products: Sequence[Product], base: Path, own: GeoBox, classes: _Legend) -> dict[str, pystac.Asset]:
    """Return one asset for each product under its kind's name; `classes-2`, … for a second one of a kind."""
    assets: dict[str, pystac.Asset] = {}
    for product in products:
        key, number = product.kind.name, 2
        while key in assets:
            key, number = f"{product.kind.name}-{number}", number + 1
        assets[key] = _asset(product, base, own, classes)
    return assets


def _asset(product: Product, base: Path, own: GeoBox, classes: _Legend) -> pystac.Asset:
    import pystac

    return pystac.Asset(
        href=target.relative(product.path, base),
        media_type=product.media_type,
        title=_TITLES.get(product.kind.name, product.kind.name.capitalize()),
        roles=[product.kind.stac_role],
        extra_fields={} if product.grid is None else _fields_of(product.kind, product.grid, own, classes),
    )


def _fields_of(kind: Kind, grid: GeoBox, own: GeoBox, classes: _Legend) -> dict[str, object]:
    """Return what an asset says of its raster, and of its grid where that is not the map's own."""
    fields: dict[str, object] = {}
    if kind is CLASSES:
        fields |= _classes_band(grid, classes)
    if kind is CONFIDENCE:
        fields |= _confidence_band(grid)
    moved = grid.crs != own.crs or grid.shape != own.shape or grid.affine != own.affine
    return fields | (_projection(grid) if moved else {})


def _utc(text: str) -> str:
    return datetime.fromisoformat(text).isoformat().replace("+00:00", "Z")
