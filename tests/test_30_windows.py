"""Wider windows beside the ordinary ones: where they lie, what they add, and who chooses them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import smooth
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from typer.testing import CliRunner

from ovrs import options, pipeline
from ovrs.cli.app import app
from ovrs.engine.tiling import Plan, TileGeometry
from ovrs.errors import OptionError
from ovrs.methods.registry import METHOD_NAMES
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.clip.sums import accumulate
from ovrs.model.clip.windows import Views
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window
from ovrs.store.map import open_map
from ovrs.words import vocabulary


def segmenter_of(directory, method="none", model=None, **more):
    given_model = ModelOptions(model=str(directory), **(model or {}))
    return build_clip_segmenter(given_model, MethodOptions(method=method, **more), vocabulary.load("demo"))


def tiles_of(height, width, geometry):
    plan = Plan(height=height, width=width, geometry=geometry)
    return [t for row in range(plan.tile_shape[0]) for t in [plan.tile(row, c) for c in range(plan.tile_shape[1])]]


@settings(deadline=None)  # large scenes have thousands of windows
@given(
    st.integers(20, 700),
    st.integers(20, 700),
    st.sampled_from([(2,), (3,), (4,), (2, 3), (2, 3, 4)]),
    st.sampled_from([32, 20, 27]),
)
def test_wider_windows_cover_every_tile_and_are_unions_of_crops(height, width, wide, stride):
    views = Views(TileGeometry(crop=32, stride=stride), 2.0, wide)
    for tile in tiles_of(height, width, views.geometry):
        crops = tuple(c.relative_to(tile.window) for c in tile.crops)
        found = views.wide_windows(crops)
        assert len(crops) + sum(len(w) for _, w in found) <= views.batch
        if len(crops) == views.geometry.crops_per_tile**2:
            assert len(crops) + sum(len(w) for _, w in found) == views.batch
        for size in wide if len(crops) > 1 else ():
            covered = np.zeros(tile.window.shape, bool)
            for window in (w for k, same in found for w in same if k == size):
                inside = [c for c in crops if window.intersect(c) == c]
                assert len(inside) <= size**2
                box = inside[0]
                for c in inside:
                    box = box.union(c)
                assert box == window
                covered[window.slices_in(Window(0, 0, *tile.window.shape))] = True
            assert covered.all()
        for _, same in found:
            assert len({w.shape for w in same}) == 1
            assert all(round(max(w.shape) * views.wide_zoom(w)) == 64 for w in same)


@pytest.mark.parametrize("count", range(2, 40))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_neighbouring_wider_windows_share_about_half_of_their_crops(count, size):
    """To whole crops: of three they share at least one, of two one, of four two."""
    views = Views(TileGeometry(crop=32, stride=24), 2.0, (size,))
    ((_, found),) = views.wide_windows(tuple(Window(0, 24 * i, 32, 32) for i in range(count)))
    steps = np.diff([w.col_off // 24 for w in found])
    assert (steps >= 1).all()
    assert (steps <= (size + 1) // 2).all()
    assert found[-1].col_end == 24 * (count - 1) + 32


def test_evidence_is_the_mean_of_what_each_size_of_window_says(directory):
    """Against a frozen segmenter whose ordinary windows are the wider ones."""
    both = segmenter_of(directory, model={"crop": 32, "zoom": 2, "stride": 24, "wide": (2,)})
    assert both.geometry.tile == 104
    rgb, valid = smooth(104, 104), np.ones((104, 104), bool)
    crops = tuple(Window(r, c, 32, 32) for r in (0, 24, 48, 72) for c in (0, 24, 48, 72))
    wide = tuple(Window(r, c, 56, 56) for r in (0, 24, 48) for c in (0, 24, 48))
    alone = segmenter_of(directory, model={"crop": 32, "zoom": 2, "stride": 24})
    total, weight = both.evidence(rgb, valid, crops)
    fine, fine_weight = alone.evidence(rgb, valid, crops)
    coarse = replace(alone.encoder, views=Views(TileGeometry(crop=56, stride=24), 64 / 56))
    features = coarse.encode(rgb, valid, wide)
    maps = alone.upsampler(features, alone.text, alone.base_text, alone.settings.cls_weight)
    coarse_sum, coarse_weight = accumulate(features, maps, 28)
    want = (fine / fine_weight + (coarse_sum / coarse_weight).numpy()) / 2
    np.testing.assert_allclose(total / weight, want, atol=1e-5)
    np.testing.assert_array_equal(weight, fine_weight)
    assert np.abs(total / weight - fine / fine_weight).max() > 0.01


@pytest.mark.parametrize("method", [m for m in METHOD_NAMES if m not in ("cass", "tmpa_compat")])
@pytest.mark.parametrize("columns", [1, 4])
def test_every_method_looks_through_them_also_at_the_edge(directory, method, columns):
    segmenter = segmenter_of(directory, method, {"zoom": 2, "stride": 24, "wide": (2, 3)}, steps=None)
    crops = tuple(Window(r, c, 32, 32) for r in (0, 24, 30) for c in (0, 24, 48, 72)[:columns])
    shape = (62, 32 + 24 * (columns - 1))
    valid = np.ones(shape, bool)
    valid[:9] = False
    scores = segmenter.segment(smooth(*shape), valid, crops).scores
    assert scores.shape == (6, *shape)
    assert np.isfinite(scores).all()
    plain = segmenter_of(directory, method, {"zoom": 2, "stride": 24}).segment(smooth(*shape), valid, crops).scores
    assert np.abs(plain - scores).max() > 1e-4


def test_turned_windows_are_seen_turned_and_laid_back(directory):
    """Features lie as the ground does; the network's answers for wider windows are those for flipped pictures."""
    given_model = {"zoom": 2, "stride": 24, "wide": (2, 3)}
    plain, turned = (segmenter_of(directory, model={**given_model, "turned": t}) for t in (False, True))
    shape = (62, 104)  # three crops of unequal steps by four: input pixels of wider windows are padded
    rgb, valid = smooth(*shape), np.ones(shape, bool)
    valid[:20, :50] = False
    crops = tuple(Window(r, c, 32, 32) for r in (0, 24, 30) for c in (0, 24, 48, 72))
    one, other = (s.encode(rgb, valid, crops) for s in (plain, turned))
    torch.testing.assert_close(one.images, other.images)
    assert (one.patch_valid == other.patch_valid).all()
    torch.testing.assert_close(one.patches[: len(crops)], other.patches[: len(crops)])
    flips = {2: (-2, -1), 3: (-1,)}
    for part in other.wide:
        tokens = plain.encoder.tokens(one.images[part.rows].flip(flips[part.size]))
        rows_and_columns = [axis - 1 for axis in flips[part.size]]  # of (windows, rows, columns, values)
        want = tokens.patches.unflatten(1, tokens.grid).flip(rows_and_columns).flatten(1, 2)
        torch.testing.assert_close(other.patches[part.rows], torch.nn.functional.normalize(want, dim=-1))
        assert (other.patches[part.rows] - one.patches[part.rows]).abs().max() > 1e-3


def test_turning_is_recommended_by_a_model_and_wants_wider_windows(directory):
    (directory / "ovrs.json").write_text(json.dumps({"windows": {"zoom": 2, "stride": 24, "turned": True}}))

    def turned(**model):
        return segmenter_of(directory, model=model).describe()["turned"]

    assert turned(wide=(2,))
    assert not turned(wide=(2,), turned=False)
    assert not turned()
    with pytest.raises(OptionError, match=r"model\.wide=2 asks for some"):
        turned(turned=True)
    with pytest.raises(OptionError, match="no wider windows; leave wide out"):
        segmenter_of(directory, "tmpa_compat", {"wide": (2,), "turned": True})


def test_each_crop_of_cass_keeps_its_own_text(directory):
    segmenter = segmenter_of(directory, model={"zoom": 2, "stride": 24, "wide": (2,)})
    crops = tuple(Window(0, c, 32, 32) for c in (0, 24, 48))
    features = segmenter.encode(smooth(32, 80), np.ones((32, 80), bool), crops)
    assert [(size, len(part.patches), part.crops[0].shape) for size, _, part in features.parts()] == [
        (1, 3, (32, 32)),
        (2, 2, (32, 56)),
    ]
    same = segmenter.text.expand(5, -1, -1)
    one = segmenter.sum_crops(features, segmenter.text, segmenter.base_text)[0]
    torch.testing.assert_close(segmenter.sum_crops(features, same, segmenter.base_text)[0], one)
    other = same.clone()
    other[3:] = other[3:].flip(1)  # the wider windows' alone
    assert (segmenter.sum_crops(features, other, segmenter.base_text)[0] - one).abs().max() > 1e-3


def test_windows_follow_from_the_size_of_pixels(directory):
    own = {"windows": {"zoom": 2, "stride": 24, "pixel_sizes": [0.1, 0.18, 0.25]}}
    (directory / "ovrs.json").write_text(json.dumps(own))

    def chosen(**model):
        segmenter = segmenter_of(directory, model=model)
        facts = segmenter.describe()
        return segmenter.geometry.crop, segmenter.geometry.stride, facts["zoom"], facts["wide"]

    assert chosen() == (32, 24, 2, [])  # unknown
    assert chosen(pixel_size=1.0) == (32, 24, 2, [])  # coarser than wanted: enlarged as far as the model likes
    assert chosen(pixel_size=0.2) == (32, 24, 2, [2, 3])  # 0.1 m; over 56 px 0.175, over 80 px 0.25
    assert chosen(pixel_size=0.3) == (32, 24, 2, [2])  # 0.15 m, and 0.26
    assert chosen(pixel_size=0.1) == (64, 48, 1, [2, 3])
    assert chosen(pixel_size=0.01)[2] == 0.5
    assert chosen(pixel_size=0.2, wide=()) == (32, 24, 2, [])
    assert chosen(pixel_size=0.2, zoom=2) == (32, 16, 2, [])
    assert chosen(wide=(3, 2, 2)) == (32, 24, 2, [2, 3])


def test_some_wider_windows_are_there_for_any_imagery(directory):
    own = {"windows": {"zoom": 2, "stride": 24, "pixel_sizes": [0.1, 0.25], "wide": [2], "turned": True}}
    (directory / "ovrs.json").write_text(json.dumps(own))

    def wide(**model):
        return segmenter_of(directory, model=model).describe()["wide"]

    assert wide() == wide(pixel_size=1.0) == [2]
    assert wide(pixel_size=0.2) == [2, 3]
    assert wide(zoom=2) == wide(wide=()) == []
    assert segmenter_of(directory, "tmpa_compat").describe()["wide"] == []


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [({"wide": (5,)}, "none", "4 windows a side, got 5"), ({"wide": (2,)}, "tmpa_compat", "no wider windows")],
)
def test_wider_windows_that_make_no_sense_are_refused(directory, model, method, message):
    with pytest.raises(OptionError, match=message):
        segmenter_of(directory, method, model)


def test_the_released_tmpa_is_not_given_recommended_ones(directory):
    (directory / "ovrs.json").write_text(json.dumps({"windows": {"zoom": 2, "pixel_sizes": [0.1, 0.18]}}))
    assert segmenter_of(directory, "tmpa_compat", {"pixel_size": 0.2}).describe()["wide"] == []


def test_one_crop_is_no_wider_window():
    with pytest.raises(OptionError, match="at least 2 x 2"):
        options.build(model={"wide": (1, 2)})


@pytest.mark.parametrize("method", ["none", "tmpa"])
def test_a_map_is_the_same_however_it_is_cut_and_tells_its_windows(directory, noise_scene, tmp_path, method):
    """A scene of 0.2 m: the model's windows follow from its georeference."""
    own = {"windows": {"zoom": 2, "stride": 24, "pixel_sizes": [0.1, 0.18, 0.25], "turned": True}}
    (directory / "ovrs.json").write_text(json.dumps(own))
    scene = noise_scene(230, 310, transform=from_origin(500000, 5600000, 0.2, 0.2))
    labels, words = [], vocabulary.load("demo")
    for block in (1, 4):
        given_options = options.build(
            model={"model": str(directory)}, method={"method": method}, run={"block_pitches": block}
        )
        out = tmp_path / f"{block}.zarr"
        facts = pipeline.map_scene(scene, words, out, given_options)
        assert (facts["model"]["zoom"], facts["model"]["wide"], facts["model"]["turned"]) == (2, [2, 3], True)
        labels.append(open_map(out).label[:])
    np.testing.assert_array_equal(*labels)


def test_the_command_line_tells_and_overrides_them(directory, noise_scene, tmp_path):
    own = {"windows": {"zoom": 2, "stride": 24, "pixel_sizes": [0.1, 0.18]}}
    (directory / "ovrs.json").write_text(json.dumps(own))
    scene = noise_scene(90, 120)  # half a metre

    def chosen(*arguments):
        out = tmp_path / f"{len(arguments)}.zarr"
        common = ["--vocabulary", "demo", "--model", str(directory), "--method", "none", "-o", str(out)]
        result = CliRunner().invoke(app, ["map", str(scene), *common, *arguments])
        assert result.exit_code == 0, result.output
        facts = open_map(out).record.model.dump()
        return facts["zoom"], facts["wide"]

    assert chosen() == (2, [])
    assert chosen("--wide", "2,3") == (2, [2, 3])
    assert chosen("--wide", "none", "--pixel-size", "0.2") == (2, [])
    assert chosen("--wide", "2", "--pixel-size", "0.1", "--overwrite") == (1, [2])
    result = CliRunner().invoke(
        app, ["map", str(scene), "--classes", "a,b", "--wide", "two", "-o", str(tmp_path / "o.zarr")]
    )
    assert result.exit_code != 0
    assert "model.wide takes numbers" in str(result.exception) + result.output


def test_pixels_of_unknown_size_are_not_guessed(directory, noise_scene, tmp_path):
    own = {"windows": {"zoom": 2, "stride": 24, "pixel_sizes": [4.0, 8.0]}}
    (directory / "ovrs.json").write_text(json.dumps(own))
    scene = noise_scene(90, 120, crs=None)
    given_options = options.build(
        model={"model": str(directory)}, method={"method": "none"}, scene={"allow_ungeoreferenced": True}
    )
    facts = pipeline.map_scene(scene, vocabulary.load("demo"), tmp_path / "out.zarr", given_options)
    assert (facts["model"]["zoom"], facts["model"]["wide"]) == (2, [])
