"""A stratified random sample of a map: places on the ground, drawn within each class of the map.

Positions are drawn uniformly over the ground area of a class and become the pixels that they lie in, none twice. In a CRS
whose pixels have one size this is simple random sampling of pixels; in degrees a pixel's chance is proportional to its area.
Memory holds one block and the points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.errors import OptionError
from ovrs.scene.grid import row_areas_m2
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ovrs.scene.grid import Window
    from ovrs.store.map import Map

BLOCK = 2048
FEW = 20
"""A class with at most so many times the wanted pixels is listed whole; positions in a larger one rarely meet."""
FLOOR = 20
"""Points for each class when only the total is given."""


@dataclass(frozen=True, kw_only=True)
class Strata:
    """The classes of a map as strata."""

    pixels: NDArray[np.int64]
    """`(class,)`."""
    areas: NDArray[np.float64]
    """True ground area in square metres, `(class,)`."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Pixels that were drawn, in random order; arrays `(n,)`."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    stratum: NDArray[np.int64]
    """Class of the map."""
    inclusion: NDArray[np.float64]
    """Probability with which the sample holds this pixel."""
    strata: Strata
    allocation: NDArray[np.int64]
    """Points for each class."""
    rule: str
    """How points were shared among classes, as a sentence."""


def blocks(mapped: Map) -> Iterator[tuple[Window, NDArray[np.int64], NDArray[np.float64]]]:
    """Windows of a map with their labels, int64, and the ground areas of their pixels in square metres, float64."""
    for window in strips(mapped.label.shape, BLOCK):
        part = np.asarray(mapped.label[window.row_off : window.row_end, window.col_off : window.col_end])
        yield window, part.astype(np.int64), np.broadcast_to(row_areas_m2(mapped.grid, window)[:, None], part.shape)


def count(mapped: Map) -> Strata:
    """Pixels and ground area of each class, counted in the map itself."""
    classes = len(mapped.names)
    pixels, areas = np.zeros(classes, np.int64), np.zeros(classes)
    for _, labels, weight in blocks(mapped):
        valid = labels < classes
        pixels += np.bincount(labels[valid], minlength=classes)
        areas += np.bincount(labels[valid], weight[valid], minlength=classes)
    return Strata(pixels=pixels, areas=areas)


def allocate(strata: Strata, per_class: int | None, total: int | None) -> tuple[NDArray[np.int64], str]:
    """Points for each class, at most its pixels, and the rule as a sentence.

    Args:
        strata: The classes.
        per_class: Points for each class; with `total` the least for each.
        total: Points in all; what the least leaves goes to classes in proportion to their area.

    Raises:
        OptionError: The total is below the least of all classes together, or the map has no valid pixel.
    """
    present = strata.pixels > 0
    if not present.any():
        raise OptionError("the map has no pixel with a class, so nothing can be sampled")
    least = per_class if per_class is not None else FLOOR if total is not None else 50
    wanted = np.where(present, least, 0).astype(np.int64)
    rule = f"{least} points for each class"
    if total is not None:
        if total < wanted.sum():
            raise OptionError(
                f"--total {total} is below {least} points for each of {int(present.sum())} classes; raise it or give --per-class"
            )
        spare = (total - int(wanted.sum())) * strata.areas / strata.areas.sum()
        more = np.floor(spare).astype(np.int64)
        order = np.argsort(more - spare, kind="stable")[: total - int(wanted.sum()) - int(more.sum())]
        more[order] += 1
        wanted += np.where(present, more, 0)
        rule = f"at least {least} points for each class, {total} in all, the rest in proportion to ground area"
    few = wanted > strata.pixels
    if few.any():
        rule += "; classes with fewer pixels give all of them"
    return np.minimum(wanted, strata.pixels), rule


def draw(mapped: Map, *, per_class: int | None = None, total: int | None = None, seed: int = 0) -> Points:
    """Draw a stratified random sample; equal seeds give equal samples of equal maps.

    Args:
        mapped: The map.
        per_class: Points for each class; default 50, or 20 with a total.
        total: Points in all.
        seed: Start of the random numbers.

    Raises:
        OptionError: See `allocate`.
        StoreError: The map is damaged.
    """
    strata = count(mapped)
    allocation, rule = allocate(strata, per_class, total)
    classes, rng = len(strata.pixels), np.random.default_rng(seed)
    whole = strata.pixels <= FEW * allocation
    positions = [
        np.array([]) if whole[c] else rng.uniform(0, strata.areas[c], 2 * int(allocation[c]) + 20)
        for c in range(classes)
    ]
    found = _resolve(mapped, positions, whole)
    rows, cols, labels = [], [], []
    for c in range(classes):
        number, (row, col, weight) = int(allocation[c]), found[c]
        if whole[c]:
            kept = rng.choice(len(row), number, replace=False, p=weight / weight.sum()) if number else np.array([], int)
        else:
            _, first = np.unique(row * mapped.grid.width + col, return_index=True)
            kept = np.sort(first)[:number]  # the first ones drawn, so every pixel keeps its chance
            allocation[c] = len(kept)
        rows.append(row[kept])
        cols.append(col[kept])
        labels.append(np.full(len(kept), c, np.int64))
    order = rng.permutation(sum(map(len, rows)))
    row, col, label = (np.concatenate(parts)[order] for parts in (rows, cols, labels))
    area = _areas_of_rows(mapped, row)
    inclusion = np.minimum(1.0, allocation[label] * area / np.maximum(strata.areas[label], 1e-300))
    inclusion = np.where(allocation[label] == strata.pixels[label], 1.0, inclusion)
    return Points(
        rows=row, cols=col, stratum=label, inclusion=inclusion, strata=strata, allocation=allocation, rule=rule
    )


Found = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.float64]"]


def _resolve(mapped: Map, positions: list[NDArray[np.float64]], whole: NDArray[np.bool_]) -> list[Found]:
    """Rows, columns and areas of the pixels at positions in each class's area, in the order of the positions.

    A class in `whole` gives all its pixels.
    """
    classes = len(positions)
    place = [(np.full(len(p), -1, np.int64), np.full(len(p), -1, np.int64), np.zeros(len(p))) for p in positions]
    listed: list[list[Found]] = [[] for _ in positions]
    begun = np.zeros(classes)
    for window, labels, weight in blocks(mapped):
        sums = np.bincount(labels[labels < classes], weight[labels < classes], minlength=classes)
        for c in np.flatnonzero(sums > 0).tolist():
            inside = np.flatnonzero((positions[c] >= begun[c]) & (positions[c] < begun[c] + sums[c]))
            if whole[c] or len(inside):
                own = np.flatnonzero(labels.ravel() == c)
                areas = weight.ravel()[own] if weight.flags.c_contiguous else np.ascontiguousarray(weight).ravel()[own]
                row, col = own // window.width + window.row_off, own % window.width + window.col_off
                if whole[c]:
                    listed[c].append((row, col, areas))
                else:
                    at = np.searchsorted(np.cumsum(areas), positions[c][inside] - begun[c], side="right")
                    at = np.minimum(at, len(own) - 1)
                    for store, values in zip(place[c], (row, col, areas), strict=True):
                        store[inside] = values[at]
        begun += sums
    empty = np.array([], np.int64)
    for c in range(classes):
        if whole[c]:
            parts = listed[c] or [(empty, empty, np.array([]))]
            place[c] = tuple(np.concatenate([p[i] for p in parts]) for i in range(3))  # type: ignore[assignment]
        else:
            kept = place[c][0] >= 0  # rounding may leave the last position beyond the last pixel
            place[c] = (place[c][0][kept], place[c][1][kept], place[c][2][kept])
    return place


def _areas_of_rows(mapped: Map, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ground area of a pixel in each row, in square metres."""
    from ovrs.scene.grid import Window

    top, bottom = int(rows.min()), int(rows.max())
    areas = row_areas_m2(mapped.grid, Window(top, 0, bottom - top + 1, mapped.grid.width))
    return np.asarray(areas[rows - top])
