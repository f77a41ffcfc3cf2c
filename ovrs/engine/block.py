"""The pure heart of the engine: one block of the map from one block of the scene."""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, label_dtype, label_nodata
from ovrs.engine.arrays import Array, as_numpy, empty, on_host
from ovrs.engine.blend import Blend, Scored
from ovrs.engine.contract import FrozenSegmenter, ManyTiles, Resident, Segmenter, TileScores
from ovrs.engine.decide import DecisionRule, decided, quantised
from ovrs.engine.ties import Ties
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from ovrs.engine.contract import Events, Look, TileSample
    from ovrs.engine.tiling import Block, Plan, Tile
    from ovrs.scene.raster import Pixels, SceneSource


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
    """Time spent on `read` and `compute`, and on the parts of the latter: `upload` of pixels to the device, `model`, `blend`
    with deciding, `download` of labels. A device is waited for in the last."""
    tiles: int
    ties: dict[str, int] = field(default_factory=dict)
    """Winners and near seconds on a sparse grid, as `ovrs.engine.ties` counts them."""


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
    tick: Callable[[], None] | None = None,
) -> BlockMap:
    """Read a block with its halo, score every tile that touches it, blend, and decide its core.

    Tiles are scene-wide, so a neighbour that needs the same tile computes the same numbers: the two blocks agree at
    their border without talking to each other. `pixels`: the block's read window, if somebody has read it already.
    `overhang`: handed from block to block, it spares the right-hand neighbour the tiles they share. Scores stay in the
    library and on the device of the segmenter; labels, confidence and kept scores come back once. `tick`: called after
    each tile.
    """
    started = time.perf_counter()
    if pixels is None:
        pixels = scene.read(block.read)
    read_seconds = time.perf_counter() - started
    core = _Core(block.core, segmenter.class_count, keep_scores)
    overhang = Overhang() if overhang is None else overhang
    overhang.begin(block.core)
    events: Counter[str] = Counter()
    later: list[Callable[[], tuple[str, ...]]] = []
    valid = pixels.valid[block.core.slices_in(block.read)]
    tiles = plan.tiles_of(block.core) if valid.any() else []
    blend, clock = Blend(segmenter, block.core, tiles, plan), _Clock()
    for tile, scored, own in _scored(segmenter, pixels, block, tiles, blend, overhang, clock):
        if callable(own):
            later.append(own)
        else:
            events.update(own)
        with clock.of("blend"):
            overhang.keep(tile, scored, own, block.core)
            for part, scores in blend.add(tile, scored):
                core.fill(part.slices_in(block.core), scores, rule)
        if tick is not None:
            tick()
    with clock.of("download"):
        label, confidence, score = core.result(valid)
        for told in later:
            events.update(told())
    total = time.perf_counter() - started
    seconds = {"read": read_seconds, "compute": total - read_seconds, **clock.seconds}
    return BlockMap(label, confidence, score, dict(events), seconds, len(tiles), core.ties.counts(valid))


class _Clock:
    """Seconds by part of computing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what happens inside."""
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def _scored(
    segmenter: Segmenter,
    pixels: Pixels,
    block: Block,
    tiles: list[Tile],
    blend: Blend,
    overhang: Overhang,
    clock: _Clock,
) -> Iterator[tuple[Tile, Scored, Events]]:
    """Each tile with valid pixels in turn; the segmenter looks at as many at once as it asks for."""
    here = [t for t in tiles if pixels.valid[t.window.slices_in(block.read)].any()]
    fresh = deque(tile for tile in here if tile not in overhang)
    placed: tuple[Array, Array] = (pixels.rgb, pixels.valid)
    if isinstance(segmenter, Resident) and fresh:
        with clock.of("upload"):
            placed = segmenter.place(pixels.rgb, pixels.valid)
    ready: deque[tuple[Scored, Events]] = deque()
    for tile in here:
        known = overhang.take(tile)
        if known is None:
            if not ready:
                count = segmenter.tiles_at_once if isinstance(segmenter, ManyTiles) else 1
                batch = [fresh.popleft() for _ in range(min(count, len(fresh)))]
                with clock.of("model"):
                    looks = _look(segmenter, [_sample(t, placed, block.read) for t in batch])
                for looked, found in zip(batch, looks, strict=True):
                    own = found.events if isinstance(found, TileScores) else found[2]
                    ready.append((blend.weighted(looked, found), own))
            known = ready.popleft()
        yield tile, *known


def _look(segmenter: Segmenter, samples: list[TileSample]) -> list[Look]:
    """Return what the segmenter says of tiles: evidence and weight if it is frozen, else scores."""
    if isinstance(segmenter, ManyTiles):
        return segmenter.look(samples)
    if isinstance(segmenter, FrozenSegmenter):
        return [(*segmenter.evidence(*sample), ()) for sample in samples]
    return [segmenter.segment(*sample) for sample in samples]


def _sample(tile: Tile, placed: tuple[Array, Array], outer: Window) -> TileSample:
    rows, cols = tile.window.slices_in(outer)
    rgb, valid = placed[0][:, rows, cols], placed[1][rows, cols]
    if isinstance(rgb, np.ndarray):
        rgb, valid = np.ascontiguousarray(rgb), np.ascontiguousarray(valid)
    return rgb, valid, tuple(c.relative_to(tile.window) for c in tile.crops)


class Overhang:
    """Scores that the tiles of one block give to the block on its right: strips as wide as the overlap.

    The strips are dropped when the next block is another one.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], tuple[Scored, Events]] = {}
        self._core: Window | None = None

    def begin(self, core: Window) -> None:
        """Begin the next block."""
        last, self._core = self._core, core
        if last is None or (last.row_off, last.row_end, last.col_end) != (core.row_off, core.row_end, core.col_off):
            self._parts.clear()

    def keep(self, tile: Tile, scored: Scored, events: Events, core: Window) -> None:
        """Remember what lies right of `core`, in its rows."""
        window = scored.window
        top, bottom = max(window.row_off, core.row_off), min(window.row_end, core.row_end)
        if window.col_end > core.col_end:
            right = Window(top, core.col_end, bottom - top, window.col_end - core.col_end)
            self._parts[tile.row, tile.col] = scored.part(right), events

    def __contains__(self, tile: Tile) -> bool:
        return (tile.row, tile.col) in self._parts

    def take(self, tile: Tile) -> tuple[Scored, Events] | None:
        """Return what the left-hand neighbour kept of a tile, with its events, once."""
        return self._parts.pop((tile.row, tile.col), None)


class _Core:
    """Output arrays of one block: where the scores are while it is filled, on the host in the end."""

    def __init__(self, window: Window, classes: int, keep_scores: bool) -> None:
        self.shape, self.classes, self.keep_scores = window.shape, classes, keep_scores
        self.arrays: list[Array] = []
        self.ties = Ties(window, classes)

    def fill(self, part: tuple[slice, slice], scores: TileScores, rule: DecisionRule) -> None:
        """Decide a part."""
        self.ties.add(part, scores.scores)
        found = [*decided(scores.scores, rule, scores.background_evidence)]
        if self.keep_scores:
            found.append(quantised(scores.scores))
            if on_host(scores.scores):
                found[-1] = as_numpy(found[-1])
        if not self.arrays:
            self.arrays = [empty((*f.shape[:-2], *self.shape), f) for f in found]
        for array, values in zip(self.arrays, found, strict=True):
            array[(..., *part)] = values

    def result(self, valid: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Labels, confidence and scores in NumPy, no data where pixels are not valid."""
        fills = (label_nodata(self.classes), CONFIDENCE_NODATA, CONFIDENCE_NODATA)
        kinds = (label_dtype(self.classes), np.dtype(np.uint8), np.dtype(np.uint8))
        if not self.arrays:
            shapes = (self.shape, self.shape, (self.classes, *self.shape))
            empty_ones = [np.full(s, f, k) for s, f, k in zip(shapes, fills, kinds, strict=True)]
            return empty_ones[0], empty_ones[1], empty_ones[2] if self.keep_scores else None
        found = [as_numpy(a).astype(kind, copy=False) for a, kind in zip(self.arrays, kinds, strict=False)]
        if not valid.all():
            for array, fill in zip(found, fills, strict=False):
                array[..., ~valid] = fill
        return found[0], found[1], found[2] if self.keep_scores else None
