"""Where a product may be written, and how it takes the place of an older one.

A product never replaces what the map was made from, nor anything inside a map, nor a folder. A file that an export of
`ovrs` wrote is replaced; any other file only with `overwrite`. A failed export leaves the older file as it was.
"""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ovrs.errors import OptionError, OutputError, OvrsError
from ovrs.export import marks
from ovrs.export.inputs import input_files
from ovrs.store.layout import partial_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.export.product import Kind
    from ovrs.store.map import Map

_LONGEST_NAME = 255
"""Bytes of a file name on common file systems."""
_BESIDE_TIFF = (".msk", ".ovr")
"""Side files by which GDAL would show another picture than the raster's own."""


def check(mapped: Map, out: Path, kind: Kind, *, overwrite: bool = False) -> None:
    """Refuse a path that a product of a map must not be written to; nothing is written or created.

    Args:
        mapped: The map.
        out: The file to write.
        kind: What it is to hold.
        overwrite: Replace also a file that `ovrs` did not write.

    Raises:
        OptionError: Wrong suffix; an input of the map; inside a map; another file that is no product.
        OutputError: The folder cannot be written, a folder is there, or the name is too long.
    """
    if out.suffix.lower() not in kind.suffixes:
        raise OptionError(
            f"{kind.name}: {_said(out)} must end with {' or '.join(kind.suffixes)}, not {out.suffix or 'without a suffix'}"
        )
    if any(ord(c) < 32 or ord(c) == 127 for c in str(out)):
        raise OptionError(f"{_said(out)} holds a control character; GIS cannot open such names. Choose another name")
    if str(out).encode("utf-8", "replace").decode() != str(out):
        raise OptionError(f"{_said(out)} is no UTF-8 name; GDAL cannot write such names. Choose another name")
    try:
        _check_place(mapped.path, out)
        _check_what_is_there(mapped, out, kind, overwrite=overwrite)
    except OvrsError:
        raise
    except OSError as error:
        raise OutputError(f"{_said(out)} cannot be written: {error.strerror or error}") from error


def _check_place(map_path: Path | None, out: Path) -> None:
    if len(os.fsencode(out.name)) > _LONGEST_NAME - len(".aux.xml"):
        raise OutputError(f"the name {out.name[:40]}… is too long for a file; choose a shorter one")
    real = Path(os.path.realpath(out))
    inside = (
        []
        if map_path is None
        else [map_path, partial_path(map_path), map_path.with_name(map_path.name.removesuffix(".zarr") + ".run")]
    )
    for folder in real.parents:
        if any(folder == Path(os.path.realpath(p)) for p in inside) or _is_zarr(folder):
            raise OptionError(f"{_said(out)} lies inside {folder}, which holds a map; choose a path outside it")
    parent = next((p for p in real.parents if p.exists()), real.parent)
    if not parent.is_dir():
        raise OutputError(f"{_said(out)} cannot be written: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{_said(out)} cannot be written: no permission to write into {parent}")


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def _check_what_is_there(mapped: Map, out: Path, kind: Kind, *, overwrite: bool) -> None:
    source = input_of(mapped, out)
    if source is not None:
        raise OptionError(f"{_said(out)} is what the map was made from ({_said(source)}); choose another name")
    if kind.suffixes[0] == ".tif":
        for side in (out.with_name(out.name + s) for s in _BESIDE_TIFF):
            if side.exists():
                raise OptionError(
                    f"{_said(side)} would be read as part of {out.name}; remove it or choose another name"
                )
    if not out.exists():
        return
    if out.is_dir():
        raise OutputError(f"{_said(out)} is a folder; name a file")
    if not out.is_file():
        raise OutputError(f"{_said(out)} is no ordinary file; name a file")
    if not os.access(out, os.W_OK):
        raise OutputError(f"{_said(out)} cannot be written: it is write-protected")
    if out.suffix.lower() == ".gpkg" and not overwrite:
        return  # other people's layers stay, see `geopackage`
    if not overwrite and not marks.is_ours(out, kind):
        raise OptionError(
            f"{_said(out)} is there already and is no {kind.name} file of ovrs; choose another name, or --overwrite replaces it"
        )


def input_of(mapped: Map, out: Path) -> Path | None:
    """Return the input of the map that `out` is or lies in, a file or folder; None for all other paths."""
    parents = Path(os.path.realpath(out)).parents
    area: Any = mapped.record.options.scene.get("aoi")
    for path in input_files(mapped.record.uri, area):
        if same_file(out, path) or (path.is_dir() and path in parents):
            return path
    return None


def check_alone(out: Path, kind: Kind, *, overwrite: bool = False) -> None:
    """Refuse a path that a file without a map must not be written to.

    Raises:
        OptionError: Wrong suffix, a folder, or another file than one of this kind that `ovrs` wrote.
    """
    if out.suffix.lower() not in kind.suffixes:
        raise OptionError(f"{_said(out)} must end with {' or '.join(kind.suffixes)}")
    if out.is_dir() or (out.exists() and not overwrite and not marks.is_ours(out, kind)):
        raise OptionError(
            f"{_said(out)} exists and is no {kind.name} file of ovrs; choose another name, or pass --overwrite"
        )


def check_distinct(paths: dict[str, Path]) -> None:
    """Refuse two products of one command that would be one file; keys are the options that name them.

    Raises:
        OptionError: Two are the same.
    """
    seen: dict[str, str] = {}
    for option, path in paths.items():
        real = os.path.realpath(path).casefold()
        if real in seen:
            raise OptionError(f"{seen[real]} and {option} would both write {_said(path)}; give each a name of its own")
        seen[real] = option


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes the place of `out` when the block ends well, else it vanishes.

    The temporary file lies in the folder of `out` (created if missing) and has its suffix in lower case. A symbolic
    link stays and its target is replaced.

    Raises:
        OutputError: The file cannot be written.
    """
    real = Path(os.path.realpath(out))
    temporary = real.with_name(f".{uuid.uuid4().hex[:12]}{real.suffix.lower()}")
    made = [folder for folder in real.parents if not folder.exists()]
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(real)
        made.clear()
    except OvrsError:
        raise
    except OSError as error:
        raise OutputError(f"{_said(out)} cannot be written: {error.strerror or error}") from error
    finally:
        for leftover in real.parent.glob(f"{temporary.stem}*") if real.parent.is_dir() else ():
            leftover.unlink(missing_ok=True)
        for folder in made:  # of a failed export; another program may have put something there
            with suppress(OSError):
                folder.rmdir()


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, by symbolic or hard links too."""
    try:
        return os.path.realpath(one) == os.path.realpath(other) or one.samefile(other)
    except OSError:  # one of them is not there
        return False


def relative(path: Path, base: Path) -> str:
    """Link from a folder to a file: `./NAME`, with `/`; characters that end a path in a URL are escaped."""
    link = Path(os.path.relpath(path.absolute(), base.absolute())).as_posix()
    return "./" + "".join(quote(os.fsencode(c)) if c in "%?#" or not c.isprintable() else c for c in link)


def write_text(out: Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8); errors as `replaced`."""
    with replaced(out) as temporary:
        temporary.write_text(text, "utf-8")


def _said(path: Any) -> str:
    """Return a path for one line of a message."""
    return "".join(c if c.isprintable() else "?" for c in str(path))
