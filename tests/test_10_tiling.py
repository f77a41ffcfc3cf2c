"""Partition arithmetic: cores cover once, tiles are scene-wide, reads hold every tile."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from ovrs.engine.tiling import Plan, TileGeometry, crop_starts, taper
from ovrs.errors import GridMismatchError, OptionError
from ovrs.scene.grid import Window, crop_to_bounds, pixel_size_m, regrid, row_areas_m2

plans = st.builds(
    lambda h, w, stride, double, k, n: Plan(
        height=h,
        width=w,
        geometry=TileGeometry(crop=stride * (1 + double), stride=stride, crops_per_tile=k),
        block_pitches=n,
    ),
    st.integers(1, 260),
    st.integers(1, 260),
    st.integers(4, 24),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 4),
)


@settings(max_examples=60, deadline=None)
@given(plans)
def test_blocks_cover_every_pixel_once_and_read_all_their_tiles(plan):
    seen = np.zeros((plan.height, plan.width), int)
    grid = Window(0, 0, plan.height, plan.width)
    for block in plan.blocks():
        seen[block.core.row_off : block.core.row_end, block.core.col_off : block.core.col_end] += 1
        assert block.core.row_off % plan.chunk == 0
        assert block.core.col_off % plan.chunk == 0
        assert block.read.intersect(grid) == block.read
        covered = np.zeros(block.core.shape, bool)
        for tile in plan.tiles_of(block.core):
            assert tile.window.intersect(block.read) == tile.window
            inside = tile.window.intersect(block.core)
            covered[inside.slices_in(block.core)] = True
        assert covered.all()
    assert (seen == 1).all()
    assert plan.block_names() == [b.name for b in plan.blocks()]


@settings(max_examples=40, deadline=None)
@given(plans)
def test_a_tile_is_the_same_whichever_block_asks(plan):
    whole = {(t.row, t.col): t for t in plan.tiles_of(Window(0, 0, plan.height, plan.width))}
    for block in plan.blocks():
        for tile in plan.tiles_of(block.core):
            assert whole[(tile.row, tile.col)] == tile


@pytest.mark.parametrize(
    ("length", "expected"), [(224, [0]), (100, [0]), (225, [0, 1]), (336, [0, 112]), (400, [0, 112, 176])]
)
def test_crop_positions_follow_the_papers_rule(length, expected):
    assert crop_starts(length, 224, 112) == expected


def test_default_geometry_is_the_documented_one():
    geometry = TileGeometry(crop=224, stride=112)
    assert (geometry.tile, geometry.pitch) == (560, 448)
    assert Plan(height=9000, width=9000, geometry=geometry).block_size == 3584


def test_overlapping_tapers_never_vanish_and_blend_a_constant_to_itself():
    geometry = TileGeometry(crop=32, stride=16, crops_per_tile=3)
    plan = Plan(height=150, width=70, geometry=geometry)
    weight = np.zeros((150, 70))
    value = np.zeros((150, 70))
    for tile in plan.tiles_of(Window(0, 0, 150, 70)):
        part = tile.window.slices_in(Window(0, 0, 150, 70))
        weight[part] += taper(tile.window, 16)
        value[part] += 0.25 * taper(tile.window, 16)
    assert weight.min() > 0
    np.testing.assert_allclose(value / weight, 0.25, rtol=1e-6)


def test_windows_refuse_nonsense():
    with pytest.raises(OptionError):
        Window(0, 0, 0, 5)
    with pytest.raises(GridMismatchError):
        Window(0, 0, 5, 5).slices_in(Window(1, 0, 9, 9))
    with pytest.raises(OptionError, match="stride"):
        TileGeometry(crop=16, stride=17)


def test_true_areas_of_degrees_and_web_mercator():
    from affine import Affine
    from pyproj import Geod

    box = GeoBox((10, 10), Affine(0.001, 0, 10, 0, -0.001, 60), "EPSG:4326")
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter([10, 10.001, 10.001, 10], [59.999, 59.999, 60, 60])
    assert row_areas_m2(box, Window(0, 0, 10, 10))[0] == pytest.approx(abs(area), rel=1e-4)
    mercator = GeoBox((10, 10), Affine(100, 0, 1113194, 0, -100, 8399737), "EPSG:3857")  # at 60 degrees north
    ratio = row_areas_m2(mercator, Window(0, 0, *mercator.shape))[0] / 100**2
    assert ratio == pytest.approx(np.cos(np.radians(60)) ** 2, rel=0.01)
    utm = GeoBox((10, 10), Affine(0.5, 0, 500000, 0, -0.5, 5600000), "EPSG:32633")
    assert row_areas_m2(utm, Window(0, 0, 10, 10))[0] == pytest.approx(0.25, rel=2e-3)


def test_regrid_converts_metres_per_axis_in_degrees():
    from affine import Affine

    box = regrid(GeoBox((100, 100), Affine(2.7e-6, 0, -115.2, 0, -2.7e-6, 36.1), "EPSG:4326"), 1.0)
    assert pixel_size_m(box) == pytest.approx((1.0, 1.0), rel=1e-3)


def test_crop_to_bounds_snaps_to_whole_pixels_and_names_the_scene_when_outside():
    from affine import Affine

    box = GeoBox((100, 100), Affine(1, 0, 0, 0, -1, 100), "EPSG:32633")
    part = crop_to_bounds(box, (10.2, 20.7, 30.1, 40.3))
    assert tuple(part.boundingbox) == (10, 20, 31, 41)
    with pytest.raises(OptionError, match="does not touch"):
        crop_to_bounds(box, (200, 200, 300, 300))


@pytest.mark.parametrize("crops_per_tile", [1, 2, 4])
@pytest.mark.parametrize(("crop", "stride"), [(32, 16), (32, 32), (32, 5), (20, 7)])
@pytest.mark.parametrize("length", [7, 32, 33, 100, 257])
def test_tiles_of_a_part_are_those_of_the_whole_that_touch_it(crops_per_tile, crop, stride, length):
    plan = Plan(height=length, width=40, geometry=TileGeometry(crop=crop, stride=stride, crops_per_tile=crops_per_tile))
    rows, cols = plan.tile_shape
    whole = [plan.tile(r, c) for r in range(rows) for c in range(cols)]
    assert [
        w.row_off for t in whole if t.col == 0 for w in t.crops[:: len({c.col_off for c in t.crops})]
    ] == crop_starts(length, crop, stride)
    for begin in range(0, length, 9):
        core = Window(begin, 3, min(11, length - begin), 20)
        assert plan.tiles_of(core) == [t for t in whole if t.window.intersect(core) is not None]


def test_a_block_costs_the_same_wherever_it_lies():
    """A grid of a million by a million pixels: 78,400 blocks, and none of them walks along the sides."""
    plan = Plan(height=1_000_000, width=1_000_000, geometry=TileGeometry(crop=224, stride=112), block_pitches=8)
    started = time.process_time()
    blocks = [plan.block(row, col) for row in range(0, 280, 14) for col in range(0, 280, 14)]
    assert (time.process_time() - started) / len(blocks) < 5e-3
    assert blocks[-1].read.row_end <= 1_000_000
