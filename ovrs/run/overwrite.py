"""What `--overwrite` may remove: only what a run of ovrs made, and never the scene itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import zarr

from ovrs.errors import OptionError, StoreError
from ovrs.objects.address import Address, Place, is_there, objects_at
from ovrs.run import adaptation, verify
from ovrs.run.rundir import COMPLETE, RunDir, run_folder
from ovrs.store import layout as store
from ovrs.store.keys import Hidden
from ovrs.store.place import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN_FILES = {"blocks", "foreign", verify.MANIFEST, adaptation.STATE_FILE, COMPLETE}
_QUOTED = re.compile(r'"([^"]+)"')


def require_apart(uri: str | Path, out: Place) -> None:
    """Refuse a scene that lies inside the output, or is the output.

    Args:
        uri: Anything GDAL opens; paths are also found in names like `ZARR:"map.zarr":/label`.
        out: `NAME.zarr`.

    Raises:
        OptionError: The scene lies in the store, in its unfinished form, or in its run directory.
    """
    if isinstance(out, Address):
        below = [f"{place.url.partition('://')[2]}/" for place in (out, out.with_name(RunDir(out).path.name))]
        if any(place in f"{uri}/" for place in below):
            raise OptionError(
                f"the scene {uri} lies in the output {out}, which would be overwritten; choose another -o"
            )
        return
    places = [path.resolve() for path in (out, store.partial_path(out), run_folder(out))]
    for path in _paths(str(uri)):
        if any(path.resolve().is_relative_to(place) for place in places):
            raise OptionError(
                f"the scene {uri} lies in the output {out}, which would be overwritten; choose another -o"
            )


def _paths(uri: str) -> Iterator[Path]:
    """Local paths that a GDAL name may hold: itself, what stands in quotes, what stands between colons."""
    for part in (uri, *_QUOTED.findall(uri), *uri.split(":"), uri.removeprefix("file://")):
        if part and len(part) < 4096 and "\0" not in part:
            yield Path(part)


def found(out: Place) -> bool:
    """Whether something is at the output that a new run would have to remove."""
    if isinstance(out, Address):
        return bool(objects_at(out).list(deep=False)) or is_there(out) or RunDir(out).exists
    return any(path.is_symlink() or path.exists() for path in (out, store.partial_path(out), run_folder(out)))


def require_ours(out: Place) -> None:
    """Refuse to remove what no run of ovrs made.

    A store is ours by its `ovrs` attribute; a damaged one by the run directory beside it; an empty folder is nobody's.

    Raises:
        StoreError: Names what is in the way.
    """
    run = RunDir(out)
    if isinstance(out, Address):
        _require_our_address(out, run)
        return
    for path in (out, store.partial_path(out), run_folder(out)):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            kind = "a symbolic link" if path.is_symlink() else "a file"
            raise StoreError(f"{path} is {kind}, not a folder that ovrs made; remove it or choose another output")
    assert isinstance(run.path, Path)  # beside a path
    if run.path.exists() and not _is_run(run):
        raise StoreError(f"{run.path} is no run directory of ovrs; move it away or choose another output")
    partial = store.partial_path(out)
    if partial.exists() and not (run.exists or any((partial / name).exists() for name in store.ROOT_FILES)):
        raise StoreError(f"{partial} was not made by ovrs; move it away or choose another output")
    if out.exists() and any(out.iterdir()) and not _is_store(out, run):
        raise StoreError(f"{out} was not made by ovrs and is not overwritten; remove it or choose another output")


def _require_our_address(out: Address, run: RunDir) -> None:
    below = objects_at(out)
    begun = any(name in store.ROOT_FILES for name in (e.key for e in Hidden(below, store.ROOT_FILES).list(deep=False)))
    if run.exists or begun or below.head(store.PUBLISHING) is not None or not below.list():
        return
    if is_there(out) and "ovrs" in store.opened(store.readable(out)).attrs:
        return
    raise StoreError(f"{out} was not made by ovrs and is not overwritten; remove it or choose another output")


def _is_run(run: RunDir) -> bool:
    if run.exists or not isinstance(run.path, Path):
        return True
    return all(p.name in _RUN_FILES or p.name.startswith((".", "lock.")) for p in run.path.iterdir())


def _is_store(out: Path, run: RunDir) -> bool:
    try:
        return "ovrs" in zarr.open_group(out, mode="r", use_consolidated=False).attrs
    except UNREADABLE:
        return isinstance(run.path, Path) and run.path.exists() and _is_run(run)
