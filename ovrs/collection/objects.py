"""Objects of a store that a pattern finds: `s3://bucket/in/*.tif` and whatever else fsspec can list."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

from ovrs.errors import CatalogError, OptionError, told
from ovrs.objects.address import is_remote

if TYPE_CHECKING:
    from collections.abc import Mapping

_GDAL = {"/vsis3/": "s3://", "/vsigs/": "gs://", "/vsiaz/": "az://"}
_WILD = re.compile(r"[*?\[]")


class Found(NamedTuple):
    """One object."""

    uri: str
    below: str
    """Its name below the part of the pattern that has no wildcard."""
    fingerprint: str
    """Size and tag; time of change where the store gives no tag."""


def names_objects(pattern: str) -> bool:
    """Whether a pattern names objects of a store and not local files: an address, or GDAL's name of one."""
    return is_remote(pattern) or pattern.startswith("/vsi")


def listed(pattern: str) -> list[Found]:
    """Objects that a pattern finds, sorted by address; folders are left out.

    Raises:
        CatalogError: The store does not answer, or there is no such bucket.
        OptionError: No package for this kind of address is installed.
    """
    import fsspec

    url = pattern
    for prefix, scheme in _GDAL.items():
        url = scheme + url.removeprefix(prefix) if url.startswith(prefix) else url
    if url.startswith("/vsi"):
        raise CatalogError(f"{pattern} cannot be listed; write its address, such as s3://bucket/in/*.tif")
    try:
        files, path = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        found: Mapping[str, dict[str, object]] = files.glob(path, detail=True)
        bucket = path.lstrip("/").partition("/")[0]
        if not found and not files.exists(bucket):
            raise CatalogError(f"{pattern}: there is no bucket {bucket}, or it may not be listed")
    except ImportError as error:
        raise OptionError(
            f'{pattern}: {error}. For s3:// install "ovrs[s3]", for others the fsspec package it names'
        ) from error
    except CatalogError:
        raise
    except (OSError, ValueError) as error:
        raise CatalogError(f"{pattern} cannot be listed: {told(error)}") from error
    start = _WILD.search(path)
    base = posixpath.dirname(path[: start.start()] if start else path)
    return [
        Found(files.unstrip_protocol(name), name[len(base) :].lstrip("/"), _fingerprint(info))
        for name, info in sorted(found.items())
        if info.get("type") != "directory"
    ]


def _fingerprint(info: Mapping[str, object]) -> str:
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    changed = info.get("LastModified") or info.get("last_modified") or info.get("updated") or info.get("mtime")
    return f"{info.get('size')}-{str(tag).strip(chr(34)) if tag else changed}"
