"""The engine on segmenters without a network: blending, exactness, seams, failures."""

from collections import Counter

import numpy as np
import pytest
from affine import Affine
from conftest import smooth
from odc.geo.geobox import GeoBox

from ovrs.engine import ties
from ovrs.engine.block import Overhang, map_block
from ovrs.engine.contract import FrozenSegmenter, Segmenter, TileScores
from ovrs.engine.decide import DecisionRule
from ovrs.engine.testing import ColourSegmenter, TileMeanSegmenter
from ovrs.engine.tiling import Plan, TileGeometry, crop_starts, ramp_weights
from ovrs.scene.grid import Window
from ovrs.scene.raster import Pixels

SMALL = TileGeometry(crop=32, stride=16, crops_per_tile=3)


class ArrayScene:
    """A scene held in memory."""

    def __init__(self, rgb, valid=None):
        self.rgb = rgb
        self.valid = np.ones(rgb.shape[1:], bool) if valid is None else valid
        self.geobox = GeoBox(rgb.shape[1:], Affine.scale(1, -1), "EPSG:32633")

    def read(self, window):
        rows, cols = slice(window.row_off, window.row_end), slice(window.col_off, window.col_end)
        return Pixels(self.rgb[:, rows, cols].copy(), self.valid[rows, cols].copy())


def run(scene, segmenter, pitches, rule=DecisionRule()):  # noqa: B008 - frozen
    height, width = scene.rgb.shape[1:]
    plan = Plan(height=height, width=width, geometry=segmenter.geometry, block_pitches=pitches)
    label, confidence = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    for block in plan.blocks():
        result = map_block(scene, segmenter, plan, block, rule)
        part = block.core.slices_in(Window(0, 0, height, width))
        label[part], confidence[part] = result.label, result.confidence
    return label, confidence


class EvenSegmenter(ColourSegmenter):
    """Windows taper off over their overlap, so that a tile's weights are one but at its border."""

    def __init__(self, classes):
        super().__init__(classes, TileGeometry(crop=32, stride=24, crops_per_tile=3))
        self.made, self.asked = [], []

    def evidence(self, rgb, valid, crops):
        total, hits = np.zeros((self.channels, *valid.shape), np.float32), np.zeros(valid.shape)
        for crop in crops:
            part, weight = (
                crop.slices_in(Window(0, 0, *valid.shape)),
                np.outer(*(ramp_weights(n, 8) for n in crop.shape)),
            )
            values, _ = super().evidence(rgb[(slice(None), *part)], valid[part], (Window(0, 0, *crop.shape),))
            total[(slice(None), *part)] += values * weight
            hits[part] += weight
        self.made.append(total)
        return total, hits.astype(np.float32)

    def finish(self, evidence):
        self.asked.append(evidence)
        return super().finish(evidence)


FROZEN = [lambda: ColourSegmenter(5, SMALL), lambda: EvenSegmenter(5)]


def test_where_one_tile_speaks_alone_its_evidence_is_read_in_place():
    """Nine tenths of a tile of the bundled model: copying it would cost more than deciding it."""
    segmenter = EvenSegmenter(5)
    run(ArrayScene(smooth(296, 368)), segmenter, 64)  # four and five tiles
    alone = [a for a in segmenter.asked if any(np.shares_memory(a, total) for total in segmenter.made)]
    assert sum(a[0].size for a in alone) == 4 * 5 * 64**2
    assert sum(a[0].size for a in segmenter.asked) == 296 * 368


@pytest.mark.parametrize("made", FROZEN)
@pytest.mark.parametrize("shape", [(150, 203), (31, 20), (96, 97), (48, 300)])
def test_a_frozen_map_does_not_depend_on_its_blocks(shape, made):
    scene, segmenter = ArrayScene(smooth(*shape)), made()
    whole = run(scene, segmenter, 64)
    for pitches in (1, 2, 3):
        np.testing.assert_array_equal(run(scene, segmenter, pitches), whole)


@pytest.mark.parametrize("shape", [(150, 203), (31, 20), (3, 70)])
def test_near_ties_are_counted_on_a_grid_that_blocks_do_not_move(shape):
    """Against plain sorting, whatever the blocks; pixels without data do not count."""
    valid = smooth(*shape, 5)[0] > 100
    scene, segmenter = ArrayScene(smooth(*shape), valid), ColourSegmenter(5, SMALL)
    found = []
    for pitches in (1, 3, 64):
        plan = Plan(height=shape[0], width=shape[1], geometry=SMALL, block_pitches=pitches)
        total, scores = Counter(), np.zeros((5, *shape), np.float32)
        for block in plan.blocks():
            made = map_block(scene, segmenter, plan, block, DecisionRule(), keep_scores=True)
            total.update(made.ties)
            scores[(slice(None), *block.core.slices_in(Window(0, 0, *shape)))] = made.score
        found.append({k: v for k, v in total.items() if v})
    assert found[0] == found[1] == found[2]
    seen = scores[:, :: ties.STEP, :: ties.STEP][:, valid[:: ties.STEP, :: ties.STEP]]
    order = np.argsort(-seen, axis=0, kind="stable")
    assert sum(v for k, v in found[0].items() if "_" not in k) == seen.shape[1]
    for i in range(5):
        assert found[0].get(str(i), 0) == pytest.approx((order[0] == i).sum(), abs=3)  # kept scores are rounded
        for j in set(range(5)) - {i}:
            near = np.take_along_axis(seen, order[1:2], 0)[0] >= ties.NEAR * seen.max(0)
            expected = ((order[0] == i) & (order[1] == j) & near).sum()
            assert found[0].get(f"{i}_{j}", 0) == pytest.approx(expected, abs=3)


def test_two_classes_that_look_alike_tie_nearly_everywhere():
    scene, segmenter = ArrayScene(smooth(150, 203)), ColourSegmenter(4, SMALL)
    segmenter.colours[3] = segmenter.colours[1] + 2
    plan = Plan(height=150, width=203, geometry=SMALL, block_pitches=64)
    found = map_block(scene, segmenter, plan, plan.block(0, 0), DecisionRule()).ties
    won = [found.get(k, 0) for k in ("1", "3")]
    assert sum(won) > 50
    assert found.get("1_3", 0) + found.get("3_1", 0) > 0.95 * sum(won)
    alone = ColourSegmenter(1, SMALL)
    assert map_block(scene, alone, plan, plan.block(0, 0), DecisionRule()).ties == {}


@pytest.mark.parametrize("made", FROZEN)
@pytest.mark.parametrize("shape", [(150, 203), (31, 20)])
def test_a_frozen_map_equals_plain_sliding_windows(shape, made):
    """Independent of the engine: every crop of the scene summed into one array, divided once."""
    scene, segmenter = ArrayScene(smooth(*shape)), made()
    height, width = shape
    total, hits = np.zeros((5, *shape)), np.zeros(shape)
    for r in crop_starts(height, 32, segmenter.geometry.stride):
        for c in crop_starts(width, 32, segmenter.geometry.stride):
            h, w = min(32, height), min(32, width)
            values, weight = segmenter.evidence(
                scene.rgb[:, r : r + h, c : c + w], np.ones((h, w), bool), (Window(0, 0, h, w),)
            )
            total[:, r : r + h, c : c + w] += values
            hits[r : r + h, c : c + w] += weight
    label, confidence = run(scene, segmenter, 2)
    scores = segmenter.finish((total / hits).astype(np.float32)).scores
    np.testing.assert_array_equal(label, scores.argmax(axis=0))
    assert np.abs(confidence.astype(int) - np.rint(scores.max(axis=0) * 200)).max() <= 1


def test_a_tile_without_valid_pixels_is_never_scored():
    """The contract of a segmenter promises it at least one valid pixel."""

    class Strict(TileMeanSegmenter):
        def segment(self, rgb, valid, crops):
            assert valid.any()
            return super().segment(rgb, valid, crops)

    valid = np.zeros((200, 230), bool)
    valid[150:, 200:] = True
    label, _ = run(ArrayScene(smooth(200, 230), valid), Strict(3, SMALL), 2)
    np.testing.assert_array_equal(label != 255, valid)


def test_an_adapted_map_is_the_same_whatever_the_blocks():
    """Neighbours compute the same tiles, so no shared state is needed."""
    scene, segmenter = ArrayScene(smooth(200, 230, 3)), TileMeanSegmenter(3, SMALL)
    whole = run(scene, segmenter, 64)
    for pitches in (1, 2):
        np.testing.assert_array_equal(run(scene, segmenter, pitches), whole)


class Counted(TileMeanSegmenter):
    """Remembers which tiles it was asked for."""

    def __init__(self, *given):
        super().__init__(*given)
        self.asked = 0

    def segment(self, rgb, valid, crops):
        self.asked += 1
        return super().segment(rgb, valid, crops)


@pytest.mark.parametrize("kind", [ColourSegmenter, Counted])
@pytest.mark.parametrize("pitches", [1, 2, 3])
def test_what_hangs_over_to_the_right_is_not_computed_twice(kind, pitches):
    scene, segmenter = ArrayScene(smooth(150, 403, 3)), kind(3, SMALL)
    plan = Plan(height=150, width=403, geometry=SMALL, block_pitches=pitches)
    overhang = Overhang()
    for block in plan.blocks():
        alone = map_block(scene, segmenter, plan, block, DecisionRule())
        before = getattr(segmenter, "asked", 0)
        handed = map_block(scene, segmenter, plan, block, DecisionRule(), overhang=overhang)
        np.testing.assert_array_equal(handed.label, alone.label)
        np.testing.assert_array_equal(handed.confidence, alone.confidence)
        assert (handed.tiles, handed.events) == (alone.tiles, alone.events)
        if kind is Counted:
            tiles = plan.tiles_of(block.core)
            fresh = [t for t in tiles if block.col == 0 or t.window.col_off >= block.core.col_off]
            assert segmenter.asked - before == len(fresh)


def test_what_hangs_over_is_forgotten_when_another_block_comes():
    scene, segmenter = ArrayScene(smooth(150, 203, 3)), TileMeanSegmenter(3, SMALL)
    plan = Plan(height=150, width=203, geometry=SMALL, block_pitches=1)
    overhang = Overhang()
    for block in reversed(plan.blocks()):
        expected = map_block(scene, segmenter, plan, block, DecisionRule())
        found = map_block(scene, segmenter, plan, block, DecisionRule(), overhang=overhang)
        np.testing.assert_array_equal(found.label, expected.label)


def test_constant_scores_blend_to_the_same_constant():
    class Constant(TileMeanSegmenter):
        def segment(self, rgb, valid, crops):
            return TileScores(np.broadcast_to(np.float32([0.2, 0.5, 0.3])[:, None, None], (3, *valid.shape)).copy())

    label, confidence = run(ArrayScene(smooth(130, 75)), Constant(3, SMALL), 2)
    assert (label == 1).all()
    assert (confidence == 100).all()


def test_invalid_pixels_are_no_data_and_empty_tiles_cost_nothing():
    valid = np.zeros((150, 150), bool)
    valid[:40, :40] = True
    scene, segmenter = ArrayScene(smooth(150, 150), valid), TileMeanSegmenter(3, SMALL)
    calls = []
    original = segmenter.segment
    segmenter.segment = lambda *args: calls.append(args) or original(*args)
    label, confidence = run(scene, segmenter, 1)
    assert ((label == 255) == ~valid).all()
    assert ((confidence == 255) == ~valid).all()
    assert len(calls) == 1


def test_background_evidence_is_blended_and_used():
    class Evidence(TileMeanSegmenter):
        def segment(self, rgb, valid, crops):
            scores = super().segment(rgb, valid, crops).scores
            evidence = np.zeros(valid.shape, np.float32)
            evidence[:, : valid.shape[1] // 2] = 2
            return TileScores(scores, evidence)

    label, _ = run(
        ArrayScene(smooth(60, 60)),
        Evidence(3, TileGeometry(crop=64, stride=32)),
        1,
        DecisionRule(background=2, threshold=0.0),
    )
    assert (label[:, :30] == 2).all()
    assert (label[:, 30:] != 2).any()


def test_shipped_segmenters_fulfil_the_contract():
    assert isinstance(ColourSegmenter(3), FrozenSegmenter)
    assert isinstance(TileMeanSegmenter(), Segmenter)
    assert not isinstance(TileMeanSegmenter(), FrozenSegmenter)


def test_the_band_is_a_tile_high_whatever_the_block():
    """Peak memory of blending: channels × tile height × core width, not the block."""
    import tracemalloc

    scene, segmenter = ArrayScene(smooth(1600, 320)), ColourSegmenter(12, SMALL)
    peaks = []
    for height in (400, 1600):
        part = ArrayScene(scene.rgb[:, :height])
        plan = Plan(height=height, width=320, geometry=SMALL, block_pitches=64)
        tracemalloc.start()
        map_block(part, segmenter, plan, plan.block(0, 0), DecisionRule())
        peaks.append(tracemalloc.get_traced_memory()[1] - 8 * height * 320)
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
