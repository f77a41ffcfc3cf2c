"""Versions of a map: `NAME.zarr` is the newest, older contents of the scene lie in `NAME.versions/`.

A new version is made beside the old one and takes its name when it is finished, so that readers see the old map or the
new one. Cut off at any point, the same call goes on.
"""

from __future__ import annotations

import contextlib
import posixpath
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec

from ovrs.collection.imagery import is_marked
from ovrs.errors import OutputError, told
from ovrs.files import writing
from ovrs.objects.address import place_of
from ovrs.run import overwrite
from ovrs.run.publish import published_facts
from ovrs.run.rundir import run_folder
from ovrs.store import layout as store
from ovrs.store.place import UNREADABLE

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PRODUCTS = (".tif", ".png")
_SIDE = ".aux.xml"


def place(out: str, content: str) -> str:
    """Where the map of a content lies while it is made, and when it is no longer the newest."""
    return f"{out.removesuffix('.zarr')}.versions/{content[:16]}.zarr"


def is_free(out: str) -> bool:
    """Whether nothing is at `out`: no map, no unfinished one, no run directory."""
    where = place_of(out)
    if isinstance(where, Path):
        return not overwrite.found(where)
    files, root = fsspec.core.url_to_fs(out)
    files.invalidate_cache()
    return not files.exists(root)


def content_at(out: str) -> str:
    """Hash of the scene that the finished map at `out` was made of; empty when there is none or it does not tell."""
    facts: dict[str, object] | None = None
    where = place_of(out)
    if not isinstance(where, Path):
        facts = published_facts(out)
    elif where.exists():
        with contextlib.suppress(*UNREADABLE):
            facts = store.facts(store.opened(where))
    scene = (facts or {}).get("scene")
    return str(scene.get("sha256", "")) if isinstance(scene, dict) else ""


def holds(out: str, content: str) -> bool:
    """Whether the finished map at `out` was made of a scene with this hash."""
    return bool(content) and content_at(out) == content


def promote(made: str, out: str, older: str) -> None:
    """Give the finished map at `made` the name `out`; a map that has it now goes to `older`.

    Run directories and products beside local maps go with them. An unfinished map at `out` is removed: it belongs to
    a content that is no longer delivered.

    Args:
        made: From `place`, finished.
        out: `NAME.zarr`, or its address.
        older: From `place`, for what is at `out`.

    Raises:
        OutputError: The place cannot be written; the same call goes on.
    """
    source, target, aside = map(place_of, (made, out, older))
    if not (isinstance(source, Path) and isinstance(target, Path) and isinstance(aside, Path)):
        try:
            _promote_objects(made, out, older)
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {told(error)}; the next pass goes on") from error
        return
    with writing(target):
        if source.exists():
            _move(target, aside)
            partial = store.partial_path(target)
            if partial.exists():
                shutil.rmtree(partial)
                shutil.rmtree(run_folder(target), ignore_errors=True)
        _move(source, target)
        with contextlib.suppress(OSError):  # other versions are in it
            source.parent.rmdir()


def _move(source: Path, target: Path) -> None:
    """Move a map, its run directory and its products; what was moved already is left."""
    if source.exists():
        if target.exists():
            raise OutputError(f"{target} is in the way of a version of {source.name}; move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    run = run_folder(source)
    if target.exists() and run.exists() and not run_folder(target).exists():
        run.rename(run_folder(target))
    for suffix in _PRODUCTS:
        for product in (source.with_suffix(suffix), source.with_name(f"{source.stem}-classes{suffix}")):
            if product.is_file() and is_marked(product) and target.exists():
                _move_product(product, target, suffix)


def _move_product(product: Path, target: Path, suffix: str) -> None:
    new = target.with_suffix(suffix)
    if new.exists() and not is_marked(new):  # the scene itself
        new = target.with_name(f"{target.stem}-classes{suffix}")
    side = product.with_name(product.name + _SIDE)
    if side.exists():
        side.replace(new.with_name(new.name + _SIDE))
    product.replace(new)


def _promote_objects(made: str, out: str, older: str) -> None:
    files, source = fsspec.core.url_to_fs(made)
    target, old = (fsspec.core.url_to_fs(url)[1] for url in (out, older))
    files.invalidate_cache()
    if files.exists(source):
        new = _root(files, source)
        there = _root(files, target)
        if new is not None and there != new:
            _move_run(files, target, old if there is not None else "")
            _move_objects(files, target, old)
        _move_objects(files, source, target)
    _move_run(files, source, target)


def _move_run(files: AbstractFileSystem, source: str, target: str) -> None:
    """Move the run directory of a map, which was made in place; without a target it is removed."""
    run, there = (f"{place.removesuffix('.zarr')}.run" for place in (source, target))
    files.invalidate_cache()
    for name in files.find(run):
        if target:
            files.cp_file(name, there + name[len(run) :])
        files.rm_file(name)


def _move_objects(files: AbstractFileSystem, source: str, target: str) -> None:
    """Copy within the store, the root metadata last; then remove the source, the root metadata first."""
    files.invalidate_cache()
    names = sorted(files.find(source), key=lambda n: (posixpath.dirname(n) == source, n))
    if not names:
        return
    if _root(files, source) is not None:  # else it was copied, and its removal was cut off
        for name in names:
            files.cp_file(name, target + name[len(source) :])
    for name in reversed(names):
        files.rm_file(name)
    files.invalidate_cache()


def _root(files: AbstractFileSystem, folder: str) -> bytes | None:
    """Return the root metadata of a map; None when there is no whole map."""
    for name in store.ROOT_FILES:
        with contextlib.suppress(FileNotFoundError):
            return bytes(files.cat_file(posixpath.join(folder, name)))
    return None
