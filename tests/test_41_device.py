"""The engine with scores that are not NumPy's, and several tiles in a batch: the same map as one by one."""

import functools

import numpy as np
import pytest
import torch
from conftest import smooth, write_clip_directory
from test_40_block import ArrayScene

from ovrs.engine import arrays, blend, block, decide
from ovrs.engine.block import Overhang, map_block
from ovrs.engine.contract import ManyTiles, Resident, TileScores
from ovrs.engine.decide import DecisionRule
from ovrs.engine.testing import ColourSegmenter, TileMeanSegmenter
from ovrs.engine.tiling import Plan, TileGeometry
from ovrs.model.clip import build as clip_build
from ovrs.model.clip import memory
from ovrs.model.clip import segmenter as clip_segmenter
from ovrs.model.clip.encoder import Encoder
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

SMALL = TileGeometry(crop=32, stride=16, crops_per_tile=3)


def mapped(scene, segmenter, rule=DecisionRule(), pitches=2, keep=True):  # noqa: B008 - frozen
    """Labels, confidence, scores and events of a whole scene, block by block, overhangs handed on."""
    height, width = scene.rgb.shape[1:]
    plan = Plan(height=height, width=width, geometry=segmenter.geometry, block_pitches=pitches)
    label, confidence = (np.zeros((height, width), np.uint16) for _ in range(2))
    score = np.zeros((segmenter.class_count, height, width), np.uint8)
    overhang, events = Overhang(), {}
    for each in plan.blocks():
        found = map_block(scene, segmenter, plan, each, rule, keep_scores=keep, overhang=overhang)
        part = each.core.slices_in(Window(0, 0, height, width))
        label[part], confidence[part] = found.label, found.confidence
        if keep:
            score[(slice(None), *part)] = found.score
        for name, count in found.events.items():
            events[name] = events.get(name, 0) + count
    return label, confidence, score, events


@pytest.fixture
def elsewhere(monkeypatch):
    """Tensors count as arrays of a device: blended and decided by the array API, brought to the host once a block."""
    for module in (blend, block, decide):
        monkeypatch.setattr(module, "on_host", arrays.is_numpy_array)


class AsTensors:
    """A segmenter's answers as tensors."""

    def __init__(self, inner):
        self.inner, self.geometry, self.class_count = inner, inner.geometry, inner.class_count

    def segment(self, rgb, valid, crops):
        found = self.inner.segment(rgb, valid, crops)
        return TileScores(torch.from_numpy(found.scores), events=found.events)

    def describe(self):
        return self.inner.describe()


class FrozenAsTensors(AsTensors):
    """The same, frozen."""

    @property
    def channels(self):
        return self.inner.channels

    def evidence(self, rgb, valid, crops):
        return tuple(torch.from_numpy(a) for a in self.inner.evidence(rgb, valid, crops))

    def finish(self, evidence):
        return TileScores(torch.from_numpy(self.inner.finish(np.asarray(evidence)).scores))


@pytest.mark.parametrize(
    ("segmenter", "kind"),
    [
        (ColourSegmenter(14, SMALL), FrozenAsTensors),
        (TileMeanSegmenter(4, SMALL), AsTensors),
        (ColourSegmenter(260, SMALL), FrozenAsTensors),
    ],
    ids=["frozen", "adapted", "many classes"],
)
@pytest.mark.parametrize("rule", [DecisionRule(), DecisionRule(background=1, threshold=0.3)])
def test_another_librarys_arrays_make_the_same_map(elsewhere, segmenter, kind, rule):
    valid = np.ones((130, 171), bool)
    valid[:50, 60:140] = False
    scene = ArrayScene(smooth(130, 171), valid)
    found, expected = mapped(scene, kind(segmenter), rule), mapped(scene, segmenter, rule)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_equal(one, other)


def test_background_of_some_tiles_alone_is_blended():
    class Sometimes(TileMeanSegmenter):
        def segment(self, rgb, valid, crops):
            found = super().segment(rgb, valid, crops)
            if int(rgb.sum()) % 2:
                return found
            return TileScores(found.scores, np.full(valid.shape, 2, np.float32))

    scene, segmenter = ArrayScene(smooth(150, 190, 5)), Sometimes(3, SMALL)
    rule = DecisionRule(background=2)
    whole = mapped(scene, segmenter, rule, pitches=64)[0]
    np.testing.assert_array_equal(mapped(scene, segmenter, rule, pitches=1)[0], whole)
    assert 0 < (whole == 2).mean() < 1


@pytest.fixture
def segmenter_of(tiny_clip, tmp_path, monkeypatch):
    """`segmenter_of(method, tiles)` of the tiny CLIP."""
    write_clip_directory(tiny_clip, tmp_path)
    monkeypatch.setattr(clip_build, "load", functools.cache(clip_build.load))

    def make(method, tiles, wide=(), **more):
        given = ModelOptions(model=str(tmp_path), device="cpu", zoom=2, stride=24, tiles_at_once=tiles, wide=wide)
        return clip_build.build_clip_segmenter(given, MethodOptions(method=method, **more), vocabulary.load("demo"))

    return make


METHODS = {
    "none": {},
    "tmpa": {"adaptation": "tile"},
    "tmpa_shift": {"lr_shift": 1e-3},
    "mlmp": {"steps": 2},
    "tent": {"steps": 2},
    "tpt": {"steps": 2},
    "clipartt": {"steps": 2},
    "watt": {"rounds": 1},
}


LONG = {"mlmp", "clipartt", "watt", "tent"}


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow if m in LONG else ()) for m in METHODS])
@pytest.mark.parametrize("wide", [(), (2,)], ids=["crops", "wide"])
def test_any_number_of_tiles_at_once_makes_the_same_map(segmenter_of, method, wide):
    if wide and method not in ("tmpa_shift", "mlmp"):
        pytest.skip("wider windows go the same way in all methods")
    valid = np.ones((120, 240), bool)
    valid[:, 210:] = False
    valid[:100, :30] = False
    scene = ArrayScene(smooth(120, 240, 2), valid)
    whole = None
    for tiles in (1, 2, 8):
        segmenter = segmenter_of(method, tiles, wide, **METHODS[method])
        assert isinstance(segmenter, ManyTiles)
        assert isinstance(segmenter, Resident)
        assert segmenter.describe()["tiles_at_once"] == tiles
        found = mapped(scene, segmenter)
        whole = whole or found
        assert found[3] == whole[3]
        assert np.abs(found[2].astype(int) - whole[2]).max() <= 1  # of 200: the last bits of a larger matrix product
        assert (found[0] == whole[0]).mean() > 0.999


def test_tensors_of_clip_stay_tensors(segmenter_of, elsewhere, monkeypatch):
    scene = ArrayScene(smooth(120, 150, 2))
    expected = mapped(scene, segmenter_of("tmpa", 1, adaptation="tile"))
    monkeypatch.setattr(clip_segmenter, "given_away", lambda values: values)
    monkeypatch.setattr(clip_segmenter, "placed", lambda values, device: torch.from_numpy(np.ascontiguousarray(values)))
    for tiles in (1, 4):
        found = mapped(scene, segmenter_of("tmpa", tiles, adaptation="tile"))
        assert found[3] == expected[3]
        assert np.abs(found[2].astype(int) - expected[2]).max() <= 1


@pytest.mark.parametrize("method", ["none", "tmpa"])
def test_too_little_memory_halves_the_tiles_and_is_recorded(segmenter_of, method, monkeypatch, caplog):
    scene = ArrayScene(smooth(120, 330, 2))
    expected = mapped(scene, segmenter_of(method, 2, **METHODS[method]))
    encode = Encoder.encode_tiles

    def short(self, tiles):
        if self.tiles_at_once > 2:
            raise torch.OutOfMemoryError("no memory")
        return encode(self, tiles)

    monkeypatch.setattr(Encoder, "encode_tiles", short)
    segmenter = segmenter_of(method, 8, **METHODS[method])
    found = mapped(scene, segmenter)
    assert segmenter.tiles_at_once == 2
    assert found[3].pop("halved_tiles_at_once") >= 1
    assert found[3] == expected[3]
    assert "tiles_at_once=2" in caplog.text
    assert np.abs(found[2].astype(int) - expected[2]).max() <= 1


def test_tiles_at_once_follow_from_the_memory(segmenter_of):
    assert segmenter_of("none", None).tiles_at_once == 1
    assert [memory.power_of_two(n) for n in (0, 1, 3, 8, 100)] == [1, 1, 2, 8, 16]
