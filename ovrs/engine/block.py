"""The pure heart of the engine: one block of the map from one block of the scene."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, label_dtype, label_nodata, quantised
from ovrs.engine.contract import FrozenSegmenter, Segmenter, TileScores
from ovrs.engine.decide import DecisionRule, decide
from ovrs.engine.tiling import taper
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ovrs.engine.tiling import Block, Plan, Tile
    from ovrs.scene.raster import Pixels, SceneSource

_STRIP = 32
"""Rows finished at a time: temporaries stay a fraction of the band, and in the processor's cache."""


@dataclass(frozen=True, eq=False)
class BlockMap:
    """The finished pixels of one block."""

    label: NDArray[np.unsignedinteger]
    confidence: NDArray[np.uint8]
    score: NDArray[np.uint8] | None
    """`(class, y, x)`, quantised like confidence; only when asked for."""
    events: dict[str, int]
    """How many tiles reported what."""
    seconds: dict[str, float]
    """Time spent reading and computing."""
    tiles: int


def map_block(
    scene: SceneSource,
    segmenter: Segmenter,
    plan: Plan,
    block: Block,
    rule: DecisionRule,
    *,
    keep_scores: bool = False,
    pixels: Pixels | None = None,
    overhang: Overhang | None = None,
) -> BlockMap:
    """Read a block with its halo, score every tile that touches it, blend, and decide its core.

    Tiles are scene-wide, so a neighbour that needs the same tile computes the same numbers: the two blocks agree at
    their border without talking to each other. `pixels`: the block's read window, if somebody has read it already.
    `overhang`: handed from block to block, it spares the right-hand neighbour the tiles they share.
    """
    started = time.perf_counter()
    if pixels is None:
        pixels = scene.read(block.read)
    read_seconds = time.perf_counter() - started
    core = _Core(block.core, segmenter.class_count, keep_scores)
    valid = pixels.valid[block.core.slices_in(block.read)]
    events: Counter[str] = Counter()
    tiles = plan.tiles_of(block.core) if valid.any() else []
    blend = _Blend(segmenter, block.core, plan, Overhang() if overhang is None else overhang)
    rows = [list(group) for _, group in groupby(tiles, key=lambda tile: tile.row)]
    for index, row in enumerate(rows):
        for tile in row:
            events.update(blend.add(tile, _cut(pixels, tile.window, block.read)))
        done_until = rows[index + 1][0].window.row_off if index + 1 < len(rows) else block.core.row_end
        for window, scores in blend.release(done_until):
            part = window.slices_in(block.core)
            core.fill(part, scores, valid[part], rule)
    total = time.perf_counter() - started
    return BlockMap(
        core.label,
        core.confidence,
        core.score,
        dict(events),
        {"read": read_seconds, "compute": total - read_seconds},
        len(tiles),
    )


def _cut(pixels: Pixels, window: Window, outer: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    rows, cols = window.slices_in(outer)
    return np.ascontiguousarray(pixels.rgb[:, rows, cols]), np.ascontiguousarray(pixels.valid[rows, cols])


@dataclass(frozen=True, eq=False)
class _Scored:
    """What one tile adds, weighted: to all of its window or to a part of it."""

    window: Window
    values: NDArray[np.float32]
    weight: NDArray[np.float32]
    background: NDArray[np.float32] | None
    events: tuple[str, ...]

    def part(self, window: Window) -> _Scored:
        """A copy of a part, so that the rest can be forgotten."""
        rows, cols = window.slices_in(self.window)
        background = None if self.background is None else self.background[rows, cols].copy()
        return _Scored(
            window, self.values[:, rows, cols].copy(), self.weight[rows, cols].copy(), background, self.events
        )


class Overhang:
    """What the tiles of one block lay over its right-hand neighbour: narrow strips, forgotten when another block comes."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], _Scored] = {}
        self._core: Window | None = None

    def begin(self, core: Window) -> None:
        """The block that comes now."""
        last, self._core = self._core, core
        if last is None or (last.row_off, last.row_end, last.col_end) != (core.row_off, core.row_end, core.col_off):
            self._parts.clear()

    def keep(self, tile: Tile, scored: _Scored, core: Window) -> None:
        """Remember what lies right of `core`, in its rows."""
        window = scored.window
        top, bottom = max(window.row_off, core.row_off), min(window.row_end, core.row_end)
        if window.col_end > core.col_end:
            right = Window(top, core.col_end, bottom - top, window.col_end - core.col_end)
            self._parts[tile.row, tile.col] = scored.part(right)

    def take(self, tile: Tile) -> _Scored | None:
        """What the left-hand neighbour kept of a tile, once."""
        return self._parts.pop((tile.row, tile.col), None)


class _Core:
    """Output arrays of one block, no data until filled."""

    def __init__(self, window: Window, classes: int, keep_scores: bool) -> None:
        self.label = np.full(window.shape, label_nodata(classes), label_dtype(classes))
        self.confidence = np.full(window.shape, CONFIDENCE_NODATA, np.uint8)
        self.score = np.full((classes, *window.shape), CONFIDENCE_NODATA, np.uint8) if keep_scores else None

    def fill(self, part: tuple[slice, slice], scores: TileScores, valid: NDArray[np.bool_], rule: DecisionRule) -> None:
        self.label[part], self.confidence[part] = decide(scores.scores, valid, rule, scores.background_evidence)
        if self.score is not None:
            self.score[(slice(None), *part)] = np.where(valid, quantised(scores.scores), CONFIDENCE_NODATA)


class _Blend:
    """Weighted sum of tiles over a rolling band of rows: C × tile height × core width, never the whole block."""

    def __init__(self, segmenter: Segmenter, core: Window, plan: Plan, overhang: Overhang) -> None:
        self.segmenter, self.core, self.overhang = segmenter, core, overhang
        overhang.begin(core)
        self.frozen = segmenter if isinstance(segmenter, FrozenSegmenter) else None
        self.ramp = plan.geometry.tile - plan.geometry.pitch
        self.channels = self.frozen.channels if self.frozen else segmenter.class_count
        self.top = core.row_off
        height = min(plan.geometry.tile, core.height)
        self.total = np.zeros((self.channels, height, core.width), np.float32)
        self.weight = np.zeros((height, core.width), np.float32)
        self.background: NDArray[np.float32] | None = None

    def add(self, tile: Tile, pixels: tuple[NDArray[np.uint8], NDArray[np.bool_]]) -> tuple[str, ...]:
        rgb, valid = pixels
        inside = tile.window.intersect(self.core)
        if inside is None or not valid.any():
            return ()
        scored = self.overhang.take(tile)
        if scored is None:
            scored = self._score(tile, rgb, valid)
        self.overhang.keep(tile, scored, self.core)
        source = inside.slices_in(scored.window)
        band = (
            slice(inside.row_off - self.top, inside.row_end - self.top),
            slice(inside.col_off - self.core.col_off, inside.col_end - self.core.col_off),
        )
        self._grow(band[0].stop)
        self.total[(slice(None), *band)] += scored.values[(slice(None), *source)]
        self.weight[band] += scored.weight[source]
        if scored.background is not None:
            if self.background is None:
                self.background = np.zeros_like(self.weight)
            self.background[band] += scored.background[source]
        return scored.events

    def _score(self, tile: Tile, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> _Scored:
        crops = tuple(c.relative_to(tile.window) for c in tile.crops)
        if self.frozen:
            values, weight = self.frozen.evidence(rgb, valid, crops)
            return _Scored(tile.window, values, weight, None, ())
        result = self.segmenter.segment(rgb, valid, crops)
        weight = taper(tile.window, self.ramp)
        background = None if result.background_evidence is None else result.background_evidence * weight
        return _Scored(tile.window, result.scores * weight, weight, background, result.events)

    def _grow(self, rows: int) -> None:
        """Make room when a tile moved back from the border overlaps more rows than a regular one."""
        missing = rows - self.weight.shape[0]
        if missing > 0:
            self.total = np.pad(self.total, ((0, 0), (0, missing), (0, 0)))
            self.weight = np.pad(self.weight, ((0, missing), (0, 0)))
            if self.background is not None:
                self.background = np.pad(self.background, ((0, missing), (0, 0)))

    def release(self, until: int) -> Iterator[tuple[Window, TileScores]]:
        """Finish the rows above `until`, which no later tile touches, strip by strip, then shift the band.

        A strip may share memory with the band: use it before asking for the next one.
        """
        until = min(until, self.core.row_end)
        rows = until - self.top
        if rows <= 0:
            return
        for begin in range(0, rows, _STRIP):
            yield self._finish(begin, min(begin + _STRIP, rows))
        for array in (self.total, self.weight, self.background):
            if array is not None:
                kept = array.shape[-2] - rows
                array[..., :kept, :] = array[..., rows:, :].copy()
                array[..., kept:, :] = 0
        self.top = until

    def _finish(self, begin: int, end: int) -> tuple[Window, TileScores]:
        window = Window(self.top + begin, self.core.col_off, end - begin, self.core.width)
        weight = np.where(self.weight[begin:end] > 0, self.weight[begin:end], np.float32(1))
        mean = self.total[:, begin:end]
        mean /= weight  # in place: these rows are given away, then overwritten
        if self.frozen:
            return window, self.frozen.finish(mean)
        return window, TileScores(
            mean, None if self.background is None else np.divide(self.background[begin:end], weight, dtype=np.float32)
        )
