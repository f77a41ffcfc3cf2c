"""Markers that this process has read: told apart by the tags of one listing, so that each is read once."""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ovrs.objects.many import each

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovrs.objects.address import Place
    from ovrs.objects.interface import Objects

Marker = TypeVar("Marker")

_MOST = 100_000
"""Markers that are kept, but for those of the last run: 2 to 3 kB each."""
_SETTLED_SECONDS = 2.0
"""A file that changed later than this many seconds ago may change again without another time of change."""

_known: OrderedDict[str, dict[str, tuple[str, Any]]] = OrderedDict()
"""Tag and content of each marker by its name, by the place of its run."""


def read(objects: Objects, run: Place, folder: str, parse: Callable[[str], Marker]) -> dict[str, Marker]:
    """Return every marker by the name of its file; lists once, and reads those that are new or changed.

    Args:
        objects: The run directory.
        run: Where it lies.
        folder: Where the markers lie in it.
        parse: Reads the marker of a name.
    """
    begun = time.time()
    tags = _in_folder(run / folder, begun) if isinstance(run, Path) else _in_bucket(objects, folder)
    place = str(run.absolute() if isinstance(run, Path) else run)
    before: dict[str, tuple[str, Any]] = _known.pop(place, {})
    new = [key for key, tag in tags.items() if not tag or key not in before or before[key][0] != tag]
    found = dict(each(objects, new, parse))
    kept = {key: (tag, found[key]) if key in found else before[key] for key, tag in tags.items()}
    _known[place] = kept
    while len(_known) > 1 and sum(map(len, _known.values())) > _MOST:
        _known.popitem(last=False)
    return {key: marker for key, (_, marker) in kept.items()}


def _in_folder(folder: Path, begun: float) -> dict[str, str]:
    """Names with inode, time and size; with nothing where that may stay the same although the content changes."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if _is_marker(entry.name):
                found[f"{folder.name}/{entry.name}"] = _tag(entry, begun)
    return dict(sorted(found.items()))


def _tag(entry: os.DirEntry[str], begun: float) -> str:
    try:
        state = entry.stat()
    except OSError:  # a link to nothing, or gone: reading tells
        return ""
    settled = state.st_mtime < begun - _SETTLED_SECONDS
    return f"{state.st_ino:x}-{state.st_mtime_ns:x}-{state.st_size:x}" if settled else ""


def _in_bucket(objects: Objects, folder: str) -> dict[str, str]:
    return {e.key: e.tag for e in objects.list(f"{folder}/", deep=False) if _is_marker(e.key.rpartition("/")[2])}


def _is_marker(name: str) -> bool:
    return name.endswith(".json") and name[:1].isdigit()
