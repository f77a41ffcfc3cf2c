"""GeoZarr: the attributes by which Zarr readers find the place on the ground and the overviews of a store.

Each group names the conventions that it follows under `zarr_conventions`. GDAL 3.13, rio-tiler and OpenLayers look for
the UUIDs there. The published forms are the tags v0.1 of https://github.com/zarr-conventions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyproj.enums import WktVersion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from odc.geo.geobox import GeoBox
    from zarr.core.common import JSON

_CONVENTIONS = {
    "multiscales": ("d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
    "proj": ("f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information for geospatial data"),
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
}


def registrations(names: Sequence[str]) -> list[dict[str, str]]:
    """Content of a group's `zarr_conventions` attribute for conventions by name."""
    return [
        {
            "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json",
            "spec_url": f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md",
            "uuid": _CONVENTIONS[name][0],
            "name": name,
            "description": _CONVENTIONS[name][1],
        }
        for name in names
    ]


def placed(geobox: GeoBox) -> dict[str, JSON]:
    """Attributes of a group whose arrays lie on `geobox`: `spatial:*`, and `proj:*` where the grid has a CRS."""
    spatial: dict[str, JSON] = {
        "spatial:dimensions": ["y", "x"],
        **_extent(geobox),
        "spatial:bbox": [float(v) for v in geobox.boundingbox],
        "spatial:registration": "pixel",
    }
    if geobox.crs is None:
        return {"zarr_conventions": registrations(["spatial"]), **spatial}
    code = f"EPSG:{geobox.crs.epsg}" if geobox.crs.epsg else None
    crs = {"proj:code": code} if code else {"proj:wkt2": geobox.crs.to_wkt(version=WktVersion.WKT2_2019)}
    return {"zarr_conventions": registrations(["proj", "spatial"]), **spatial, **crs}


def pyramid(boxes: dict[str, GeoBox], crs: bool) -> dict[str, JSON]:
    """Attributes of a root group with overviews.

    Args:
        boxes: Grid of each level by the path of its group, from fine to coarse. The root itself is `.`.
        crs: Whether the grids have a CRS.
    """
    layout: list[dict[str, JSON]] = []
    for asset, box in boxes.items():
        step = 2.0 if layout else 1.0
        item: dict[str, JSON] = {"asset": asset, "transform": {"scale": [step, step], "translation": [0.0, 0.0]}}
        if layout:
            item |= {"derived_from": layout[-1]["asset"], "resampling_method": "mode"}
        layout.append({**item, **_extent(box)})
    names = ["multiscales", *(["proj"] if crs else []), "spatial"]
    return {
        "zarr_conventions": registrations(names),
        "multiscales": {"layout": layout, "resampling_method": "mode"},
    }


def _extent(geobox: GeoBox) -> dict[str, JSON]:
    a = geobox.affine
    return {
        "spatial:shape": [geobox.height, geobox.width],
        "spatial:transform": [float(v) for v in (a.a, a.b, a.c, a.d, a.e, a.f)],
    }
