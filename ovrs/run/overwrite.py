"""What `--overwrite` may remove: only what a run of ovrs made, and never the scene itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import zarr

from ovrs.errors import OptionError, StoreError
from ovrs.run import adaptation, verify
from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.place import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN_FILES = {"blocks", "foreign", verify.MANIFEST, adaptation.STATE_FILE}
_QUOTED = re.compile(r'"([^"]+)"')


def require_apart(uri: str | Path, out: Path) -> None:
    """Refuse a scene that lies inside the output, or is the output.

    Args:
        uri: Anything GDAL opens; paths are also found in names like `ZARR:"map.zarr":/label`.
        out: `NAME.zarr`.

    Raises:
        OptionError: The scene lies in the store, in its unfinished form, or in its run directory.
    """
    places = [path.resolve() for path in (out, store.partial_path(out), RunDir(out).path)]
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


def found(out: Path) -> bool:
    """Whether something is at the output that a new run would have to remove."""
    return any(path.is_symlink() or path.exists() for path in (out, store.partial_path(out), RunDir(out).path))


def require_ours(out: Path) -> None:
    """Refuse to remove what no run of ovrs made.

    A store is ours by its `ovrs` attribute; a damaged one by the run directory beside it; an empty folder is nobody's.

    Raises:
        StoreError: Names what is in the way.
    """
    run = RunDir(out)
    for path in (out, store.partial_path(out), run.path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            kind = "a symbolic link" if path.is_symlink() else "a file"
            raise StoreError(f"{path} is {kind}, not a folder that ovrs made; remove it or choose another output")
    if run.path.exists() and not _is_run(run):
        raise StoreError(f"{run.path} is no run directory of ovrs; move it away or choose another output")
    partial = store.partial_path(out)
    if partial.exists() and not (run.exists or any((partial / name).exists() for name in store.ROOT_FILES)):
        raise StoreError(f"{partial} was not made by ovrs; move it away or choose another output")
    if out.exists() and any(out.iterdir()) and not _is_store(out, run):
        raise StoreError(f"{out} was not made by ovrs and is not overwritten; remove it or choose another output")


def _is_run(run: RunDir) -> bool:
    return run.exists or all(p.name in _RUN_FILES or p.name.startswith((".", "lock.")) for p in run.path.iterdir())


def _is_store(out: Path, run: RunDir) -> bool:
    try:
        return "ovrs" in zarr.open_group(out, mode="r", use_consolidated=False).attrs
    except UNREADABLE:
        return _is_run(run) if run.path.exists() else False
