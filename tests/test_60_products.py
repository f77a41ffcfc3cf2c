"""What people open: COG, style, picture, catalog, command line."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import zarr
from conftest import environment, smooth
from PIL import Image
from rio_cogeo.cogeo import cog_validate
from typer.testing import CliRunner

from ovrs import pipeline
from ovrs.cli.app import app
from ovrs.collection import catalog
from ovrs.errors import CatalogError, OvrsError, StoreError
from ovrs.export.cog import write_cog
from ovrs.export.qml import write_qml
from ovrs.export.quicklook import write_quicklook
from ovrs.store.map import open_map
from ovrs.words import vocabulary


@pytest.fixture
def finished(noise_scene, words, trivial, tmp_path):
    out = tmp_path / "map.zarr"
    pipeline.map_scene(noise_scene(1300, 1100), words, out, trivial(block_pitches=2))
    return out


def test_cog_is_valid_placed_coloured_and_named(finished, words, tmp_path):
    cog = write_cog(open_map(finished), tmp_path / "map.tif").path
    valid, errors, warnings = cog_validate(cog)
    assert valid, errors
    assert warnings == []
    with rasterio.open(cog) as source, rasterio.open(tmp_path / "scene.tif") as scene:
        assert source.bounds == scene.bounds
        assert source.crs == scene.crs
        assert source.nodata == 255
        assert source.overviews(1)
        np.testing.assert_array_equal(source.read(1), zarr.open_group(finished)["label"][:])
        colours = source.colormap(1)
        assert [colours[i][:3] for i in range(6)] == list(words.colours)
        assert source.tags(1)["CLASS_5"] == "bare soil"
    side = ElementTree.parse(tmp_path / "map.tif.aux.xml")
    assert [c.text for c in side.iter("Category")] == list(words.class_names)
    rows = [[f.text for f in row] for row in side.iter("Row")]
    assert rows[3][:2] == ["3", "tree"]
    assert sum(int(r[-1]) for r in rows) == 1300 * 1100
    assert sorted(p.name for p in tmp_path.glob(".map*")) == []


def test_qml_lists_only_real_classes(finished, words, tmp_path):
    style = ElementTree.parse(write_qml(open_map(finished), tmp_path / "map.tif"))
    entries = list(style.iter("paletteEntry"))
    assert [e.get("label") for e in entries] == list(words.class_names)
    assert entries[2].get("color") == words.classes[2].colour


def test_picture_shows_scene_map_and_legend(finished, words, tmp_path):
    picture = np.asarray(
        Image.open(write_quicklook(open_map(finished), tmp_path / "map.png", side=400).path).convert("RGB")
    )
    for colour in words.colours:
        present = (picture == np.array(colour)).all(axis=-1).sum()
        assert present >= 200  # its legend box at least
    scene = picture[36:300, 16:200].reshape(-1, 3)
    assert len(np.unique(scene, axis=0)) > 100


def test_picture_without_the_scene_shows_the_map_alone(finished, tmp_path, caplog):
    (tmp_path / "scene.tif").unlink()
    write_quicklook(open_map(finished), tmp_path / "map.png")
    assert "the map alone" in caplog.text


def test_exports_refuse_unfinished_stores(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        write_cog(open_map(tmp_path / "no.zarr"), tmp_path / "a.tif")


CATALOG = """version: 1
outputs: {root: maps}
scenes:
  one:
    path: scene.tif
    vocabulary: demo
    read: {gsd: 1.0}
"""


def test_catalog_resolves_names(tmp_path):
    (tmp_path / "c.yaml").write_text(CATALOG)
    found = catalog.load(tmp_path / "c.yaml")
    assert found.uris("one") == [("one", str(tmp_path / "scene.tif"))]
    assert found.output("one") == str(tmp_path / "maps/one.zarr")
    assert found.vocabulary("demo") == vocabulary.load("demo")
    with pytest.raises(CatalogError, match="it has: one"):
        found.scene("two")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path: scene.tif", "pth: scene.tif", r"c\.yaml:5: scenes\.one\.pth"),
        ("gsd: 1.0", "gsd: -1", r"c\.yaml:7: scenes\.one\.read\.gsd.*greater than 0"),
        ("vocabulary: demo", "vocabulary: dmo", r"c\.yaml:6: scene one: no vocabulary 'dmo'"),
        ("version: 1", "version: 2", r"c\.yaml:1: version"),
        ("scenes:", "scenes: [", "no valid YAML"),
    ],
)
def test_catalog_faults_are_named_with_their_line(tmp_path, old, new, message):
    (tmp_path / "c.yaml").write_text(CATALOG.replace(old, new))
    with pytest.raises(CatalogError, match=message):
        catalog.load(tmp_path / "c.yaml")


def ovrs(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_command_line_maps_reports_and_exports(noise_scene, tmp_path):
    scene, out = noise_scene(400, 300), tmp_path / "m.zarr"
    done = ovrs(
        "map", scene, "--classes", "building, road, sausage stand", "--model", "trivial", "-o", out, "--gsd", "1.0"
    )
    assert done.exit_code == 0, done.output
    assert "no library knows sausage stand; asked for by name alone" in done.output
    assert "hectares" in done.output
    assert "200x150" not in done.output
    info = json.loads(ovrs("info", out, "--json").output)
    assert info["composed_prompts"] == []
    assert info["asked_by_name"] == ["sausage stand"]
    assert info["grid"]["shape"] == [200, 150]
    assert ovrs("status", out).exit_code == 0
    assert "match" in ovrs("verify", out).output
    assert "tile" in ovrs("info", out).output
    assert ovrs("resume", out).exit_code == 0
    assert ovrs("export", out, "--cog", tmp_path / "m.tif", "--png", tmp_path / "m.png").exit_code == 0
    assert (tmp_path / "m.qml").exists()


def test_command_line_uses_the_catalog(noise_scene, tmp_path):
    noise_scene(400, 300)
    (tmp_path / "c.yaml").write_text(CATALOG)
    done = ovrs("map", "one", "--catalog", tmp_path / "c.yaml", "--model", "trivial")
    assert done.exit_code == 0, done.output
    info = json.loads(ovrs("info", tmp_path / "maps/one.zarr", "--json").output)
    assert info["grid"]["shape"] == [200, 150]
    assert ovrs("catalog", "check", tmp_path / "c.yaml").exit_code == 0
    assert "one" in ovrs("catalog", "list", tmp_path / "c.yaml").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("map", "s.tif"), "-o NAME.zarr"),
        (("map", "s.tif", "-o", "a.zarr"), "--classes"),
        (("map", "s.tif", "-o", "a.zarr", "--classes", "a", "--vocabulary", "demo"), "either"),
        (("map", "s.tif", "-o", "a.zarr", "--vocabulary", "demo", "--bbox", "1,2"), "--bbox takes 4 numbers"),
        (("map", "s.tif", "-o", "a.zarr", "--vocabulary", "demo", "--bands", "r"), "--bands takes numbers"),
        (("map", "s.tif", "-o", "a.zarr", "--vocabulary", "demo", "--model", "ViT-B-16"), "s.tif"),
        (("export", "a.zarr"), "nothing to export"),
    ],
)
def test_usage_errors_say_what_to_do(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ovrs(*arguments)
    assert isinstance(done.exception, OvrsError)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("model", "message"), [("ViT-B-16", "needs --pretrained TAG, one of"), ("NoSuchNet", "neither 'bundled'")]
)
def test_model_errors_name_the_ways_to_get_one(noise_scene, tmp_path, model, message):
    done = ovrs("map", noise_scene(64, 64), "-o", tmp_path / "a.zarr", "--vocabulary", "demo", "--model", model)
    assert message in str(done.exception)


def test_a_directory_without_weights_is_named(noise_scene, tmp_path):
    (tmp_path / "net").mkdir()
    done = ovrs(
        "map", noise_scene(64, 64), "-o", tmp_path / "a.zarr", "--vocabulary", "demo", "--model", tmp_path / "net"
    )
    assert "open_clip_config.json is missing" in str(done.exception)


def test_exit_codes_and_messages_without_traceback(tmp_path, write_raster):
    env = environment(tmp_path)
    missing = subprocess.run(
        [sys.executable, "-m", "ovrs", "info", str(tmp_path / "no.zarr")],
        check=False,
        env=env,
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 3
    assert missing.stderr.strip() == f"error: no store at {tmp_path / 'no.zarr'}"
    usage = subprocess.run(
        [sys.executable, "-m", "ovrs", "map", str(write_raster(smooth(9, 9)))],
        check=False,
        env=env,
        capture_output=True,
        text=True,
    )
    assert usage.returncode == 2
    assert "Traceback" not in usage.stderr


def test_vocabulary_commands():
    assert "openearthmap" in ovrs("vocabulary", "list").output
    assert "sausage" not in ovrs("vocabulary", "show", "demo").output
    assert "river" in ovrs("vocabulary", "show", "demo").output


def test_progress_shows_on_a_terminal_and_is_quiet_elsewhere(noise_scene, tmp_path):
    import os
    import pty

    command = [
        sys.executable,
        "-m",
        "ovrs",
        "map",
        str(noise_scene(900, 900)),
        "--vocabulary",
        "demo",
        "--model",
        "trivial",
        "--set",
        "run.block_pitches=1",
        "--overwrite",
        "-o",
        str(tmp_path / "m.zarr"),
    ]
    quiet = subprocess.run(command, check=True, env=environment(tmp_path), capture_output=True, text=True)
    assert quiet.stderr == ""
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        command,
        env={**environment(tmp_path), "TERM": "xterm", "COLUMNS": "120"},
        stderr=inner,
        stdout=subprocess.DEVNULL,
    )
    os.close(inner)
    shown = b""
    try:
        while part := os.read(outer, 4096):
            shown += part
    except OSError:  # Linux says so when the other end has closed
        pass
    os.close(outer)
    assert process.wait() == 0
    assert b"Mpx/s" in shown
    assert b"9/9" in shown
