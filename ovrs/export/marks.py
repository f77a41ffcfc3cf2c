"""How a product is known again: each kind carries a mark that `ovrs` wrote it, so that it may be replaced."""

from __future__ import annotations

import json
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ovrs.export.product import Kind

log = logging.getLogger(__name__)

XML_MARK = "<!-- written by ovrs -->"
PARQUET_KEY = b"ovrs"
TABLE_COLUMNS = ("zone", "class", "pixels", "hectares", "percent")
SURE_COLUMN = "confidence"
"""Further column of a table of areas: mean confidence."""
CHANGE_COLUMNS = ("from", "to", "pixels", "hectares", "percent", "sure_hectares")
FINDINGS_COLUMNS = ("measure", "class", "value", "low", "high")
_HEAD = 4096


def is_ours(path: Path, kind: Kind) -> bool:
    """Whether a file is a product of this kind that `ovrs` wrote. An unreadable file is not."""
    from PIL import UnidentifiedImageError
    from pyarrow.lib import ArrowException
    from rasterio.errors import RasterioError

    try:
        return _TESTS[path.suffix.lower()](path, kind)
    except (OSError, ValueError, KeyError, RasterioError, UnidentifiedImageError, ArrowException) as error:
        log.debug("%s is no product of ovrs: %s", path, error)
        return False


def _tiff(path: Path, kind: Kind) -> bool:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            wanted = {"classes": "class"}.get(kind.name, kind.name)
            return str(source.tags().get("SOFTWARE", "")).startswith("ovrs ") and source.descriptions[0] == wanted


def _png(path: Path, _kind: Kind) -> bool:
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get("Software", "")).startswith("ovrs ")


def _json(path: Path, kind: Kind) -> bool:
    content = json.loads(path.read_text("utf-8"))
    if kind.name == "accuracy":
        return isinstance(content, dict) and content.get("ovrs") == kind.name
    return isinstance(content, dict) and "ovrs" in content["properties"]["processing:software"]


def _table(path: Path, kind: Kind) -> bool:
    known = (
        [FINDINGS_COLUMNS]
        if kind.name == "accuracy"
        else [TABLE_COLUMNS, (*TABLE_COLUMNS, SURE_COLUMN), CHANGE_COLUMNS]
    )
    with path.open(encoding="utf-8") as stream:
        head = stream.readline().replace('"', "").strip()
    return head in [",".join(columns) for columns in known]


def _parquet(path: Path, kind: Kind) -> bool:
    import pyarrow.parquet as pq

    found = (pq.read_schema(path).metadata or {}).get(PARQUET_KEY)
    return bool(found == kind.name.encode())


def _page(path: Path, _kind: Kind) -> bool:
    with path.open(encoding="utf-8") as stream:
        return '<meta name="generator" content="ovrs">' in stream.read(_HEAD)


def _style(path: Path, _kind: Kind) -> bool:
    with path.open(encoding="utf-8") as stream:
        return XML_MARK in stream.read(_HEAD)


_TESTS: dict[str, Callable[[Path, Kind], bool]] = {
    ".tif": _tiff, ".tiff": _tiff, ".png": _png, ".json": _json, ".geojson": _json, ".csv": _table,
    ".parquet": _parquet, ".geoparquet": _parquet, ".html": _page, ".htm": _page, ".qml": _style, ".sld": _style,
    ".md": _style,
}  # fmt: skip
