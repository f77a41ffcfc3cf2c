"""The pure heart of the engine: one block of the map from one block of the scene."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from ovrs.contract import FrozenSegmenter, Segmenter, TileScores
from ovrs.decide import CONFIDENCE_NODATA, CONFIDENCE_SCALE, DecisionRule, decide, label_dtype, label_nodata
from ovrs.grid import Window
from ovrs.tiling import taper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ovrs.scene import Pixels, SceneSource
    from ovrs.tiling import Block, Plan, Tile

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
) -> BlockMap:
    """Read a block with its halo, score every tile that touches it, blend, and decide its core.

    Tiles are scene-wide, so a neighbour that needs the same tile computes the same numbers: the two blocks agree at
    their border without talking to each other. `pixels`: the block's read window, if somebody has read it already.
    """
    started = time.perf_counter()
    if pixels is None:
        pixels = scene.read(block.read)
    read_seconds = time.perf_counter() - started
    core = _Core(block.core, segmenter.class_count, keep_scores)
    valid = pixels.valid[block.core.slices_in(block.read)]
    events: Counter[str] = Counter()
    tiles = plan.tiles_of(block.core) if valid.any() else []
    blend = _Blend(segmenter, block.core, plan)
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


class _Core:
    """Output arrays of one block, no data until filled."""

    def __init__(self, window: Window, classes: int, keep_scores: bool) -> None:
        self.label = np.full(window.shape, label_nodata(classes), label_dtype(classes))
        self.confidence = np.full(window.shape, CONFIDENCE_NODATA, np.uint8)
        self.score = np.full((classes, *window.shape), CONFIDENCE_NODATA, np.uint8) if keep_scores else None

    def fill(self, part: tuple[slice, slice], scores: TileScores, valid: NDArray[np.bool_], rule: DecisionRule) -> None:
        self.label[part], self.confidence[part] = decide(scores.scores, valid, rule, scores.background_evidence)
        if self.score is not None:
            quantised = np.rint(np.clip(scores.scores, 0, 1) * CONFIDENCE_SCALE).astype(np.uint8)
            self.score[(slice(None), *part)] = np.where(valid, quantised, CONFIDENCE_NODATA)


class _Blend:
    """Weighted sum of tiles over a rolling band of rows: C × tile height × core width, never the whole block."""

    def __init__(self, segmenter: Segmenter, core: Window, plan: Plan) -> None:
        self.segmenter, self.core = segmenter, core
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
        crops = tuple(c.relative_to(tile.window) for c in tile.crops)
        background: NDArray[np.float32] | None = None
        events: tuple[str, ...] = ()
        if self.frozen:
            values, weight = self.frozen.evidence(rgb, valid, crops)
        else:
            result = self.segmenter.segment(rgb, valid, crops)
            weight = taper(tile.window, self.ramp)
            values, background, events = result.scores * weight, result.background_evidence, result.events
        source = inside.slices_in(tile.window)
        band = (
            slice(inside.row_off - self.top, inside.row_end - self.top),
            slice(inside.col_off - self.core.col_off, inside.col_end - self.core.col_off),
        )
        self._grow(band[0].stop)
        self.total[(slice(None), *band)] += values[(slice(None), *source)]
        self.weight[band] += weight[source]
        if background is not None:
            if self.background is None:
                self.background = np.zeros_like(self.weight)
            self.background[band] += (background * weight)[source]
        return events

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
