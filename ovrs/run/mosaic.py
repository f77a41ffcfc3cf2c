"""A scene of several files: the mosaic that is made for a run and kept beside it, in `NAME.scene/`."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs import files
from ovrs.errors import StoreError
from ovrs.run import overwrite as clearing
from ovrs.run.lock import Lock
from ovrs.run.rundir import RunDir
from ovrs.scene import mosaic

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)


def folder_of(out: Path) -> Path:
    """Where the mosaic of the map `NAME.zarr` lies: `NAME.scene/NAME.vrt`, with a view of each file that is warped."""
    return out.with_name(out.name.removesuffix(".zarr") + ".scene")


def as_one(given: Sequence[str | Path], out: Path, *, overwrite: bool = False) -> str | Path:
    """One scene of what was named: a file as it is; of several files a mosaic, made once and kept.

    Args:
        given: Files, addresses, patterns and folders (`ovrs.scene.mosaic.several`).
        out: `NAME.zarr`, of this machine.
        overwrite: Replace the mosaic of other files.

    Raises:
        SceneReadError: Files do not go together.
        StoreError: The run was begun with other files, or something else is in the way.
    """
    named = mosaic.several([str(g) for g in given])
    if len(given) == len(named) == 1:
        return given[0] if str(given[0]) == named[0] else named[0]
    out = files.named(out).absolute()
    for uri in named:
        clearing.require_apart(uri, out)
    folder, name = folder_of(out), out.name.removesuffix(".zarr")
    made = mosaic.documents(named, folder, name)
    if _texts(folder) != made:
        begun = clearing.found(out)
        if begun:
            _require_replaceable(out, folder, overwrite=overwrite)
        with Lock(RunDir(out)) if begun else nullcontext():
            _write(made, folder)
        log.info("%d files are one scene: %s", len(named), folder / f"{name}.vrt")
    return folder / f"{name}.vrt"


def _texts(folder: Path) -> dict[str, str]:
    """Return the mosaic that lies there, by file name."""
    if folder.exists() and (not folder.is_dir() or any(p.suffix != ".vrt" for p in _entries(folder))):
        raise StoreError(f"{folder} is the place of the scene's mosaic and holds something else; move it away")
    return {p.name: p.read_text("utf-8") for p in _entries(folder)} if folder.is_dir() else {}


def _entries(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if not p.name.startswith(".")]


def _require_replaceable(out: Path, folder: Path, *, overwrite: bool) -> None:
    if not overwrite:
        raise StoreError(
            f"{out} was begun with other files than these, or they lay elsewhere ({folder} lists them); name the same files, "
            "choose another output, or pass --overwrite to begin anew"
        )
    clearing.require_ours(out)


def _write(made: dict[str, str], folder: Path) -> None:
    """Write the files of a mosaic, the mosaic itself last, as its name stands for all."""
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in _entries(folder):
            if old.name not in made:
                old.unlink()
    for name, text in made.items():
        files.write_text(folder / name, text)
