"""Minimum mapping unit: areas that are too small take the classes around them, and no hole is left.

Too small is a 4-connected area of one class with less ground area than the unit. Its pixels are filled from its border
inwards, ring by ring: each takes the most frequent class among those of its four neighbours that have one already, a tie
the lower class number. So every filled pixel is connected with an area that stays, and the order of blocks changes nothing.
Where nothing large enough is in reach (small areas only, cut off by no data), all of them take the class that covers most.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.clean.regions import Regions
from ovrs.scene.grid import Window, row_areas_m2
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from ovrs.clean.scratch import Scratch
    from ovrs.store.layout import Layer

log = logging.getLogger(__name__)

HALO = 256
"""Rings that are filled in one round; pixels that far around a block are read with it."""


def sieve(source: Layer, scratch: Scratch, grid: GeoBox, *, classes: int, unit_m2: float, block: int) -> Layer:
    """Labels without areas below the unit, as a layer in `scratch`.

    Args:
        source: Labels `(y, x)`; values from `classes` on are no data.
        scratch: Where layers are put.
        grid: Of the labels.
        classes: How many there are.
        unit_m2: Square metres on the ground.
        block: Side of a block in pixels.
    """
    height, width = source.shape

    def labels(window: Window, layer: Any = source) -> NDArray[np.int64]:
        part = layer[window.row_off : window.row_end, window.col_off : window.col_end]
        found = np.asarray(part).astype(np.int64)
        return np.where(found < classes, found, -1)

    def with_area(window: Window) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
        found = labels(window)
        return found, [np.broadcast_to(row_areas_m2(grid, window)[:, None], found.shape)]

    pending = classes + 1  # of the scratch layers only: too small, not filled yet
    made = scratch.layer("sieved", pending)
    small = 0
    for window, ids, sums in Regions((height, width), block, with_area).blocks():
        found = labels(window)
        too_small = (sums[0] < unit_m2)[ids] & (ids > 0)
        small += int(too_small.sum())
        made[window.row_off : window.row_end, window.col_off : window.col_end] = np.where(
            too_small, pending, np.where(found < 0, classes, found)
        )
    log.debug("%d pixels lie in areas below %g m²", small, unit_m2)
    if small:
        made = _filled(made, scratch, classes, block)
        _fill_islands(made, source, grid, classes, block)
    return scratch.finished(made, classes)


def _filled(layer: Layer, scratch: Scratch, classes: int, block: int) -> Layer:
    """Fill in rounds until nothing changes."""
    source, number = layer, 0
    while True:
        number += 1
        target = scratch.layer(f"round{number % 2}", classes + 1)
        changed = left = 0
        for window in strips(layer.shape, block):
            wide = _widened(window, layer.shape)
            part = np.asarray(source[wide.row_off : wide.row_end, wide.col_off : wide.col_end]).astype(np.int64)
            before = part[window.slices_in(wide)].copy()
            if (before == classes + 1).any():
                fill(part, classes, HALO)
            after = part[window.slices_in(wide)]
            changed += int((after != before).sum())
            left += int((after == classes + 1).sum())
            target[window.row_off : window.row_end, window.col_off : window.col_end] = after
        source = target
        if not changed or not left:
            return target


def _widened(window: Window, shape: tuple[int, ...]) -> Window:
    top, left = max(0, window.row_off - HALO), max(0, window.col_off - HALO)
    bottom, right = min(shape[0], window.row_end + HALO), min(shape[1], window.col_end + HALO)
    return Window(top, left, bottom - top, right - left)


def fill(part: NDArray[np.int64], classes: int, rings: int) -> None:
    """Fill pixels of value `classes + 1` in place, at most so many rings; `classes` is no data and gives none."""
    height, width = part.shape
    padded = np.full((height + 2, width + 2), classes, np.int64)
    padded[1:-1, 1:-1] = part
    flat, step = padded.ravel(), width + 2
    waiting = np.flatnonzero(flat == classes + 1)
    for _ in range(rings):
        around = np.stack([flat[waiting - step], flat[waiting - 1], flat[waiting + 1], flat[waiting + step]])
        known = around < classes
        now = known.any(axis=0)
        if not now.any():
            break
        near, told = around[:, now], known[:, now]
        votes = np.stack([((near == near[i]) & told).sum(axis=0) for i in range(4)])
        votes[~told] = 0
        best = votes.max(axis=0)
        chosen = np.where(votes == best, near, classes + 1).min(axis=0)
        flat[waiting[now]] = chosen
        waiting = waiting[~now]
    part[:] = padded[1:-1, 1:-1]


def _fill_islands(layer: Layer, source: Layer, grid: GeoBox, classes: int, block: int) -> None:
    """Give what no large area reaches the class that covers most of it; changes `layer`."""

    def read(window: Window) -> tuple[NDArray[np.int64], Iterator[NDArray[np.float64]]]:
        part = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
        left = np.asarray(layer[part]) == classes + 1
        weight = np.broadcast_to(row_areas_m2(grid, window)[:, None], left.shape)
        own = np.asarray(source[part])
        return np.where(left, 0, -1), (np.where(left & (own == c), weight, 0.0) for c in range(classes))

    if not any(
        (np.asarray(layer[w.row_off : w.row_end, w.col_off : w.col_end]) == classes + 1).any()
        for w in strips(layer.shape, block)
    ):
        return
    for window, ids, sums in Regions((layer.shape[0], layer.shape[1]), block, read).blocks():
        if ids.any():
            part = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
            layer[part] = np.where(ids > 0, sums.argmax(axis=0)[ids], np.asarray(layer[part]))
