"""Which files a pattern of a catalog names."""

from __future__ import annotations

import glob as globbing
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def glob(pattern: str) -> list[str]:
    """Files and folders that a pattern finds, sorted; `**` goes down any number of folders, through links too.

    Hidden ones (`.NAME`) are found only by patterns that begin with a dot. Folders that exist under the very name that
    the pattern begins with are taken literally, brackets or not.
    """
    pattern = _with_literal_folders(pattern)
    head, deep, tail = pattern.partition("**/")
    places = [pattern]
    if deep:
        places = [f"{globbing.escape(folder)}/{tail}" for root in _found(head or ".") for folder in _below(root)]
    return sorted({os.path.normpath(f) if ".." not in f else str(Path(f)) for place in places for f in _found(place)})


def literal_folder(pattern: str) -> str:
    """Return the folder that a pattern of local files begins with, as far as it exists under that name."""
    folder = Path(Path(pattern).anchor)
    for part in Path(pattern).parts[len(folder.parts) : -1]:
        if not (folder / part).is_dir():
            break
        folder /= part
    return str(folder)


def _with_literal_folders(pattern: str) -> str:
    folder = literal_folder(pattern)
    rest = Path(pattern).parts[len(Path(folder).parts) :]
    return str(Path(globbing.escape(folder), *rest)) if rest else pattern


def _found(pattern: str) -> list[str]:
    return globbing.glob(pattern, recursive=True)  # noqa: PTH207  (pathlib's takes no absolute patterns)


def _below(root: str) -> Iterator[str]:
    """Yield a folder and all folders below it, each once, whatever links lead to it."""
    seen: set[str] = set()
    for folder, inner, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else sorted(name for name in inner if not name.startswith("."))
        if real not in seen:
            yield folder
        seen.add(real)
