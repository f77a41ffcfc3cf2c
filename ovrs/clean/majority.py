"""Majority filter: each pixel takes the most frequent class of a square around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.scene.grid import Window
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.clean.scratch import Scratch
    from ovrs.store.layout import Layer


def majority(source: Layer, scratch: Scratch, *, classes: int, side: int, block: int) -> Layer:
    """Labels after the filter, as a layer in `scratch`; memory holds one block with its surroundings.

    Args:
        source: Labels `(y, x)`; values from `classes` on are no data, which stays and counts for nothing.
        scratch: Where layers are put.
        classes: How many there are.
        side: Of the square in pixels, odd.
        block: Side of a block in pixels.
    """
    made, reach = scratch.layer("majority", classes + 1), side // 2
    height, width = source.shape
    for window in strips(source.shape, block):
        top, left = max(0, window.row_off - reach), max(0, window.col_off - reach)
        bottom, right = min(height, window.row_end + reach), min(width, window.col_end + reach)
        wide = Window(top, left, bottom - top, right - left)
        part = np.asarray(source[top:bottom, left:right]).astype(np.int64)
        made[window.row_off : window.row_end, window.col_off : window.col_end] = most_frequent(
            np.minimum(part, classes), classes, reach
        )[window.slices_in(wide)]
    return scratch.finished(made, classes)


def most_frequent(labels: NDArray[np.int64], classes: int, reach: int) -> NDArray[np.int64]:
    """Return the most frequent class within `reach` pixels, `(y, x)`; `classes` is no data.

    A tie keeps the pixel's own class if it is among the first, else takes the lower number.
    """
    best, own = np.zeros(labels.shape, np.int32), np.zeros(labels.shape, np.int32)
    chosen = labels.copy()
    for value in np.unique(labels[labels < classes]).tolist():
        counts = _counts(labels == value, reach)
        here = labels == value
        own[here] = counts[here]
        chosen = np.where(counts > best, value, chosen)
        best = np.maximum(best, counts)
    chosen = np.where(own == best, labels, chosen)
    return np.where(labels < classes, chosen, labels)


def _counts(here: NDArray[np.bool_], reach: int) -> NDArray[np.int32]:
    """How many of the pixels within `reach` are set."""
    padded = np.pad(here.astype(np.int32), ((reach + 1, reach), (reach + 1, reach)))
    sums = padded.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    side = 2 * reach + 1
    return np.asarray(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side])
