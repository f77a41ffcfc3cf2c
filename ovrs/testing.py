"""Tests that any segmenter and any scene must pass, for those who write one.

pytest collects them from a subclass:

class TestMine(SegmenterTests):
    def segmenter(self):
        return Mine()
"""

from __future__ import annotations

import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ovrs.engine.contract import FrozenSegmenter, SceneAdaptive, Segmenter, TileScores
from ovrs.engine.tiling import Plan
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.engine.contract import TileSample
    from ovrs.scene.raster import SceneSource

DESCRIBED = ("model", "weights", "method")
"""Facts that every segmenter tells: they enter the digest of a run."""


class SegmenterTests:
    """What the engine relies on in a segmenter. Subclasses give `segmenter`."""

    tolerance: float = 1e-5
    """Largest difference of scores, 0..1, that counts as none."""
    crops_add_up: bool = True
    """Whether the evidence of a tile is the sum over its crops; not for segmenters that look at several crops at once."""

    def segmenter(self) -> Segmenter:
        """Return the segmenter under test; called once in every test."""
        raise NotImplementedError

    def tile(self, segmenter: Segmenter, seed: int = 0, side: int | None = None) -> TileSample:
        """Pixels `(3, y, x)` uint8, validity `(y, x)` and crops of a tile whose left upper corner is no data.

        Args:
            segmenter: Its geometry decides the size.
            seed: Of the pixels.
            side: Of the scene in pixels. Default: a full tile.
        """
        side = side or segmenter.geometry.tile
        tile = Plan(height=side, width=side, geometry=segmenter.geometry).tile(0, 0)
        height, width = tile.window.shape
        random = np.random.default_rng(seed)
        coarse = random.integers(0, 256, (3, height // 8 + 1, width // 8 + 1), np.uint8)
        rgb = np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width])
        valid = np.ones((height, width), np.bool_)
        valid[: height // 8, : width // 8] = False
        rgb[:, ~valid] = 0
        return rgb, valid, tile.crops

    def test_it_is_a_segmenter(self) -> None:
        segmenter = self.segmenter()
        assert isinstance(segmenter, Segmenter)
        assert segmenter.class_count >= 1

    def test_scores_have_the_shape_of_classes_and_tile(self) -> None:
        segmenter = self.segmenter()
        for side in (None, max(1, segmenter.geometry.crop // 2)):  # a full tile, and a scene smaller than a crop
            rgb, valid, crops = self.tile(segmenter, side=side)
            found = segmenter.segment(rgb, valid, crops)
            assert found.scores.shape == (segmenter.class_count, *valid.shape)
            assert found.scores.dtype == np.float32
            assert np.isfinite(found.scores[:, valid]).all()
            if found.background_evidence is not None:
                assert found.background_evidence.shape == valid.shape
            events = found.events() if callable(found.events) else found.events
            assert all(isinstance(event, str) for event in events)

    def test_the_same_tile_has_the_same_scores(self) -> None:
        segmenter = self.segmenter()
        tile = self.tile(segmenter)
        self._same(segmenter.segment(*tile), segmenter.segment(*tile), 0)

    def test_nothing_survives_a_tile(self) -> None:
        segmenter = self.segmenter()
        first = segmenter.segment(*self.tile(segmenter))
        segmenter.segment(*self.tile(segmenter, seed=1))
        self._same(first, segmenter.segment(*self.tile(segmenter)), 0)

    def test_the_tile_is_not_changed(self) -> None:
        segmenter = self.segmenter()
        rgb, valid, crops = self.tile(segmenter)
        before = rgb.copy(), valid.copy()
        segmenter.segment(rgb, valid, crops)
        assert np.array_equal(rgb, before[0])
        assert np.array_equal(valid, before[1])

    def test_the_description_is_complete(self) -> None:
        """It is JSON, names what decides the scores, and stays the same whatever was segmented."""
        segmenter = self.segmenter()
        before = json.dumps(segmenter.describe(), sort_keys=True)
        assert set(DESCRIBED) <= segmenter.describe().keys()
        segmenter.segment(*self.tile(segmenter))
        assert json.dumps(segmenter.describe(), sort_keys=True) == before

    def test_frozen_is_the_sum_of_its_crops(self) -> None:
        segmenter = self.segmenter()
        if not isinstance(segmenter, FrozenSegmenter):
            return
        rgb, valid, crops = self.tile(segmenter)
        total, weights = segmenter.evidence(rgb, valid, crops)
        assert total.shape == (segmenter.channels, *valid.shape)
        assert weights.shape == valid.shape
        assert (weights > 0).all()
        self._same(segmenter.finish(total / weights), segmenter.segment(rgb, valid, crops))
        if self.crops_add_up:
            parts = [segmenter.evidence(rgb, valid, (crop,)) for crop in crops]
            scale = max(1.0, float(np.abs(total).max()))
            assert np.abs(np.sum([part[0] for part in parts], axis=0) - total).max() <= self.tolerance * scale
            assert np.allclose(np.sum([part[1] for part in parts], axis=0), weights)

    def test_frozen_decides_each_pixel_alone(self) -> None:
        segmenter = self.segmenter()
        if not isinstance(segmenter, FrozenSegmenter):
            return
        total, weights = segmenter.evidence(*self.tile(segmenter))
        mean = total / weights
        part = segmenter.finish(np.ascontiguousarray(mean[:, 1:3, 2:5])).scores
        assert np.abs(part - segmenter.finish(mean).scores[:, 1:3, 2:5]).max() <= self.tolerance

    def test_what_is_learned_from_a_scene_can_be_kept(self) -> None:
        """As plain arrays, without pickle; the segmenter itself stays as it was."""
        segmenter = self.segmenter()
        if not isinstance(segmenter, SceneAdaptive):
            return
        tile = self.tile(segmenter, seed=1)
        before = segmenter.segment(*tile)
        learned = segmenter.adapt_scene([self.tile(segmenter), tile])
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **learned)
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as kept:
            adapted = [segmenter.with_state(state) for state in (learned, dict(kept))]
        self._same(adapted[0].segment(*tile), adapted[1].segment(*tile), 0)
        self._same(before, segmenter.segment(*tile), 0)

    def _same(self, first: TileScores, second: TileScores, tolerance: float | None = None) -> None:
        most = self.tolerance if tolerance is None else tolerance
        assert np.abs(first.scores - second.scores).max() <= most


class SceneSourceTests:
    """What the engine relies on in a scene. Subclasses give `source`."""

    def source(self) -> SceneSource:
        """Return the scene under test; called once in every test."""
        raise NotImplementedError

    def windows(self, source: SceneSource) -> list[Window]:
        """Windows of the scene's grid: the whole, a corner, a middle, one pixel."""
        height, width = source.geobox.shape
        third = (max(1, height // 3), max(1, width // 3))
        return [
            Window(0, 0, height, width),
            Window(height - third[0], width - third[1], *third),
            Window(height // 3, width // 3, *third),
            Window(height - 1, 0, 1, 1),
        ]

    def test_pixels_have_the_shape_of_the_window(self) -> None:
        source = self.source()
        for window in self.windows(source):
            pixels = source.read(window)
            assert pixels.rgb.shape == (3, *window.shape)
            assert pixels.rgb.dtype == np.uint8
            assert pixels.valid.shape == window.shape
            assert pixels.valid.dtype == np.bool_

    def test_pixels_without_data_are_black(self) -> None:
        source = self.source()
        pixels = source.read(self.windows(source)[0])
        assert not pixels.rgb[:, ~pixels.valid].any()

    def test_every_window_shows_the_same_scene(self) -> None:
        """Blocks read overlapping windows; a pixel must not depend on the window."""
        source = self.source()
        whole, *parts = self.windows(source)
        rgb, valid = self._read(source, whole)
        for window in parts:
            rows, cols = slice(window.row_off, window.row_end), slice(window.col_off, window.col_end)
            part = self._read(source, window)
            assert np.array_equal(part[0], rgb[:, rows, cols])
            assert np.array_equal(part[1], valid[rows, cols])

    def test_it_can_be_sent_to_another_process(self) -> None:
        source = self.source()
        window = self.windows(source)[1]
        before, after = self._read(source, window), self._read(pickle.loads(pickle.dumps(source)), window)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

    def test_threads_read_the_same(self) -> None:
        source = self.source()
        window = self.windows(source)[2]
        expected = self._read(source, window)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: self._read(source, window), range(8)):
                assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))

    def _read(self, source: SceneSource, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        pixels = source.read(window)
        return pixels.rgb, pixels.valid
