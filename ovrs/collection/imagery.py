"""The imagery of a collection: files that a pattern finds, or items of a STAC search."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import time
import warnings
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from ovrs.collection import objects
from ovrs.collection.catalog import file_name
from ovrs.collection.ledger import Image
from ovrs.collection.patterns import glob, literal_folder
from ovrs.errors import CatalogError, OptionError
from ovrs.objects.address import Address, place_of, without_scheme

if TYPE_CHECKING:
    from ovrs.collection.catalog import Catalog, StacSearch

log = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0
"""A file that changed so recently may still be growing; the next look takes it."""


def images(catalog: Catalog, name: str, *, settle: float = SETTLE_SECONDS) -> list[Image]:
    """Return what a collection holds now, in the order of names. Reads no file.

    Files that changed less than `settle` seconds ago are left out. A time in the future counts as settled, with a
    warning. Products of `ovrs` below the catalog's output root are left out.

    Raises:
        CatalogError: No such collection, or its API or store does not answer.
    """
    entry = catalog.collection(name)
    if entry.stac is not None:
        found = _items(name, entry.stac)
    else:
        pattern = without_scheme(catalog.resolve(str(entry.pattern)))
        root = catalog.resolve(catalog.outputs.root)
        found = _objects(pattern) if objects.names_objects(pattern) else _files(pattern, root, settle)
    named = zip(_names(found), found, strict=True)
    return sorted((Image(n, f.uri, f.fingerprint, name) for n, f in named), key=lambda image: image.name)


class _Found(NamedTuple):
    uri: str
    stem: str
    below: str
    """A longer name, for those whose stems are equal."""
    fingerprint: str


def _objects(pattern: str) -> list[_Found]:
    return [_Found(o.uri, PurePosixPath(o.below).stem, o.below, o.fingerprint) for o in objects.listed(pattern)]


def _files(pattern: str, root: str, settle: float) -> list[_Found]:
    own, base, found = Products(root), os.path.abspath(literal_folder(pattern)), []  # noqa: PTH100
    for file in glob(pattern):
        try:
            state = os.stat(file)  # noqa: PTH116  (thousands of files: a Path for each is half of the time)
        except OSError as error:
            log.warning("%s is left out: it is a link to nothing, or is gone (%s)", file, error.strerror)
            continue
        if not stat.S_ISREG(state.st_mode):
            log.warning("%s is no file; it is left out", file)
            continue
        age = time.time() - state.st_mtime
        if age < -1:
            log.warning("%s carries a time %.0f s in the future; it counts as settled", file, -age)
        elif age < settle:
            log.info("%s changed a moment ago; it is left for the next look", file)
            continue
        if own.has(file):
            log.info("%s is a product of ovrs; it is left out", file)
            continue
        path = os.path.abspath(file)  # noqa: PTH100
        stem = os.path.splitext(os.path.basename(file))[0]  # noqa: PTH119, PTH122
        found.append(_Found(path, stem, path.removeprefix(base).lstrip("/"), fingerprint(state)))
    return found


def fingerprint(state: os.stat_result) -> str:
    """Size in bytes and time of change in nanoseconds."""
    return f"{state.st_size}-{state.st_mtime_ns}"


def _names(found: list[_Found]) -> list[str]:
    """Return a name of its own for each: its stem; of equal stems the path below the pattern's folder, then with its suffix."""
    names = [safe_name(f.stem) for f in found]
    stems = Counter(names)
    if len(stems) == len(names):
        return names
    longer = Counter(_path_name(f.below, "") for f, name in zip(found, names, strict=True) if stems[name] > 1)
    out = []
    for f, name in zip(found, names, strict=True):
        path = _path_name(f.below, "") if stems[name] > 1 else name
        out.append(_path_name(f.below, f.uri) if longer[path] > 1 else path)
    return out


def _path_name(below: str, uri: str) -> str:
    path = PurePosixPath(below)
    last = f"{path.stem}-{path.suffix.lstrip('.') or 'file'}-{_short(uri)}" if uri else path.stem
    return "/".join(safe_name(part) for part in (*path.parts[:-1], last))


def safe_name(name: str) -> str:
    """`name`, if it can be the last part of a map's path and stays in its folder; else letters of it and a short hash."""
    with contextlib.suppress(ValueError):
        if name.isprintable() and "/" not in name and not name.lower().endswith((".zarr", ".run", ".versions")):
            return file_name(name)
    letters = re.sub(r"[^\w.-]+", "_", name.encode("utf-8", "replace").decode()).strip("._-")[:60]
    return f"{letters or 'image'}-{_short(name)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


class Products:
    """Files below the output root that `ovrs` wrote: they are no imagery."""

    def __init__(self, root: str) -> None:
        where = place_of(root)
        self._root = None if isinstance(where, Address) or root.startswith("/vsi") else where.resolve()
        self._folders: dict[str, str] = {}

    def has(self, file: str) -> bool:
        """Whether a file is a product. Only files beside a map, below the root, are opened."""
        folder = os.path.dirname(file)  # noqa: PTH120
        if folder not in self._folders:
            self._folders[folder] = self._kind(Path(folder).resolve())
        kind = self._folders[folder]
        return kind == "inside" or (kind == "beside" and is_marked(Path(file)))

    def _kind(self, folder: Path) -> str:
        """`inside` a map, `beside` maps, or neither."""
        if self._root is None or not folder.is_relative_to(self._root):
            return ""
        if any(part.endswith((".zarr", ".run", ".versions")) for part in folder.relative_to(self._root).parts):
            return "inside"
        return "beside" if any(folder.glob("*.zarr")) else ""


def is_marked(file: Path) -> bool:
    """Whether a raster or picture names `ovrs` as the software that wrote it."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(file) as source:
                tags = source.tags()
    except (RasterioError, OSError):
        return False
    return any(str(tags.get(key, "")).startswith("ovrs ") for key in ("SOFTWARE", "Software", "TIFFTAG_SOFTWARE"))


def _items(name: str, search: StacSearch) -> list[_Found]:
    try:
        from pystac.errors import STACError, STACTypeError
        from pystac_client import Client
        from pystac_client.errors import ClientTypeError
        from pystac_client.exceptions import APIError, ParametersError
    except ImportError as error:
        raise OptionError(f'STAC searches need pystac-client: pip install "ovrs[stac]" ({error})') from error
    try:
        found = Client.open(search.url).search(
            collections=list(search.collections),
            bbox=search.bbox,
            datetime=search.datetime,
            query=search.query,
            max_items=search.max_items,
        )
        items = sorted(found.items(), key=lambda item: item.id)
    except (APIError, OSError) as error:
        raise CatalogError(f"collection {name}: {search.url} does not answer: {error}") from error
    except (
        ClientTypeError,
        ParametersError,
        STACError,
        STACTypeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise CatalogError(
            f"collection {name}: {search.url} and this search do not fit, or it is no STAC API ({type(error).__name__}: {error})"
        ) from error
    out = []
    for item in items:
        if search.asset not in item.assets:
            log.warning("item %s has no asset %s (it has %s)", item.id, search.asset, ", ".join(item.assets))
            continue
        updated = str(item.properties.get("updated") or item.properties.get("created") or item.datetime)
        asset = item.assets[search.asset]
        below = f"{item.collection_id}/{item.id}" if item.collection_id else item.id
        out.append(_Found(asset.get_absolute_href() or asset.href, item.id, below, updated))
    return out
