"""Our own segmenters and scenes pass the kit that others are given; the kit finds faulty ones."""

from functools import cache
from typing import ClassVar

import numpy as np
import pytest
from conftest import rotated, smooth, write_clip_directory

from ovrs import options
from ovrs.demo.synth import World, write_scene
from ovrs.engine.contract import TileScores
from ovrs.engine.testing import ColourSegmenter, TileMeanSegmenter
from ovrs.engine.tiling import TileGeometry
from ovrs.run import begin, segmenters
from ovrs.scene.opening import open_scene
from ovrs.testing import SceneSourceTests, SegmenterTests
from ovrs.words import vocabulary

SMALL = TileGeometry(crop=32, stride=16, crops_per_tile=3)


class TestColours(SegmenterTests):
    def segmenter(self):
        return ColourSegmenter(3, SMALL)


class TestTileMean(SegmenterTests):
    def segmenter(self):
        return TileMeanSegmenter()


@pytest.fixture(scope="module")
def clip(tiny_clip, tmp_path_factory):
    """Builds the segmenter of a method over a random network, once for each method."""
    folder, words = tmp_path_factory.mktemp("kit"), vocabulary.from_names(["water", "grass", "road"])
    write_clip_directory(tiny_clip, folder)
    write_scene(folder / "scene.tif", height=64, width=64, world=World(seed=1))

    @cache
    def built(method):
        model = {"model": str(folder), "crop": 64, "stride": 32}
        chosen = options.build(model=model, method={"method": method, "dense": "sclip"})
        return segmenters.build(begin.build_job(folder / "scene.tif", words, folder / "map.zarr", chosen)[0].spec)

    return built


class ClipTests(SegmenterTests):
    """A method of CLIP."""

    method = "none"

    @pytest.fixture(autouse=True)
    def _built(self, clip):
        self.built = clip(self.method)

    def segmenter(self):
        return self.built


class TestNone(ClipTests):
    method = "none"


class TestTmpa(ClipTests):
    method = "tmpa"


class TestMlmp(ClipTests):
    method = "mlmp"


OTHERS = ("tmpa_shift", "tmpa_compat", "tent", "tpt", "clipartt", "clipartt_compat", "watt", "watt_compat")
for _name in OTHERS:
    _kind = type(f"Test_{_name}", (ClipTests,), {"method": _name})
    globals()[_kind.__name__] = pytest.mark.slow(_kind)


class SceneTests(SceneSourceTests):
    """Rasters of several kinds; each test opens its own."""

    profile: ClassVar = {}
    reading: ClassVar = {}

    @pytest.fixture(autouse=True)
    def _written(self, write_raster):
        self.path = write_raster(np.maximum(smooth(90, 120), 1), **self.profile)

    def source(self):
        return open_scene(self.path, options.SceneOptions(**self.reading))


class TestPlainScene(SceneTests):
    profile: ClassVar = {"tiled": True, "blockxsize": 32, "blockysize": 32, "nodata": 1}


class TestTurnedScene(SceneTests):
    profile: ClassVar = {"transform": rotated()}


class TestCoarserScene(SceneTests):
    reading: ClassVar = {"gsd": 0.8}


class TestStretchedScene(SceneTests):
    reading: ClassVar = {"stretch": (5, 90), "bands": (3, 2, 1)}


class Remembers(ColourSegmenter):
    """Faulty: adds what it saw before."""

    seen = 0.0

    def segment(self, rgb, valid, crops):
        self.seen += float(rgb.mean())
        found = super().segment(rgb, valid, crops)
        return TileScores(found.scores + np.float32(self.seen / 1e4))


class Doubles(ColourSegmenter):
    """Faulty: its evidence is not the sum of its crops."""

    def evidence(self, rgb, valid, crops):
        total, hits = super().evidence(rgb, valid, crops)
        return total * len(crops), hits


class Paints(ColourSegmenter):
    """Faulty: writes into the tile."""

    def segment(self, rgb, valid, crops):
        found = super().segment(rgb, valid, crops)
        rgb[:] = 0
        return found


class Silent(ColourSegmenter):
    """Faulty: does not tell its weights."""

    def describe(self):
        return {"model": "silent"}


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Remembers, "test_nothing_survives_a_tile"),
        (Remembers, "test_the_same_tile_has_the_same_scores"),
        (Doubles, "test_frozen_is_the_sum_of_its_crops"),
        (Paints, "test_the_tile_is_not_changed"),
        (Silent, "test_the_description_is_complete"),
    ],
)
def test_the_kit_finds_faulty_segmenters(kind, law):
    class Tests(SegmenterTests):
        def segmenter(self):
            return kind(3, SMALL)

    with pytest.raises(AssertionError):
        getattr(Tests(), law)()


def test_the_kit_finds_a_scene_that_depends_on_the_window(noise_scene):
    inner = open_scene(noise_scene(60, 60), options.SceneOptions())

    class Shifted:
        geobox = inner.geobox

        def read(self, window):
            pixels = inner.read(window)
            pixels.rgb[0] += np.uint8(window.row_off % 2)
            return pixels

    class Tests(SceneSourceTests):
        def source(self):
            return Shifted()

        def windows(self, source):
            return [w for w in super().windows(source) if w.row_off % 2 or w.height == 60]

    with pytest.raises(AssertionError):
        Tests().test_every_window_shows_the_same_scene()
