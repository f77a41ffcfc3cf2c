"""Addresses of object storage as values that read like paths: `s3://bucket/maps/out.zarr`."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ovrs.objects.folder import Folder, unguarded
from ovrs.objects.remote import Remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovrs.objects.interface import Objects


@dataclass(frozen=True)
class Address:
    """A URL that names a map, or something beside it. Never ends with `/`."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """What stands after the last `/`."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Ending of the name with its dot, such as `.zarr`."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> Address:
        """The address without its name."""
        return replace(self, url=self.url.rpartition("/")[0])

    def with_name(self, name: str) -> Address:
        """Return the address of something beside this."""
        return self.parent / name

    def __truediv__(self, name: str) -> Address:
        return replace(self, url=f"{self.url}/{name}")


_LOCAL = re.compile(r"(?:file|local)://(?:localhost(?=/))?", re.I)
Place: TypeAlias = Path | Address
"""Where a map lies: a path of this machine, or an address."""


def place_of(target: str | Path | Address) -> Place:
    """Return a path, or an address where the text has a scheme (`s3://…`); `file://` names a path."""
    if isinstance(target, (Path, Address)):
        return target
    return Address(target.rstrip("/")) if is_remote(target) else Path(without_scheme(target))


def is_remote(target: object) -> bool:
    """Whether a target is a URL and not a path of this machine; `file://…` and `local://…` are paths."""
    return "://" in str(target) and _LOCAL.match(str(target)) is None


def without_scheme(target: str) -> str:
    """Return `file:///x` as `/x`; anything else as it is."""
    return _LOCAL.sub("", target, count=1) if _LOCAL.match(target) else target


def objects_at(place: Place, guard: Callable[[], None] | None = None) -> Objects:
    """Return what lies below a place; `guard` is called directly before each write and raises where it may not happen."""
    guard = guard or unguarded
    return Folder(place, guard) if isinstance(place, Path) else Remote(place.url, guard)


ROOT_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zmetadata")
"""Metadata of the root group of a map, in formats 3 and 2."""


def is_there(out: Place) -> bool:
    """Whether a finished map is at a place: a folder of that name, or root metadata below an address."""
    if isinstance(out, Path):
        return out.exists()
    below = objects_at(out)
    return any(below.head(name) is not None for name in ("zarr.json", ".zgroup"))
