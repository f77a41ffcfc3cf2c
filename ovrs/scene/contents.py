"""Hash of the bytes of files, or of pieces of them where they are large."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, NamedTuple

from ovrs.errors import SceneReadError
from ovrs.scene import vsi

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class _Sample(NamedTuple):
    """How much is hashed."""

    whole: int
    """Bytes of all files together up to which every byte counts."""
    piece: int
    pieces: int
    """Beyond that: so many pieces of so many bytes, evenly spread, the first and the last bytes among them."""


LOCAL, REMOTE = _Sample(256 << 20, 256 << 10, 1024), _Sample(8 << 20, 64 << 10, 20)
_CHUNK = 1 << 20


class Contents(NamedTuple):
    """The bytes of some files."""

    sha256: str
    size: int
    """Bytes of all files but side files of GDAL's (`.aux.xml`)."""
    sampled: bool
    """Whether pieces stand for the whole."""


def contents_of(files: Sequence[str]) -> Contents:
    """Hash files' bytes in the order given, whatever they are called. Names are GDAL's.

    Raises:
        SceneReadError: A file cannot be read, or ends early.
    """
    described = {name: text for name in files if (text := _described(name)) is not None}
    sizes = {}
    for name in files:
        if name not in described:
            with vsi.reading(name) as stream:
                sizes[name] = stream.size
    total = sum(sizes.values())
    sample = REMOTE if any(vsi.is_remote(name) for name in files) else LOCAL
    digest, sampled = hashlib.sha256(), total > sample.whole
    for name in files:
        if name in described:
            digest.update(described[name])
            continue
        size = sizes[name]
        digest.update(f"{size}:".encode())
        count = max(3, sample.pieces * size // total) if sampled else 0
        with vsi.reading(name) as stream:
            for start, length in _pieces(size, sample.piece, count):
                part = stream.read(start, length)
                if len(part) != length:
                    raise SceneReadError(
                        f"{name} ends at byte {start + len(part)} of {size}. Is it complete and reachable?"
                    )
                digest.update(part)
    return Contents(digest.hexdigest(), total, sampled)


def _pieces(size: int, piece: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield starts and lengths of the bytes that are hashed: `count` pieces, or all if there is none or they would cover all."""
    if count == 0 or count * piece >= size:
        for start in range(0, size, _CHUNK):
            yield start, min(_CHUNK, size - start)
        return
    for index in range(count):
        yield (size - piece) * index // (count - 1), piece


def _described(name: str) -> bytes | None:
    """Return a side file of GDAL's without the statistics that viewers add by looking; None for every other file."""
    if not name.lower().endswith(".aux.xml"):
        return None
    with vsi.reading(name) as stream:
        text = stream.read(0, stream.size)
    try:
        tree = ElementTree.fromstring(re.sub(rb"<!DOCTYPE[^>]*>", b"", text))
    except ElementTree.ParseError:
        return None
    for parent in list(tree.iter()):
        for child in list(parent):
            if child.tag == "Histograms" or (child.tag == "MDI" and child.get("key", "").startswith("STATISTICS_")):
                parent.remove(child)
    for tag in ("Metadata", "PAMRasterBand"):
        for parent in list(tree.iter()):
            for child in [c for c in parent if c.tag == tag and not len(c) and not (c.text or "").strip()]:
                parent.remove(child)
    return ElementTree.tostring(tree) if len(tree) else b""
