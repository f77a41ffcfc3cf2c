"""The catalog: environment variables, references, patterns, its schema, and what the commands show."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ovrs.cli.app import app
from ovrs.collection import catalog
from ovrs.errors import CatalogError

FULL = """version: 1
outputs: {root: "${OUT_ROOT:-maps}"}
models:
  coarse: {model: trivial, crop: 64}
vocabularies: {}
scenes:
  many:
    path: "*.tif"
    vocabulary: demo
    model: coarse
    method: {method: none}
collections:
  drop: {pattern: "incoming/**/*.tif", vocabulary: landcover}
  api:
    vocabulary: landcover
    stac: {url: "https://example.org/stac", collections: [naip], bbox: [6, 50, 7, 51], datetime: "2026-01-01/.."}
datasets:
  mine: {layout: pairs, root: "${DATA_ROOT}", images: "images/*.png", labels: "masks/{stem}.png", vocabulary: demo}
"""


@pytest.fixture
def full(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "/data/mine")
    path = tmp_path / "c.yaml"
    path.write_text(FULL)
    return path


def test_environment_fills_in_and_defaults_hold(full, monkeypatch):
    found = catalog.load(full)
    assert found.resolve(found.dataset("mine").root) == "/data/mine"
    assert found.output("a") == str(full.parent / "maps/a.zarr")
    monkeypatch.setenv("OUT_ROOT", "s3://bucket/maps")
    assert catalog.load(full).output("a") == "s3://bucket/maps/a.zarr"
    monkeypatch.delenv("DATA_ROOT")
    with pytest.raises(CatalogError, match=r"c\.yaml:18: the environment variable DATA_ROOT is not set"):
        catalog.load(full)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("model: coarse\n", "model: corse\n", "c.yaml:10: scene many: no model 'corse'; the catalog has: coarse"),
        ("vocabulary: landcover}", "vocabulary: lndcover}", "c.yaml:13: collection drop: no vocabulary 'lndcover'"),
        ('pattern: "incoming/**/*.tif", ', "", "c.yaml:13: collections.drop: a collection has either"),
        ("collections: [naip]", "collections: []", "c.yaml:16: collections.api.stac.collections"),
        ("method: none", "method: none, stepps: 3", "c.yaml:11: scenes.many.method.stepps"),
    ],
)
def test_each_fault_has_its_line(full, old, new, told):
    full.write_text(FULL.replace(old, new, 1))
    with pytest.raises(CatalogError) as caught:
        catalog.load(full)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "scenes:\n  s: {path: a.tif, vocabulary: demo}\n  s: {path: b.tif, vocabulary: demo}",
            "c.yaml:4: .*a second time",
        ),
        ("scenes:\n  ../up: {path: a.tif, vocabulary: demo}", "c.yaml:3: .*'../up' is no name for a map's file"),
        ("scenes:\n  s: {path: '', vocabulary: demo}", "c.yaml:3: scenes.s.path: it is empty"),
        (
            'scenes:\n  s: {path: "a\\0b", vocabulary: demo}',
            "c.yaml:3: scenes.s.path: character 2 is a control character",
        ),
        ("scenes:\n  s: {path: a.tif, vocabulary: demo, read: {gsd: true}}", "gsd: expected a number, found true"),
        ("scenes:\n  s: {path: a.tif, vocabulary: demo, read: {gsd: .inf}}", "gsd: Input should be a finite number"),
        ("vocabularies: {gone: gone.yaml}", "c.yaml:2: vocabulary gone: no vocabulary"),
        (
            "collections:\n  c: {vocabulary: demo, stac: {url: x, collections: [a], bbox: [6, 60, 7, 50]}}",
            "south < north",
        ),
    ],
)
def test_what_would_go_wrong_later_is_refused_at_once(tmp_path, text, told):
    (tmp_path / "c.yaml").write_text(f"version: 1\n{text}\n")
    with pytest.raises(CatalogError, match=told):
        catalog.load(tmp_path / "c.yaml")


def test_paths_of_the_catalog_are_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "net").mkdir()
    text = "version: 1\nmodels: {n: {model: net}, t: {model: trivial}}\nscenes:\n  s: {path: a.tif, vocabulary: demo, "
    text += "method: {upsampler_weights: w.pt, sam3: {probe: p.json}}, read: {aoi: area.gpkg|layer=x}}\n"
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.chdir("/")
    found = catalog.load(tmp_path / "c.yaml")
    assert found.scene("s").read.aoi == tmp_path / "area.gpkg|layer=x"
    assert found.scene("s").method.upsampler_weights == tmp_path / "w.pt"
    assert found.scene("s").method.probe == tmp_path / "p.json"
    assert found.model("n").model == str(tmp_path / "net")
    assert found.model("t").model == "trivial"


def test_patterns_go_through_links_once_and_refuse_equal_names(tmp_path, noise_scene):
    from ovrs.collection.imagery import images

    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/back").symlink_to(tmp_path / "in")
    (tmp_path / "disk").mkdir()
    (tmp_path / "in/disk").symlink_to(tmp_path / "disk")
    noise_scene(20, 20, name="in/a.tif")
    noise_scene(20, 20, name="disk/b.tif")
    (tmp_path / "in/.c.tif").write_text("a part of an upload")
    (tmp_path / "in/gone.tif").symlink_to("nowhere")
    (tmp_path / "in/folder.tif").mkdir()
    text = "version: 1\nscenes:\n  s: {path: in/**/*.tif, vocabulary: demo}\n"
    (tmp_path / "c.yaml").write_text(text + "collections:\n  k: {pattern: in/**/*.tif, vocabulary: demo}\n")
    found = catalog.load(tmp_path / "c.yaml")
    assert [i.name for i in images(found, "k", settle=-1)] == ["a", "b"]
    (tmp_path / "in/deep/a.tif").write_bytes((tmp_path / "in/a.tif").read_bytes())
    with pytest.raises(CatalogError, match="several files are called a"):
        found.uris("s")


def test_answers_that_are_no_stac_are_told(tmp_path):
    from ovrs.collection.imagery import images

    (tmp_path / "api.json").write_text('{"a": 1}')
    text = (
        f"version: 1\ncollections:\n  k: {{vocabulary: demo, stac: {{url: {tmp_path}/api.json, collections: [a]}}}}\n"
    )
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(CatalogError, match="no STAC API"):
        images(catalog.load(tmp_path / "c.yaml"), "k")


def test_patterns_find_every_file_and_the_map_command_does_them_all(full, noise_scene):
    noise_scene(100, 90, name="b.tif")
    noise_scene(100, 90, name="a.tif")
    found = catalog.load(full)
    assert [name for name, _ in found.uris("many")] == ["many/a", "many/b"]
    run = CliRunner()
    done = run.invoke(app, ["map", "many", "--catalog", str(full)])
    assert done.exit_code == 0, done.output
    assert {p.name for p in (full.parent / "maps/many").glob("*.zarr")} == {"a.zarr", "b.zarr"}
    refused = run.invoke(app, ["map", "many", "--catalog", str(full), "-o", "x.zarr"])
    assert "is 2 files" in str(refused.exception)
    (full.parent / "a.tif").unlink()
    (full.parent / "b.tif").unlink()
    with pytest.raises(CatalogError, match="finds no file"):
        found.uris("many")


def test_commands_list_show_and_give_a_schema(full, tmp_path):
    run = CliRunner()
    assert "1 scenes, 2 collections" in run.invoke(app, ["catalog", "check", str(full)]).output
    listed = run.invoke(app, ["catalog", "list", str(full)]).output
    assert all(word in listed for word in ("many", "drop", "coarse", "mine", "outputs"))
    assert json.loads(run.invoke(app, ["catalog", "list", str(full), "--json"]).output)["version"] == 1
    shown = run.invoke(app, ["catalog", "show", "api", "--catalog", str(full)]).output
    assert json.loads(shown)["collections"]["stac"]["collections"] == ["naip"]
    assert "it has: api" in str(run.invoke(app, ["catalog", "show", "no", "--catalog", str(full)]).exception)
    schema = json.loads(run.invoke(app, ["catalog", "schema"]).output)
    assert {"scenes", "collections", "datasets"} <= set(schema["properties"])
    assert "base" not in schema["properties"]


def test_the_projects_own_catalog_is_in_order(monkeypatch):
    path = Path(__file__).parents[1] / "data_catalog.yaml"
    found = catalog.load(path)
    assert found.scenes
    assert len(found.datasets) >= 25
    assert yaml.safe_load(path.read_text())["version"] == 1
