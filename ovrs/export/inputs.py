"""Files of this machine that a map was made from: scene, its parts and side files, area of interest."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

log = logging.getLogger(__name__)

_REMOTE = re.compile(
    r"^(?!file:|zip:|tar:|gzip:)[a-z][a-z0-9+]*://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)", re.I
)
_PREFIX = re.compile(r"^(file://|(zip|tar|gzip)(\+file)?://|/vsi[a-z_0-9]+/)", re.I)


def input_files(uri: str, area: str | Path | None = None) -> list[Path]:
    """Local files and folders that a map was made from, as far as they still exist.

    Args:
        uri: The scene, as the record of the map names it.
        area: The area of interest, alike.
    """
    named = [uri] if uri else []
    named += _files_of(named[0]) if named and not _REMOTE.search(named[0]) else []
    named += [str(area)] if area else []
    found = (_local(name) for name in named if not _REMOTE.search(name))
    return list(dict.fromkeys(path for path in found if path is not None))


def _files_of(uri: str) -> list[str]:
    """Every file that GDAL opens for a raster: parts of a VRT, masks, world files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(uri) as source:
                return [str(f) for f in source.files]
    except (RasterioError, OSError) as error:
        log.debug("%s is not opened, its side files are unknown: %s", uri, error)
        return []


def _local(name: str) -> Path | None:
    """Return the file or folder on disk behind a name: archives for members, files for sub-datasets."""
    while (shorter := _PREFIX.sub("", name)) != name:
        name = shorter
    candidates = [name, name.split("!")[0], name.split("|")[0], *re.findall(r'"([^"]+)"', name), *name.split(":")[1:2]]
    for candidate in candidates:
        path = Path(os.path.realpath(candidate)) if candidate else None
        if path is None:
            continue
        for part in (path, *path.parents):
            if part.is_file():
                return part
        if path.exists():
            return path
    return None
