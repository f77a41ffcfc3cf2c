"""A preview shows pixels of the whole map, of windows that are spread over the scene, and keeps nothing but the picture."""

import numpy as np
import pytest
import zarr
from conftest import smooth
from PIL import Image
from typer.testing import CliRunner

from ovrs import pipeline
from ovrs.cli.app import app
from ovrs.errors import OptionError
from ovrs.preview import picture
from ovrs.preview import windows as choosing
from ovrs.preview.sketch import preview
from ovrs.request import Request
from ovrs.run import begin


@pytest.fixture
def request_of(write_raster, tmp_path, words, trivial):
    rgb = smooth(900, 1100)
    rgb[:, :, 700:] = rgb[:, :, 700:] // 4  # two kinds of ground
    return Request(uri=write_raster(rgb), words=words, options=trivial(), target=tmp_path / "out.zarr")


def test_windows_hold_the_pixels_of_the_whole_map(request_of, tmp_path):
    found = preview({"a": request_of, "b": request_of}, parts=4)
    assert not (tmp_path / "out.run").exists()
    facts = pipeline.map(request_of)
    stored = zarr.open_group(request_of.target, mode="r")
    assert len(found.windows) == 4
    for sketch in found.sketches:
        for window, made in zip(found.windows, sketch.maps, strict=True):
            rows, cols = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
            np.testing.assert_array_equal(made.label, stored["label"][rows, cols])
            np.testing.assert_array_equal(made.confidence, stored["confidence"][rows, cols])
        assert [made.tiles for made in sketch.maps].count(1) >= 3
        assert sum(sketch.shares) == pytest.approx(1)
        assert sketch.mean_confidence == pytest.approx(facts["mean_confidence"], abs=0.1)
        assert sketch.estimate.memory > 1 << 20


def test_windows_are_seeded_and_spread_over_colours(request_of, tmp_path):
    job, _ = begin.build_job(request_of.uri, request_of.words, tmp_path / "x.zarr", request_of.options)
    first = choosing.spread(job.scene, job.plan, 3, 0)
    assert first == choosing.spread(job.scene, job.plan, 3, 0)
    sides = {w.col_off >= 560 for w in first}
    assert sides == {True, False}
    assert len(choosing.spread(job.scene, job.plan, 99, 0)) == job.plan.tile_shape[0] * job.plan.tile_shape[1]


def test_a_point_or_box_names_one_window(request_of):
    here = preview({"a": request_of}, at=(500100, 5599900))
    assert [w.row_off < 200 < w.row_end and w.col_off < 200 < w.col_end for w in here.windows] == [True]
    box = preview({"a": request_of}, bbox=(500010, 5599900, 500060, 5599980)).windows[0]
    assert (box.row_off, box.col_off, box.height, box.width) == (40, 20, 160, 100)
    for place in ({"at": (0, 0)}, {"bbox": (0, 0, 1, 1)}, {"at": (500100, 5599900), "bbox": (1, 2, 3, 4)}):
        with pytest.raises(OptionError):
            preview({"a": request_of}, **place)


def test_the_command_draws_settings_side_by_side(request_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["preview", str(request_of.uri), "--model", "trivial", "--compare-words", "demo,loveda", "--parts", "2"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.count("the whole: about") == 2
    with Image.open("preview.png") as image:
        assert image.width == 12 + 3 * (picture.PANEL + 12)
        assert len(image.getcolors(1 << 20)) > 10
    assert not list(tmp_path.glob("*.run"))
    again = CliRunner().invoke(app, [*command, "-o", str(request_of.uri)])
    assert isinstance(again.exception, OptionError)
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert isinstance(CliRunner().invoke(app, [*command, "-o", "mine.png"]).exception, OptionError)


def test_a_preview_says_when_it_adapts_from_fewer_tiles(request_of, capsys):
    from ovrs.cli import preview as command

    found = preview({"a": request_of, "b": request_of}, parts=1)
    tiles = found.sketches[0].tiles
    assert tiles > command.LEARNING_TILES
    command._tell(found, {"a": 32})
    told = capsys.readouterr().out.splitlines()
    most = min(32, tiles)
    expected = f"adapted to the scene by 8 tiles, the whole map by {most}: classes may differ a little"
    assert [expected in line and f"scene_tiles={most}" in line for line in told if "adapted" in line] == [True]
    _, wanted = command._requests([str(request_of.uri)], {"": request_of.words}, {}, [], "tmpa,none,tmpa+scene_tiles=9")
    assert wanted == {"tmpa": 32}


@pytest.mark.parametrize(
    ("line", "expected", "not_expected"),
    [
        ("ovrs map s.tif --vocabulary l", {"landcover", "loveda"}, "potsdam"),
        ("ovrs map s.tif --method tm", {"tmpa"}, "none"),
        ("ovrs map s.tif --preset segearth/l", {"segearth/loveda"}, "segearth/potsdam"),
        ("ovrs map s.tif --model bun", {"bundled"}, "sam3"),
        ("ovrs map s.tif --set scene.g", {"scene.gsd="}, "scene.bbox="),
        ("ovrs preview s.tif --compare none,tm", {"none,tmpa"}, "tmpa"),
    ],
)
def test_the_shell_is_offered_values(line, expected, not_expected):
    variables = {"_OVRS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = CliRunner().invoke(app, [], env=variables, prog_name="ovrs")
    offered = done.output.split()
    assert expected <= set(offered)
    assert not_expected not in offered
