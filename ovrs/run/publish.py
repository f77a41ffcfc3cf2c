"""Put a finished map where others read it: another folder, or object storage through fsspec.

The root metadata (`zarr.json`, in format 2 `.zgroup` and `.zmetadata`) goes last, so a reader sees a whole map or none.
Where a map is replaced, its root metadata are removed first of all. A publish that was cut off is continued by the same
command.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs.errors import OutputError, OvrsError, StoreError, told
from ovrs.provenance import canonical
from ovrs.redact import redacted
from ovrs.run import verify
from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.map import open_map
from ovrs.store.place import filesystem

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)


def publish(source: Path, url: str, *, overwrite: bool = False) -> int:
    """Copy a finished store to `url`.

    Args:
        source: `NAME.zarr`, complete.
        url: `s3://bucket/maps/NAME.zarr`, `file:///…`, or anything fsspec knows; credentials come from its environment.
        overwrite: Replace another map that is there.

    Returns:
        Number of files sent by this call.

    Raises:
        StoreError: `source` is not complete or is damaged, or another map is at `url`, or it cannot be written.
    """
    with open_map(source) as mapped:
        record = mapped.record
    holes = {"holes": ",".join(record.holes)} if record.holes else {}
    digest = short({**record.digest, **holes})
    _require_whole(source)
    files, root = filesystem(url)
    plan = {p.relative_to(source).as_posix(): p.stat().st_size for p in sorted(source.rglob("*")) if p.is_file()}
    try:
        there, clearing = _begun(files, root)
        if there not in ("", digest) and not overwrite:
            raise StoreError(
                f"{url} holds another map (digest {there}); --overwrite replaces it, or choose another name"
            )
        if there not in ("", digest) or clearing:
            _clear(files, root, digest)
        if there != digest or clearing:
            files.makedirs(root, exist_ok=True)
            _note(files, root, {"digest": digest, "files": len(plan)})
        present = _sizes(files, root)
        missing = [name for name, size in plan.items() if present.get(name) != size]
        last = [name for name in store.ROOT_FILES if name in plan]
        for name in [n for n in missing if n not in last]:
            _put(files, source / name, posixpath.join(root, name))
        for name in [n for n in last if n in missing or missing]:
            _put(files, source / name, posixpath.join(root, name))
        arrived = _sizes(files, root)
        left = [n for n, size in plan.items() if arrived.get(n) != size]
    except OvrsError:
        raise
    except OSError as error:
        raise OutputError(
            f"{url} cannot be written: {told(error)}; run the same command again, what was sent is kept"
        ) from error
    if left:
        raise StoreError(
            f"{url} lacks {len(left)} files after publishing, such as {left[0]}; run the same command again"
        )
    return len(missing)


def _require_whole(source: Path) -> None:
    """Refuse a map that differs from its run's manifest; a map without a run directory cannot be compared."""
    wanted = verify.read_manifest(RunDir(source)).files
    damaged = [str(problem) for problem in verify.differences(source, wanted)] if wanted else []
    if damaged:
        raise StoreError(
            f"{source} is damaged and not published ({'; '.join(damaged[:3])}); `ovrs repair {source}` first"
        )


def short(digest: dict[str, str]) -> str:
    """One word for a run's digest."""
    return hashlib.sha256(canonical(digest).encode()).hexdigest()[:16]


def published_facts(url: str) -> dict[str, object] | None:
    """Return the `ovrs` attribute of the whole map at `url`; None when there is none or only a part.

    Raises:
        StoreError: The place cannot be read.
    """
    files, root = filesystem(url)
    try:
        return _facts(files, root)
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{url} cannot be read: {error}") from error


def _facts(files: AbstractFileSystem, root: str) -> dict[str, object] | None:
    for name in ("zarr.json", ".zattrs"):
        file = posixpath.join(root, name)
        if files.exists(file):
            content = json.loads(files.cat_file(file))
            facts: dict[str, object] | None = content.get("attributes", content).get("ovrs")
            return facts
    return None


def staging_path(url: str, folder: Path) -> Path:
    """Where a map for `url` is made before it is published; the same for the same URL."""
    name = posixpath.basename(url.rstrip("/")).removesuffix(".zarr")
    return folder / f"{name}-{hashlib.sha256(redacted(url).encode()).hexdigest()[:8]}.zarr"


def _begun(files: AbstractFileSystem, root: str) -> tuple[str, bool]:
    """Digest of the map that is at a place, whole or in part, and whether an older one is still being removed there."""
    file = posixpath.join(root, store.PUBLISHING)
    if files.exists(file):
        try:
            content = json.loads(files.cat_file(file))
            return str(content["digest"]), bool(content.get("clearing"))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{file} is damaged ({error}); remove what is there, or choose another name") from error
    if not files.exists(root) or not files.ls(root):
        return "", False
    facts = _facts(files, root)
    if facts is None:
        raise StoreError(f"{root} is not empty and was not published by ovrs; choose another name")
    digest: Any = facts["digest"]
    return short(digest), True  # made in place by a run


def _clear(files: AbstractFileSystem, root: str, digest: str) -> None:
    """Remove a map: for readers first, so that no reader ever finds a part of it under whole metadata."""
    for name in store.ROOT_FILES:
        with contextlib.suppress(FileNotFoundError):
            files.rm_file(posixpath.join(root, name))
    _note(files, root, {"digest": digest, "clearing": True})
    kept = posixpath.join(root, store.PUBLISHING)
    files.invalidate_cache()
    names = [name for name in files.find(root) if name != kept]
    run = root.removesuffix(".zarr") + ".run"  # of a map that was made in place: it tells of another one now
    names += files.find(run) if root.endswith(".zarr") and files.exists(posixpath.join(run, "run.json")) else []
    for name in names:
        files.rm_file(name)


def _note(files: AbstractFileSystem, root: str, content: dict[str, object]) -> None:
    files.pipe_file(posixpath.join(root, store.PUBLISHING), json.dumps(content).encode())


def _sizes(files: AbstractFileSystem, root: str) -> dict[str, int]:
    files.invalidate_cache()
    found = files.find(root, detail=True)
    return {name[len(root) :].lstrip("/"): int(info["size"]) for name, info in found.items()}


def _put(files: AbstractFileSystem, source: Path, target: str) -> None:
    """One file, whole or not at all: object stores do so by themselves, file systems through a second name."""
    if "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)):
        files.makedirs(posixpath.dirname(target), exist_ok=True)
        files.put_file(str(source), target + ".part")
        files.mv(target + ".part", target)
    else:
        files.put_file(str(source), target)
