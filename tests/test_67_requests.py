"""One request is one value: command line, Python, catalog and flow come to equal options."""

import importlib
import os
import pickle

import pytest
import yaml
from typer.testing import CliRunner

from ovrs import options, pipeline
from ovrs.cli.app import app
from ovrs.collection import catalog
from ovrs.collection.ledger import Image
from ovrs.errors import CatalogError, DigestMismatchError, OptionError
from ovrs.methods import preset
from ovrs.options import MapOptions, MethodOptions, ModelOptions, RunOptions, SceneOptions
from ovrs.request import Request
from ovrs.run import begin, job, work

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Prefect and its dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]
REQUESTS = {
    "plain": ({}, {}, {}, "tmpa"),
    "read and told": (
        {"bands": (3, 2, 1), "gsd": 1.0, "stretch": (1.0, 99.0)},
        {"model": "ViT-B-16", "pretrained": "openai", "wide": (2, 3)},
        {"method": "mlmp", "dense": "naclip", "steps": 2, "templates": "weights"},
        "mlmp",
    ),
    "sam3": ({}, {"model": "sam3", "dtype": "bfloat16"}, {}, "coco_sam3"),
    "sam3 by its hub name": ({}, {"model": "facebook/sam3"}, {"threshold": 0.2}, "coco_sam3"),
    "sam3 with a method": ({}, {"model": "sam3-tiny"}, {"method": "segearth_ov3"}, "segearth_ov3"),
    "sam3 with options": ({}, {"model": "sam3-tiny"}, {"sam3": {"synonyms": 1, "prior_space": "none"}}, "coco_sam3"),
}


def _flags(sections):
    """The same as arguments of the command line."""
    found = []
    for section in sections:
        for name, value in section.items():
            if name == "sam3":
                found += [word for k, v in value.items() for word in ("--set", f"sam3.{k}={v}")]
            elif name == "templates":
                found += ["--set", f"{name}={value}"]
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                found += [f"--{name.replace('_', '-')}", text]
    return found


@pytest.fixture
def told(monkeypatch):
    """What `ovrs map` and the flow hand on, instead of a map."""
    seen = []

    def take(*args, **kwargs):
        values = [getattr(value, "options", value) for value in (*args, *kwargs.values())]
        seen.append(next(value for value in values if isinstance(value, MapOptions)))
        return {"classes": [], "holes": [], "digest": {}, "valid_pixels": 0}

    monkeypatch.setattr(pipeline, "map", take)
    monkeypatch.setattr(importlib.import_module("ovrs.flows.imagery"), "map_scene", take)
    monkeypatch.setattr("ovrs.cli.app._print_areas", lambda facts: None)
    return seen


@pytest.mark.parametrize("name", REQUESTS)
def test_one_request_is_one_value(name, told, tmp_path):
    scene, model, method, chosen = REQUESTS[name]
    entry = {"vocabulary": "demo", "read": _plain(scene), "method": method, **({"model": "it"} if model else {})}
    file, image = tmp_path / "c.yaml", tmp_path / "in/a.tif"
    image.parent.mkdir()
    image.write_bytes(b"an image that was there long ago")
    os.utime(image, (1, 1))
    entries = {"scenes": {"one": {"path": "a.tif", **entry}}, "collections": {"all": {"pattern": "in/*.tif", **entry}}}
    file.write_text(yaml.safe_dump({"version": 1, "models": {"it": model} if model else {}, **entries}))
    known = catalog.load(file)

    python = options.build(scene=scene, model=model, method=method)
    assert python.method.method == chosen
    ways = {
        "value": MapOptions(scene=SceneOptions(**scene), model=ModelOptions(**model), method=MethodOptions(**method)),
        "json": MapOptions.model_validate_json(python.model_dump_json()),
        "scene of a catalog": known.requests("one")[0].options,
        "collection": known.requests("all")[0].options,
    }
    command = ["map", "a.tif", "-o", str(tmp_path / "m.zarr"), "--vocabulary", "demo"]
    for words in ([*command, *_flags((scene, model, method))], ["map", "one", "--catalog", str(file)]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.exception or result.output
        ways[" ".join(words[-2:])] = told.pop()
    flow = importlib.import_module("ovrs.flows.imagery")
    flow.map_image.fn(file, "all", Image("a", "a.tif", "1"), RunOptions(), None, False)
    ways["flow"] = told.pop()
    for way, found in ways.items():
        assert found == python, way
        assert found.model_dump_json() == python.model_dump_json(), way


def test_a_collection_asks_for_a_map_of_each_image(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.tif").write_bytes(b"image " + name.encode())
        os.utime(tmp_path / f"{name}.tif", (1, 1))
    file = tmp_path / "c.yaml"
    entry = {"pattern": "*.tif", "vocabulary": "mine"}
    words = {"name": "mine", "classes": [{"name": "water"}, {"name": "grass"}]}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(words))
    file.write_text(yaml.safe_dump({"version": 1, "vocabularies": {"mine": "w.yaml"}, "collections": {"all": entry}}))
    known = catalog.load(file)
    found = known.requests("all")
    assert [r.uri for r in found] == [str(tmp_path / f"{n}.tif") for n in ("a", "b")]
    assert [r.target for r in found] == [known.output(f"all/{n}") for n in ("a", "b")]
    assert {r.words.class_names for r in found} == {("water", "grass")}
    assert known.words_of(known.collection("all")) == str(tmp_path / "w.yaml")
    with pytest.raises(CatalogError, match="no scene 'none'"):
        known.requests("none")


def test_a_request_by_names_wants_classes_once(words):
    by_name = Request.from_names("a.tif", "m.zarr", vocabulary="demo")
    assert by_name == pickle.loads(pickle.dumps(by_name))
    assert by_name == Request(uri="a.tif", target="m.zarr", words=words)
    assert by_name.options == MapOptions()
    listed = [Request.from_names("a", "b", classes=c).words.class_names for c in ("water, grass", ["water", "grass"])]
    assert list(map(list, listed)) == [["water", "grass"]] * 2
    for wrong in ({}, {"classes": "water, grass", "vocabulary": "demo"}):
        with pytest.raises(OptionError, match="either --classes"):
            Request.from_names("a.tif", "m.zarr", **wrong)


@pytest.mark.parametrize(("place", "first"), [("folder", "python"), ("url", "flow")])
def test_a_map_that_is_there_is_not_computed_again_whoever_asks(
    place, first, prefect_server, noise_scene, trivial, tmp_path, monkeypatch
):
    """One request through Python, command line, catalog and flow: the first computes every block, all others none."""
    scene, computed, real = noise_scene(400, 300), [], work._computed
    target = str(tmp_path / "m.zarr") if place == "folder" else f"file://{tmp_path}/there/m.zarr"
    monkeypatch.setenv("OVRS_STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr(work, "_computed", lambda job, name, *more: computed.append(name) or real(job, name, *more))
    file = tmp_path / "c.yaml"
    entry = {"path": str(scene), "vocabulary": "demo", "model": "quick"}
    file.write_text(yaml.safe_dump({"version": 1, "models": {"quick": {"model": "trivial"}}, "scenes": {"one": entry}}))
    flow = importlib.import_module("ovrs.flows.map_scene").map_scene

    def command(*words):
        assert CliRunner().invoke(app, ["map", *words, "--set", "run.block_pitches=1", "-o", target]).exit_code == 0

    ways = {
        "python": lambda: pipeline.map(Request.from_names(scene, target, vocabulary="demo", options=trivial())),
        "command line": lambda: command(str(scene), "--vocabulary", "demo", "--model", "trivial"),
        "catalog": lambda: command("one", "--catalog", str(file)),
        "flow": lambda: flow(str(scene), target, vocabulary_name="demo", options=trivial(), products=False),
    }
    facts = ways[first]()
    assert len(computed) == len(set(computed)) == facts["blocks"] > 1
    for way in (first, *ways):
        computed.clear()
        again = ways[way]()
        assert not computed, way
        assert again is None or again == facts
    assert not list((tmp_path / "staging").glob("*"))
    with pytest.raises(DigestMismatchError):
        flow(str(scene), target, "water, grass", options=trivial(), products=False)


def _plain(section):
    return {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}


def test_the_catalogs_own_sam3_maps_from_python_and_resumes(noise_scene, words, tmp_path):
    """Any value of the options chooses the method of its model's family, and a kept run says which."""
    out = tmp_path / "m.zarr"
    chosen = MapOptions(model={"model": "sam3-tiny"}, method={"sam3": {"prior_space": "none"}})
    begin.prepare(noise_scene(64, 64), words, out, chosen)
    kept = job.RunDir(out).description().options.dump()
    assert kept["method"]["method"] == "coco_sam3"
    assert MapOptions.model_validate(kept) == chosen
    assert begin.resume(out).options == chosen


def test_a_method_that_was_asked_for_is_never_replaced(noise_scene, words, tmp_path):
    asked = MapOptions(model={"model": "sam3-tiny"}, method={"method": "tmpa"})
    assert asked.method.method == "tmpa"
    with pytest.raises(OptionError, match="'tmpa' is for CLIP models"):
        begin.prepare(noise_scene(64, 64), words, tmp_path / "m.zarr", asked)


def test_a_broken_config_of_a_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(OptionError, match=r"config\.json is no JSON[^\n(]*$"):
        options.build(model={"model": str(tmp_path)})


@pytest.mark.parametrize("name", preset.names())
def test_presets_reach_the_options_whole(name, told):
    """From the command line and from Python, with every value of the file."""
    given = preset.method_options(name)
    model = {"model": "sam3-tiny"} if "sam3" in given["method"] or given["method"] == "segearth_ov3" else {}
    command = ["map", "a.tif", "-o", "m.zarr", "--vocabulary", "demo", "--preset", name]
    CliRunner().invoke(app, [*command, *_flags((model,))], catch_exceptions=False)
    found = told.pop()
    assert found == options.build(model=model, method=given)
    for key, value in given.items():
        kept = getattr(found.method, key)
        assert kept == value or all(getattr(kept, k) == v for k, v in value.items())
