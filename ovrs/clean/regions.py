"""Connected areas of a raster of any size, block by block: which pixels belong together, and what they sum up to.

Each block's 4-connected areas of equal values are numbered alike whenever the block is read. Areas that touch a block's
border are joined by comparing facing pixels (union-find on numbers); all others are known from their block alone.
Memory: one block, and about 40 bytes for each area that touches a block's border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray


class Regions:
    """Numbers and sums of the connected areas of a raster."""

    def __init__(
        self,
        shape: tuple[int, int],
        block: int,
        read: Callable[[Window], tuple[NDArray[np.int64], Iterable[NDArray[np.float64]]]],
    ) -> None:
        """Go through the raster once.

        Args:
            shape: Rows and columns.
            block: Side of a block in pixels.
            read: Gives values `(y, x)`, int64, −1 for pixels of no area, and amounts to sum up, each `(y, x)`, float64.
        """
        self.shape, self.block, self.read = shape, block, read
        self.rows, self.cols = -(-shape[0] // block), -(-shape[1] // block)
        self._numbers: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._forest = Forest()
        above: NDArray[np.int64] | None = None
        values_above: NDArray[np.int64] | None = None
        for i in range(self.rows):
            below, values_below = np.full(shape[1], -1, np.int64), np.full(shape[1], -1, np.int64)
            left: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
            for j in range(self.cols):
                window = self.window(i, j)
                values, amounts = read(window)
                ids, count = numbered(values)
                touching = np.unique(np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]]))
                touching = touching[touching > 0]
                sums = _sums(ids, count, amounts)
                first = self._forest.add(sums[:, touching])
                self._numbers[i, j] = touching, np.arange(first, first + len(touching))
                of = np.full(count + 1, -1, np.int64)
                of[touching] = self._numbers[i, j][1]
                span = slice(window.col_off, window.col_end)
                if above is not None and values_above is not None:
                    self._forest.join(above[span], of[ids[0]], values_above[span] == values[0])
                if left is not None:
                    self._forest.join(left[0], of[ids[:, 0]], left[1] == values[:, 0])
                left = of[ids[:, -1]], values[:, -1]
                below[span], values_below[span] = of[ids[-1]], values[-1]
            above, values_above = below, values_below
        self._sums = self._forest.totals()

    def window(self, i: int, j: int) -> Window:
        """Return the block in a row and column of blocks."""
        top, left = i * self.block, j * self.block
        return Window(top, left, min(self.block, self.shape[0] - top), min(self.block, self.shape[1] - left))

    def blocks(self) -> Iterator[tuple[Window, NDArray[np.int64], NDArray[np.float64]]]:
        """Read every block again: its window, area numbers `(y, x)` from 1, and sums `(amounts, numbers)` of each area.

        Area number 0 is none; sums are over the whole raster.
        """
        for i in range(self.rows):
            for j in range(self.cols):
                window = self.window(i, j)
                values, amounts = self.read(window)
                ids, count = numbered(values)
                sums = _sums(ids, count, amounts)
                touching, own = self._numbers[i, j]
                roots = self._forest.roots(own)
                sums[:, touching] = self._sums[:, roots]
                yield window, ids, sums


class Forest:
    """Union-find over numbers, with sums."""

    def __init__(self) -> None:
        self._parent = np.empty(0, np.int64)
        self._parts: list[NDArray[np.float64]] = []
        self._count = 0

    def add(self, sums: NDArray[np.float64]) -> int:
        """Take areas with their sums `(n, areas)`; returns the number of the first."""
        first, self._count = self._count, self._count + sums.shape[1]
        if self._count > len(self._parent):
            grown = np.arange(max(self._count, 2 * len(self._parent), 1024))
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        self._parts.append(sums)
        return first

    def find(self, number: int) -> int:
        """Return the number that stands for all that were joined with one."""
        parent = self._parent
        root = number
        while parent[root] != root:
            root = int(parent[root])
        while parent[number] != root:
            parent[number], number = root, int(parent[number])
        return root

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64], same: NDArray[np.bool_]) -> None:
        """Join the areas that face each other where `same` holds; −1 is none."""
        facing = same & (one >= 0) & (other >= 0)
        if facing.any():
            for a, b in np.unique(np.stack([one[facing], other[facing]], 1), axis=0).tolist():
                first, second = self.find(a), self.find(b)
                if first != second:
                    self._parent[max(first, second)] = min(first, second)

    def roots(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """`find` for many."""
        found = self._parent[numbers]
        while True:
            further = self._parent[found]
            if (further == found).all():
                return np.asarray(found)
            found = further

    def totals(self) -> NDArray[np.float64]:
        """Return the sums of each area, `(n, numbers)`; at the numbers that stand for joined ones, of all of them."""
        if not self._parts:
            return np.zeros((1, 0))
        sums = np.concatenate(self._parts, axis=1)
        self._parts.clear()
        roots = self.roots(np.arange(self._count))
        return np.stack([np.bincount(roots, row, minlength=self._count) for row in sums])


def _sums(ids: NDArray[np.int64], count: int, amounts: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the sums of each amount over each area, `(amounts, count + 1)`."""
    rows = [np.bincount(ids.ravel(), a.ravel(), minlength=count + 1) for a in amounts]
    return np.asarray(np.stack(rows), np.float64)


def numbered(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Numbers from 1 of the 4-connected areas of equal values `(y, x)`, 0 where the value is −1; and how many."""
    from scipy import ndimage

    ids, count = np.zeros(values.shape, np.int64), 0
    for value in np.unique(values):
        if value < 0:
            continue
        here = values == value
        own, more = ndimage.label(here)
        ids[here] = own[here] + count
        count += more
    return ids, count
