"""Tiles into one block: each tile finishes the pixels that no later tile touches, and hands the rest on.

Tiles come row by row. Of the pixels under a tile, those left of the next column of tiles and above the next row are
finished. What lies right of them waits for the next tile, what lies below for the next row. Sums are added in the order
of the tiles, so a pixel's score does not depend on how the scene is cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovrs.engine.arrays import Array, as_numpy, beside, copied, empty, namespace, on_host
from ovrs.engine.contract import FrozenSegmenter, TileScores
from ovrs.engine.tiling import plateau, taper
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.engine.contract import Look, Segmenter
    from ovrs.engine.tiling import Plan, Tile

_STRIP_BYTES = 1 << 21
"""Sums finished at a time on the host: they stay in the processor's cache. A device finishes a tile at once."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What a segmenter says of one tile: of all of its window or of a part of it."""

    window: Window
    values: Array
    """`(channel, height, width)`: weighted sums of a frozen segmenter, else scores without weight."""
    weight: Array
    """`(height, width)`."""
    background: Array | None
    """`(height, width)`, without weight."""
    weighted: bool
    """Whether `values` hold the weight."""
    plain: Window | None = None
    """Where the weight is one."""

    def part(self, window: Window) -> Scored:
        """Copy a part, so that the rest can be forgotten."""
        rows, cols = window.slices_in(self.window)
        background = None if self.background is None else copied(self.background[rows, cols])
        values, weight = copied(self.values[:, rows, cols]), copied(self.weight[rows, cols])
        return Scored(window, values, weight, background, self.weighted, self.plain and self.plain.intersect(window))


@dataclass(eq=False)
class _Sums:
    """Weighted sums over the tiles so far: what later tiles are added to."""

    window: Window
    values: Array
    weight: Array
    background: Array | None

    def of(self, window: Window) -> _Sums:
        """Return a view of a part."""
        rows, cols = window.slices_in(self.window)
        background = None if self.background is None else self.background[rows, cols]
        return _Sums(window, self.values[:, rows, cols], self.weight[rows, cols], background)


class Blend:
    """Weighted means over the tiles of one block. Holds the overlap of a row of tiles, never the whole block."""

    def __init__(self, segmenter: Segmenter, core: Window, tiles: list[Tile], plan: Plan) -> None:
        self.core, self._ramp = core, plan.geometry.tile - plan.geometry.pitch
        self._weights: dict[tuple[int, int], Array] = {}
        self.frozen = segmenter if isinstance(segmenter, FrozenSegmenter) else None
        self._bottoms = _ends([t.window.row_off for t in tiles], core.row_end)
        self._rights = _ends([t.window.col_off for t in tiles], core.col_end)
        self._xp: Any = None
        self._room: dict[str, Array] = {}
        self._turn = False
        self._row = -1
        self._top: _Sums | None = None
        """From the rows of tiles above, over the whole width of the core."""
        self._below: _Sums | None = None
        """For the next row of tiles, in the making."""
        self._left: _Sums | None = None
        """From the last tile, with what it got from above."""

    def weighted(self, tile: Tile, found: Look) -> Scored:
        """Return what the segmenter says of a tile, with the weight by which it is blended; on the host as NumPy reads it."""
        if not isinstance(found, TileScores):
            values, weight = (as_numpy(a) if on_host(a) else a for a in found[:2])
            return Scored(tile.window, values, weight, None, True, self._even(tile.window, weight))
        scores, background = found.scores, found.background_evidence
        if on_host(scores):
            scores, background = as_numpy(scores), None if background is None else as_numpy(background)
        shape = tile.window.shape
        if shape not in self._weights:
            self._weights[shape] = beside(taper(tile.window, self._ramp), scores)
        return Scored(tile.window, scores, self._weights[shape], background, False, plateau(tile.window, self._ramp))

    def _even(self, window: Window, weight: Array) -> Window | None:
        """Return where a frozen segmenter's weight is one, if that is all of a tile but its ramps; not asked of a device."""
        plain = plateau(window, self._ramp) if on_host(weight) else None
        return plain if plain is not None and bool((weight[plain.slices_in(window)] == 1).all()) else None

    def add(self, tile: Tile, scored: Scored) -> Iterator[tuple[Window, TileScores]]:
        """Add a tile; yields the parts that it finishes. Tiles without valid pixels are left out of the calls.

        A part shares memory with what follows: use it before asking for the next one.
        """
        inside = tile.window.intersect(self.core)
        if inside is None:
            return
        self._begin(tile, inside, scored)
        bottom = max(self._bottoms[tile.window.row_off], inside.row_off)
        right = max(self._rights[tile.window.col_off], inside.col_off)
        height, width = bottom - inside.row_off, right - inside.col_off
        if height and width:
            for part, alone in self._parts(scored, Window(inside.row_off, inside.col_off, height, width)):
                yield part, self._finished(scored, part, alone=alone)
        if inside.row_end > bottom and width:
            self._hand_down(scored, Window(bottom, inside.col_off, inside.row_end - bottom, width))
        if inside.col_end > right:
            self._hand_on(scored, Window(inside.row_off, right, inside.height, inside.col_end - right))
        else:
            self._left = None

    def _begin(self, tile: Tile, inside: Window, scored: Scored) -> None:
        """Forget what does not touch this tile."""
        if self._xp is None:
            self._xp = namespace(scored.values)
        if tile.row != self._row:
            fits = self._below is not None and self._below.window.row_off == inside.row_off
            self._row, self._top, self._below, self._left = tile.row, self._below if fits else None, None, None
        if self._left is not None and self._left.window.col_off != inside.col_off:
            self._left = None  # a tile between them has no valid pixel

    def _parts(self, scored: Scored, done: Window) -> Iterator[tuple[Window, bool]]:
        """Return finished pixels in strips, and whether nobody but this tile speaks of them, with a weight of one."""
        own = self._alone(scored, done) if on_host(scored.values) else None
        if own is None:
            for part in self._strips(scored, done):
                yield part, False
            return
        for part in around(own, done):
            for strip in self._strips(scored, part):
                yield strip, part is own

    def _alone(self, scored: Scored, done: Window) -> Window | None:
        """Return the part of finished pixels in which this tile's weight is one and no earlier tile left anything."""
        if scored.plain is None or (found := scored.plain.intersect(done)) is None:
            return None
        row = found.row_off if self._top is None else max(found.row_off, self._top.window.row_end)
        col = found.col_off if self._left is None else max(found.col_off, self._left.window.col_end)
        height, width = found.row_end - row, found.col_end - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def _strips(self, scored: Scored, done: Window) -> Iterator[Window]:
        """Cut pixels into rows that fit the processor's cache."""
        height = done.height
        if on_host(scored.values):
            height = max(1, _STRIP_BYTES // (scored.values.itemsize * scored.values.shape[0] * done.width))
        for begin in range(done.row_off, done.row_end, height):
            yield Window(begin, done.col_off, min(height, done.row_end - begin), done.width)

    def _finished(self, scored: Scored, part: Window, *, alone: bool) -> TileScores:
        """Mean scores of a part; where a tile is alone, these are its own, in place."""
        xp = self._xp
        if alone:
            rows, cols = part.slices_in(scored.window)
            values, background = scored.values[:, rows, cols], scored.background
            background = None if background is None else background[rows, cols]
        else:
            sums = self._summed(scored, part, "part")
            weight = xp.where(sums.weight > 0, sums.weight, xp.ones_like(sums.weight))
            values, background = sums.values, sums.background
            xp.divide(values, weight, out=values)
            background = None if background is None else background / weight
        return TileScores(values, background) if self.frozen is None else self.frozen.finish(values)

    def _earlier(self, part: Window) -> list[_Sums]:
        """Return the sums that earlier tiles left for a part: from the left, else from above."""
        found: list[_Sums] = []
        rest: Window | None = part
        if self._left is not None:
            if (common := part.intersect(self._left.window)) is not None:
                found.append(self._left.of(common))
            start = max(part.col_off, self._left.window.col_end)
            width = part.col_end - start
            rest = Window(part.row_off, start, part.height, width) if width > 0 else None
        if rest is not None and self._top is not None and (common := rest.intersect(self._top.window)) is not None:
            found.append(self._top.of(common))
        return found

    def _hand_down(self, scored: Scored, part: Window) -> None:
        """Keep a part for the next row of tiles."""
        if self._below is None:
            window = Window(part.row_off, self.core.col_off, part.height, self.core.width)
            values = empty((scored.values.shape[0], *window.shape), scored.values)
            self._below = _Sums(window, values, empty(window.shape, scored.weight), None)
        own = self._below.of(part)
        self._sum_into(own, scored)
        if own.background is not None:
            if self._below.background is None:
                self._below.background = empty(self._below.window.shape, own.background)
            rows, cols = part.slices_in(self._below.window)
            self._below.background[rows, cols] = own.background

    def _hand_on(self, scored: Scored, part: Window) -> None:
        """Keep a part for the next tile; two rooms take turns, as one may be read while the other is filled."""
        self._turn = not self._turn
        self._left = self._summed(scored, part, f"left {self._turn}")

    def _summed(self, scored: Scored, part: Window, room: str) -> _Sums:
        """Return sums of a part, in memory that is used again."""
        count = scored.values.shape[0] * part.height * part.width
        kept = self._room.get(room)
        if kept is None or kept.shape[0] < count:
            kept = self._room[room] = empty((count,), scored.values)
        values = self._xp.reshape(kept[:count], (scored.values.shape[0], *part.shape))
        sums = _Sums(part, values, empty(part.shape, scored.weight), None)
        self._sum_into(sums, scored)
        return sums

    def _sum_into(self, to: _Sums, scored: Scored) -> None:
        """Write a tile's own, weighted, plus what earlier tiles left there."""
        rows, cols = to.window.slices_in(scored.window)
        earlier = self._earlier(to.window)
        if scored.background is not None:
            to.background = scored.background[rows, cols] * scored.weight[rows, cols]
        elif any(sums.background is not None for sums in earlier):
            to.background = empty(to.window.shape, scored.weight)
        for part, sums in _shared_out(to.window, earlier):
            self._put(to.of(part), scored, None if sums is None else sums.of(part))

    def _put(self, to: _Sums, scored: Scored, earlier: _Sums | None) -> None:
        """Write a part that one earlier tile left something for all over, or none; each number is written once."""
        rows, cols = to.window.slices_in(scored.window)
        values, weight, xp = scored.values[:, rows, cols], scored.weight[rows, cols], self._xp
        if not scored.weighted:
            values = xp.multiply(values, weight, out=to.values)
        if earlier is None:
            to.weight[...] = weight
            if scored.weighted:
                to.values[...] = values
            return
        xp.add(values, earlier.values, out=to.values)
        xp.add(weight, earlier.weight, out=to.weight)
        if to.background is not None and earlier.background is not None:
            to.background += earlier.background


def _shared_out(window: Window, earlier: list[_Sums]) -> Iterator[tuple[Window, _Sums | None]]:
    """Cut a window into the parts that earlier sums cover, with these, and the rest. Earlier sums do not overlap."""
    for index, sums in enumerate(earlier):
        if (common := window.intersect(sums.window)) is not None:
            for part in around(common, window):
                if part is common:
                    yield part, sums
                else:
                    yield from _shared_out(part, earlier[index + 1 :])
            return
    yield window, None


def around(inner: Window, outer: Window) -> Iterator[Window]:
    """Cut `outer` into what lies above, left of, in, right of and below `inner`, which is yielded itself."""
    corners = (
        (outer.row_off, outer.col_off, inner.row_off, outer.col_end),
        (inner.row_off, outer.col_off, inner.row_end, inner.col_off),
        None,
        (inner.row_off, inner.col_end, inner.row_end, outer.col_end),
        (inner.row_end, outer.col_off, outer.row_end, outer.col_end),
    )
    for corner in corners:
        if corner is None:
            yield inner
        elif corner[2] > corner[0] and corner[3] > corner[1]:
            yield Window(corner[0], corner[1], corner[2] - corner[0], corner[3] - corner[1])


def _ends(starts: list[int], end: int) -> dict[int, int]:
    """Where the next row or column of tiles begins, by the start of each; the core's end after the last one."""
    found = sorted(set(starts))
    return dict(zip(found, [*found[1:], end], strict=False))
