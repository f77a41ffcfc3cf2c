"""What an export wrote: path, role and place of one file, told by its writer and never guessed from its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from odc.geo.geobox import GeoBox


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of product."""

    name: str
    """Key of the asset in a STAC Item: `classes`, `confidence`, `polygons`, `thumbnail`, …"""
    suffixes: tuple[str, ...]
    """Lower case, the usual one first."""
    media_types: tuple[str, ...]
    """One for each suffix."""
    stac_role: str = "data"


_TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
_PARQUET = "application/vnd.apache.parquet"

CLASSES = Kind(name="classes", suffixes=(".tif", ".tiff"), media_types=(_TIFF, _TIFF))
CONFIDENCE = Kind(name="confidence", suffixes=(".tif", ".tiff"), media_types=(_TIFF, _TIFF))
POLYGONS = Kind(
    name="polygons",
    suffixes=(".gpkg", ".parquet", ".geoparquet"),
    media_types=("application/geopackage+sqlite3", _PARQUET, _PARQUET),
)
PICTURE = Kind(name="thumbnail", suffixes=(".png",), media_types=("image/png",), stac_role="thumbnail")
ITEM = Kind(
    name="item", suffixes=(".json", ".geojson"), media_types=("application/geo+json",) * 2, stac_role="metadata"
)
TABLE = Kind(name="areas", suffixes=(".csv", ".parquet"), media_types=("text/csv", _PARQUET), stac_role="metadata")
PAGE = Kind(name="report", suffixes=(".html", ".htm"), media_types=("text/html",) * 2, stac_role="metadata")
POINTS = Kind(name="points", suffixes=(".gpkg",), media_types=("application/geopackage+sqlite3",))
FINDINGS = Kind(
    name="accuracy",
    suffixes=(".json", ".md", ".csv"),
    media_types=("application/json", "text/markdown", "text/csv"),
    stac_role="metadata",
)
STYLE = Kind(name="style", suffixes=(".qml", ".sld"), media_types=("application/xml",) * 2, stac_role="metadata")
KINDS = (CLASSES, CONFIDENCE, POLYGONS, PICTURE, ITEM, TABLE, PAGE, POINTS, FINDINGS, STYLE)


@dataclass(frozen=True, kw_only=True)
class Product:
    """One file that was written from a map."""

    path: Path
    kind: Kind
    grid: GeoBox | None = None
    """Grid of a raster: its CRS, shape and transform, which differ from the map's after reprojection."""
    features: int | None = None
    """Number of polygons of a vector file."""
    remark: str = ""
    """What a person should know of the file."""

    @property
    def media_type(self) -> str:
        """Media type of the file, whatever the case of its suffix."""
        return self.kind.media_types[self.kind.suffixes.index(self.path.suffix.lower())]
