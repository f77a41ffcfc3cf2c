"""Pixels of overview levels: the most frequent class of each 2 × 2 cell, the mean confidence. Streaming, any size."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA
from ovrs.errors import StoreError
from ovrs.scene.grid import Window
from ovrs.store import geozarr
from ovrs.store import layout as store
from ovrs.store.codec import pixel_crc
from ovrs.store.levels import Levels, part
from ovrs.store.levels import strips as strips

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    Pair = tuple[NDArray[Any], NDArray[np.uint8]]
    """Labels and confidence `(y, x)` of one place."""

_ROWS = 256
"""Rows of cells that are reduced at a time: they stay in the processor's cache."""


def write_block(root: zarr.Group, levels: Levels, core: Window, pair: Pair) -> str:
    """Write a block's own part of every level that blocks write.

    Args:
        root: The map, writable.
        levels: Its levels.
        core: The block's pixels.
        pair: Labels and confidence of these pixels.

    Returns:
        CRC-32 of the parts, each level's labels, then its confidence; empty where blocks write no level.
    """
    return _written(root, core, levels.by_block, pair) if levels.by_block else ""


def block_crc(root: zarr.Group, levels: Levels, core: Window) -> str:
    """CRC-32 of a stored block's parts, as `write_block` gives it; empty where one is unreadable."""
    crc = 0
    for factor in levels.by_block:
        try:
            crc = pixel_crc(_read(root, factor, part(core, factor)), crc)
        except StoreError:
            return ""
    return f"{crc:08x}"


def clear_block(root: zarr.Group, levels: Levels, core: Window) -> None:
    """Make a block's own parts no data."""
    for factor in levels.by_block:
        for name in ("label", "confidence"):
            array = store.array(root, f"{factor}/{name}")
            array[_slices(part(core, factor))] = array.fill_value


def write_group(root: zarr.Group, levels: Levels, row: int, col: int) -> None:
    """Write a group's own part of every level that groups write, from the finer level that is stored."""
    window = levels.group(row, col)
    for factor in levels.by_group:
        _reduce(root, levels, factor, part(window, factor))


def write_rest(root: zarr.Group, levels: Levels) -> None:
    """Write the levels that neither blocks nor groups write, each from the one before."""
    for factor in levels.rest:
        for window in levels.windows(factor):
            _reduce(root, levels, factor, window)


def describe(root: zarr.Group, levels: Levels, geobox: GeoBox) -> None:
    """Name the levels in the map's metadata, for readers."""
    if not levels.factors:
        return
    boxes = {".": geobox, **{str(f): levels.geobox_of(f, geobox) for f in levels.factors}}
    root.attrs.update(geozarr.pyramid(boxes, geobox.crs is not None))


def remove(root: zarr.Group) -> None:
    """Remove every level."""
    factor = 2
    while str(factor) in root:
        del root[str(factor)]
        factor *= 2


def _written(root: zarr.Group, window: Window, factors: tuple[int, ...], pair: Pair) -> str:
    """Halve pixels again and again, and write each level's part; returns CRC-32 of all parts."""
    label, confidence = pair
    nodata, crc = store.array(root, "label").fill_value, 0
    for factor in factors:
        label, confidence = mode2(label, nodata), mean2(confidence)
        _write(root, factor, part(window, factor), (label, confidence))
        crc = pixel_crc((label, confidence), crc)
    return f"{crc:08x}"


def _reduce(root: zarr.Group, levels: Levels, factor: int, window: Window) -> None:
    """Fill a window of a level, which nobody else writes, from the finer level; holds few chunks of that one at a time."""
    finer = levels.shape_of(factor // 2)
    labels, sure = (
        np.empty(window.shape, store.array(root, f"{factor}/{name}").dtype) for name in ("label", "confidence")
    )
    nodata = store.array(root, "label").fill_value
    for below in strips(window.shape, 4 * levels.chunk):
        top, left = 2 * (window.row_off + below.row_off), 2 * (window.col_off + below.col_off)
        source = Window(top, left, min(2 * below.height, finer[0] - top), min(2 * below.width, finer[1] - left))
        label, confidence = _read(root, factor // 2, source)
        within = _slices(below)
        if (label == nodata).all() and (confidence == CONFIDENCE_NODATA).all():
            labels[within], sure[within] = nodata, CONFIDENCE_NODATA
        else:
            labels[within], sure[within] = mode2(label, nodata), mean2(confidence)
    _write(root, factor, window, (labels, sure))


def _read(root: zarr.Group, factor: int, window: Window) -> Pair:
    below = "" if factor == 1 else f"{factor}/"
    label, confidence = (np.asarray(store.array(root, below + n)[_slices(window)]) for n in ("label", "confidence"))
    return label, confidence


def _write(root: zarr.Group, factor: int, window: Window, pair: Pair) -> None:
    for name, values in zip(("label", "confidence"), pair, strict=True):
        store.array(root, f"{factor}/{name}")[_slices(window)] = values


def _slices(window: Window) -> tuple[slice, slice]:
    return slice(window.row_off, window.row_end), slice(window.col_off, window.col_end)


def mode2(label: NDArray[Any], nodata: int) -> NDArray[Any]:
    """Most frequent class of each 2 × 2 cell; no data only where nothing else is; ties go to the first pixel in reading order."""
    found = np.empty((-(-label.shape[0] // 2), -(-label.shape[1] // 2)), label.dtype)
    for top, bottom in _steps(len(found)):
        a, b, c, d = _quads(label[2 * top : 2 * bottom], nodata)
        # the first pixel with data, unless it stands alone and two others agree
        two_agree = (b == c) | (b == d)
        two_agree &= b != nodata
        other = np.where(two_agree, b, c)
        two_agree |= (c == d) & (c != nodata)
        first = np.where(a != nodata, a, np.where(b != nodata, b, np.where(c != nodata, c, d)))
        two_agree &= ((a != b) & (a != c) & (a != d)) | (a == nodata)
        found[top:bottom] = np.where(two_agree, other, first)
    return found


_MEANS = np.array(
    [[CONFIDENCE_NODATA] * 1024, *([min((s + n // 2) // n, 255) for s in range(1024)] for n in range(1, 5))], np.uint8
).ravel()
"""Mean by 1024 · (number of valid values) + their sum."""


def mean2(confidence: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of the valid values of each 2 × 2 cell."""
    found = np.empty((-(-confidence.shape[0] // 2), -(-confidence.shape[1] // 2)), np.uint8)
    for top, bottom in _steps(len(found)):
        quads = _quads(confidence[2 * top : 2 * bottom], CONFIDENCE_NODATA)
        total = quads[0].astype(np.uint16)
        for quad in quads[1:]:
            total += quad
        lost = sum((quad == CONFIDENCE_NODATA).view(np.uint8) for quad in quads)
        if np.any(lost):
            found[top:bottom] = _MEANS[
                (4 - lost).astype(np.uint16) * 1024 + total - lost.astype(np.uint16) * CONFIDENCE_NODATA
            ]
        else:
            total += 2
            total >>= 2
            found[top:bottom] = total
    return found


def _steps(rows: int) -> Iterator[tuple[int, int]]:
    yield from pairwise([*range(0, rows, _ROWS), rows])


def _quads(values: NDArray[Any], fill: int) -> list[NDArray[Any]]:
    """Return the four pixels of each cell in reading order, `fill` beyond an odd side."""
    pad = ((0, values.shape[0] % 2), (0, values.shape[1] % 2))
    even = np.pad(values, pad, constant_values=fill) if pad != ((0, 0), (0, 0)) else values
    return [np.ascontiguousarray(even[i::2, j::2]) for i in (0, 1) for j in (0, 1)]
