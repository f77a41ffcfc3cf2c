"""Overview levels: the most frequent class of each 2 × 2 cell, the mean confidence. Streaming, any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from ovrs.encoding import CONFIDENCE_NODATA, label_nodata
from ovrs.scene.grid import Window
from ovrs.store import geozarr
from ovrs.store import layout as store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from zarr.abc.store import Store


def build(
    path: Path | Store,
    geobox: GeoBox,
    *,
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    chunk: int,
    shard: int | None = None,
) -> list[int]:
    """Write levels 2, 4, … into their groups, each from the one before; returns the factors.

    Starts from clean groups, so a second call after an interruption gives the same bytes.
    """
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    factors: list[int] = []
    boxes = {".": geobox}
    source, box, factor = root, geobox, 1
    while max(box.shape) > store.PYRAMID_FLOOR:
        factor *= 2
        box = _halved(source, geobox, factor)
        target = root.create_group(str(factor), overwrite=True)
        store.level(target, box, store.Schema(classes=classes, colours=colours, chunk=chunk, shard=shard))
        _reduce(source, target, len(classes), chunk, shard or chunk * 4)
        factors.append(factor)
        boxes[str(factor)] = box
        source = target
    if factors:
        root.attrs.update(geozarr.pyramid(boxes, geobox.crs is not None))
    return factors


def _halved(source: zarr.Group, geobox: GeoBox, factor: int) -> GeoBox:
    from odc.geo.geobox import GeoBox as Box

    height, width = store.array(source, "label").shape
    return Box((-(-height // 2), -(-width // 2)), geobox.affine @ geobox.affine.scale(factor), geobox.crs)


def _reduce(source: zarr.Group, target: zarr.Group, classes: int, chunk: int, side: int) -> None:
    """Fill a level from the finer one, in windows of `side` pixels: whole files, so that none is written twice."""
    label, confidence = store.array(source, "label"), store.array(source, "confidence")
    out_label, out_confidence = store.array(target, "label"), store.array(target, "confidence")
    for window in strips(out_label.shape, side):
        rows, cols = slice(window.row_off, window.row_end), slice(window.col_off, window.col_end)
        labels = np.empty((window.height, window.width), out_label.dtype)
        sure = np.empty((window.height, window.width), out_confidence.dtype)
        for part in strips(labels.shape, chunk * 4):
            top, left = window.row_off + part.row_off, window.col_off + part.col_off
            fine = slice(2 * top, 2 * (top + part.height)), slice(2 * left, 2 * (left + part.width))
            within = slice(part.row_off, part.row_end), slice(part.col_off, part.col_end)
            labels[within] = mode2(np.asarray(label[fine]), label_nodata(classes))
            sure[within] = mean2(np.asarray(confidence[fine]))
        out_label[rows, cols] = labels
        out_confidence[rows, cols] = sure


def strips(shape: tuple[int, ...], size: int) -> Iterator[Window]:
    """Chunk-aligned windows that cover an array."""
    for row in range(0, shape[0], size):
        for col in range(0, shape[1], size):
            yield Window(row, col, min(size, shape[0] - row), min(size, shape[1] - col))


def mode2(label: NDArray[Any], nodata: int) -> NDArray[Any]:
    """Most frequent class of each 2 × 2 cell; no data only where nothing else is; ties go to the first pixel in reading order."""
    quads = _quads(label, nodata)
    votes = np.stack([sum((q == other).astype(np.int8) for other in quads) for q in quads])
    votes[np.stack(quads) == nodata] = 0
    winner = votes.argmax(axis=0)
    return np.asarray(np.take_along_axis(np.stack(quads), winner[None], axis=0)[0])


def mean2(confidence: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of the valid values of each 2 × 2 cell."""
    quads = np.stack(_quads(confidence, CONFIDENCE_NODATA)).astype(np.uint16)
    valid = quads != CONFIDENCE_NODATA
    count = valid.sum(axis=0)
    total = np.where(valid, quads, 0).sum(axis=0)
    return np.where(count > 0, (total + count // 2) // np.maximum(count, 1), CONFIDENCE_NODATA).astype(np.uint8)


def _quads(values: NDArray[Any], fill: int) -> list[NDArray[Any]]:
    pad = ((0, values.shape[0] % 2), (0, values.shape[1] % 2))
    even = np.pad(values, pad, constant_values=fill) if pad != ((0, 0), (0, 0)) else values
    return [even[i::2, j::2] for i in (0, 1) for j in (0, 1)]
