"""How often two classes are nearly as high as each other, counted on every fourth row and column of the scene.

A pixel's winner is class i, its second best class j; it is a near tie where j has at least `NEAR` of i's score. Two words
for one thing tie nearly everywhere, although the text of one of them may lie a little higher. By the bundled model on a
generated and two real scenes, "tree" and "trees", "house" and "building", "road" and "street" tie in 61 to 98 percent of
the pixels of one of them; other pairs of classes in at most 44 percent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.engine.arrays import Array, as_numpy, beside, empty, namespace, on_host
from ovrs.engine.decide import highest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.scene.grid import Window

STEP = 4
"""Pixels from one that is counted to the next, along both axes."""
NEAR = 0.4
"""Share of the winner's score from which the second best counts as nearly as high."""
_TOGETHER = 1 << 18
"""Bytes of scores that are compared at once on the host: few long steps, in the processor's cache."""


class Ties:
    """Winners and near seconds of one block; stays in the library and on the device of the scores until `counts`."""

    def __init__(self, window: Window, classes: int) -> None:
        self.classes = classes
        self._first = tuple(-offset % STEP for offset in (window.row_off, window.col_off))
        self._shape = tuple(
            max(0, -(-(length - first) // STEP)) for length, first in zip(window.shape, self._first, strict=True)
        )
        self._codes: Array | None = None
        self._waiting: list[tuple[tuple[slice, ...], NDArray[np.float32]]] = []

    def add(self, part: tuple[slice, slice], scores: Array) -> None:
        """Take scores `(class, y, x)` of a part of the block."""
        if self.classes < 2:
            return
        inside, places = [], []
        for first, span in zip(self._first, part, strict=True):
            start = first + -(-max(0, span.start - first) // STEP) * STEP
            inside.append(slice(start - span.start, span.stop - span.start, STEP))
            places.append(slice((start - first) // STEP, (start - first) // STEP + len(range(start, span.stop, STEP))))
        if 0 in (len(range(*span.indices(span.stop))) for span in inside):
            return
        if not on_host(scores):
            self._put(tuple(places), _codes(scores[:, inside[0], inside[1]]))
            return
        # copied, as a part shares memory with what follows
        self._waiting.append((tuple(places), np.array(as_numpy(scores)[:, inside[0], inside[1]], order="C")))
        if sum(values.nbytes for _, values in self._waiting) >= _TOGETHER:
            self._compare()

    def _compare(self) -> None:
        """Compare the scores that wait, as one row of pixels."""
        if not self._waiting:
            return
        rows = [values.reshape(self.classes, -1) for _, values in self._waiting]
        codes = _on_host(np.concatenate(rows, axis=1) if len(rows) > 1 else rows[0])
        begin = 0
        for places, values in self._waiting:
            shape = values.shape[1:]
            self._put(places, codes[begin : begin + shape[0] * shape[1]].reshape(shape))
            begin += shape[0] * shape[1]
        self._waiting.clear()

    def _put(self, places: tuple[slice, ...], codes: Array) -> None:
        if self._codes is None:
            self._codes = empty(self._shape, codes)
        self._codes[places] = codes

    def counts(self, valid: NDArray[np.bool_]) -> dict[str, int]:
        """Return counted valid pixels of each winner under `i`, and near ties of winner and second under `i_j`."""
        self._compare()
        if self._codes is None:
            return {}
        codes = as_numpy(self._codes)[valid[self._first[0] :: STEP, self._first[1] :: STEP]]
        found: dict[str, int] = {}
        for code, number in zip(*(a.tolist() for a in np.unique(codes, return_counts=True)), strict=True):
            winner, second = divmod(code, self.classes)
            found[str(winner)] = found.get(str(winner), 0) + number
            if second != winner:
                found[f"{winner}_{second}"] = number
        return found


def _on_host(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """`_codes` in NumPy, of pixels in a row; writes to the scores."""
    best, winner = highest(scores)
    scores[winner, np.arange(scores.shape[1])] = -np.inf
    height, runner_up = highest(scores)
    near = (height >= NEAR * best) & (best > 0)
    codes: NDArray[np.int32] = winner.astype(np.int32) * scores.shape[0] + np.where(near, runner_up, winner)
    return codes


def _codes(scores: Array) -> Array:
    """`winner * classes + second` of each pixel, with the winner in the place of a second that is not near; int64."""
    xp = namespace(scores)
    classes = scores.shape[0]
    best, winner = xp.max(scores, axis=0), xp.argmax(scores, axis=0)
    number = beside(np.arange(classes)[:, None, None], scores)
    rest = xp.where(number == winner[None], xp.full_like(scores, -xp.inf), scores)
    height, runner_up = xp.max(rest, axis=0), xp.argmax(rest, axis=0)
    second = xp.where((height >= NEAR * best) & (best > 0), runner_up, winner)
    return xp.astype(winner, xp.int64) * classes + xp.astype(second, xp.int64)
