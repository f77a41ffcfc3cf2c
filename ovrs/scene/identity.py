"""Which scene it is: a hash of its bytes, and the cheap signs by which a change during a run is noticed.

The identity is made of bytes alone, so a copy, another time stamp or a renewed signature is the same scene. The version is
what a file system or server says without reading: it is compared before each block counts, and only if it differs are the
bytes looked at again.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ovrs.errors import SceneChangedError, SceneReadError
from ovrs.redact import redacted
from ovrs.scene import vsi
from ovrs.scene.contents import contents_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger(__name__)


MOST_REMOTE_FILES = 64
"""Sources of a remote mosaic that are looked at; each costs a request per block."""
_FRESH_SECONDS = 3.0
"""A server's time of change has whole seconds: younger than this, it does not tell two changes apart."""
_SIDE_FILES = (".msk", ".ovr", ".aux.xml")
Version = tuple[Any, ...]

_accepted: dict[str, set[Version]] = {}
_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A scene as it was when it was opened. Small and picklable: workers compare with it."""

    uri: str = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    sha256: str
    size: int
    """Bytes of all files."""
    sampled: bool
    """Whether pieces stand for the whole."""
    version: Version = field(repr=False)

    def facts(self) -> dict[str, object]:
        """Return what a run's record keeps: `bytes`, `sha256`, `sampled`, and `version`, which is no part of the digest."""
        version = hashlib.sha256(repr(self.version).encode()).hexdigest()[:16]
        return {"bytes": self.size, "sha256": self.sha256, "sampled": self.sampled, "version": version}

    def require_unchanged(self) -> None:
        """Compare the scene's version, and its bytes if that differs, with what they were.

        Raises:
            SceneChangedError: The bytes are others.
            SceneReadError: The scene cannot be reached.
        """
        with vsi.environment(self.uri):
            version = version_of(self.files)
            with _lock:
                known = _accepted.setdefault(self.sha256, set())
                if version == self.version or version in known:
                    return
                now = contents_of(_files_of(self.uri))
                if now.sha256 == self.sha256:
                    if self.sampled:
                        name = redacted(self.uri)
                        log.warning(
                            "%s has another time of change or tag than before; the compared pieces are the same", name
                        )
                    known.add(version)
                    return
        raise SceneChangedError(
            f"{self.uri} changed while it was being mapped: its bytes are no longer those the run began with. No block of the "
            "changed scene was kept. Put the first scene back and resume, or map the new one with --overwrite"
        )


def origin_of(uri: str) -> Origin:
    """Look at all files behind a raster that GDAL can open.

    Raises:
        SceneReadError: A file cannot be read.
    """
    with vsi.environment(uri):
        files = _files_of(uri)
        version = version_of(files)
        found = contents_of(files)
    if not files:
        log.warning("%s is no file: whether it is the same scene in another run cannot be told", redacted(uri))
    return Origin(uri=uri, files=files, sha256=found.sha256, size=found.size, sampled=found.sampled, version=version)


def refuse_changed(origin: Origin | None) -> None:
    """Refuse a scene that is another one now. If it cannot be reached, each block tells so when it is written.

    Raises:
        SceneChangedError: See `Origin.require_unchanged`.
    """
    try:
        if origin is not None:
            origin.require_unchanged()
    except SceneReadError as error:
        log.warning("the scene cannot be compared: %s", error)


def warn_if_sampled(begun: str | None, now: Mapping[str, object]) -> None:
    """Say that a large scene, compared by pieces, has another time or tag than at the beginning of the run."""
    if now["sampled"] and begun != now["version"]:
        log.warning(
            "%s has another time of change or tag than when the run was begun; the compared pieces are the same",
            now["name"],
        )


def forget_cached(uri: str) -> None:
    """Drop what GDAL remembers of a remote scene, so that opening it shows what is there now."""
    name = vsi.name_of(uri)
    if vsi.is_remote(name):
        with vsi.environment(uri):
            vsi.forget(name)


def _files_of(uri: str) -> tuple[str, ...]:
    """GDAL's names of all files behind a raster, the raster first; sources of a VRT are followed."""
    forget_cached(uri)
    found: dict[str, None] = {}
    first = vsi.name_of(uri)
    waiting = [first]
    while waiting:
        for name in _expanded(vsi.listed(waiting.pop(0)), first):
            if name not in found:
                found[name] = None
                if name.lower().endswith(".vrt") and len(found) > 1:
                    waiting.append(name)
    for archive in {vsi.container(name) for name in found if vsi.container(name) != name}:
        found.pop(archive, None)  # GDAL names it beside its member
    remote = [name for name in found if vsi.is_remote(name)]
    if len(remote) > MOST_REMOTE_FILES:
        log.warning(
            "%s has %d remote files; a change is noticed in the first %d", redacted(uri), len(remote), MOST_REMOTE_FILES
        )
        for name in remote[MOST_REMOTE_FILES:]:
            del found[name]
    for name in remote[:MOST_REMOTE_FILES]:
        vsi.forget(name)
    return tuple(found)


def _expanded(names: Sequence[str], first: str) -> Iterator[str]:
    """Files with the side files beside them (of remote files, beside the first alone); folders as the files in them."""
    for name in names:
        path = vsi.local_path(name)
        if path is not None and path.is_dir():
            yield from (str(p) for p in sorted(path.rglob("*")) if p.is_file())
            continue
        yield name
        if path is not None:
            yield from (f"{name}{end}" for end in _SIDE_FILES if path.with_name(path.name + end).is_file())
        elif name == first and vsi.is_remote(name) and "?" not in name:  # with a query, an address stands for one file
            yield from (f"{name}{end}" for end in _SIDE_FILES if vsi.headers(f"{name}{end}"))


def version_of(files: Sequence[str]) -> Version:
    """Return what can be told of files without reading them: size, times and inode, or a server's tag or time of change.

    Raises:
        SceneReadError: One is gone, or the server does not answer.
    """
    return tuple(_version(name) for name in files)


def _version(name: str) -> Version:
    path = vsi.local_path(vsi.container(name))
    if path is not None:
        try:
            own = _state(path)
        except OSError as error:
            raise SceneReadError(f"{name} cannot be read: {error.strerror}") from error
        return (*own, *(_state_if_any(path.with_name(path.name + end)) for end in _SIDE_FILES))
    told = vsi.headers(vsi.container(name)) if vsi.is_remote(name) else {}
    tag, changed = told.get("etag"), told.get("last-modified")
    size = told.get("content-range", "").rpartition("/")[2] or told.get("content-length")
    if tag is not None or (changed is not None and not _is_fresh(changed, told.get("date"))):
        return (tag, changed, size)
    vsi.forget(name)
    return (contents_of((name,)).sha256,)


def _state(path: Any) -> Version:
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def _state_if_any(path: Any) -> Version | None:
    try:
        return _state(path)
    except OSError:
        return None


def _is_fresh(changed: str, now: str | None) -> bool:
    """Whether a file changed so shortly before the server's answer that it may change again within the same second."""
    try:
        return (
            now is None
            or (parsedate_to_datetime(now) - parsedate_to_datetime(changed)).total_seconds() < _FRESH_SECONDS
        )
    except (TypeError, ValueError):  # no dates, or one without a zone
        return True
