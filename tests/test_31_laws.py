"""Laws over all methods: an option is one field in one file, a method is two files, and every way shows what a field says."""

import dataclasses
import json
import shlex
import textwrap
from pathlib import Path

import pytest
import typer
from conftest import smooth, write_clip_directory
from prefect.utilities.callables import parameter_schema
from pydantic import Field
from typer.testing import CliRunner

import ovrs
from flows.map_scene import map_scene
from ovrs import options
from ovrs.cli.app import app
from ovrs.errors import DigestMismatchError, OptionError
from ovrs.methods import clip, recommended, registry
from ovrs.methods.base import Only
from ovrs.methods.registry import METHODS
from ovrs.options import MapOptions
from ovrs.run import begin
from ovrs.run.rundir import RunDir
from ovrs.store.map import open_map
from ovrs.words import vocabulary


class Shaded(clip.FrozenClip):
    """Frozen dense CLIP with one option more."""

    shade: float = Field(default=0.5, ge=0, le=1)
    """How dark it is made."""


@pytest.fixture
def shaded(monkeypatch):
    """The method `none` with the option `shade`."""
    monkeypatch.setitem(METHODS, "none", dataclasses.replace(clip.FROZEN, settings=Shaded))


@pytest.fixture
def network(tiny_clip, tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    write_clip_directory(tiny_clip, folder)
    return str(folder)


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.exception} {result.output}"
    return result.output


def test_a_new_option_is_one_field(shaded, network, write_raster, tmp_path):
    """Written once, it stands in list, schema, form, digest and record, and its limits hold."""
    listed = run("options", "none")
    assert "method.shade=0.5\n    How dark it is made." in listed
    assert "shade" not in run("options", "tmpa")
    schema = next(s for s in _method_schema(MapOptions.model_json_schema())["anyOf"] if s["title"] == "none")
    assert schema["properties"]["shade"]["description"] == "How dark it is made."
    form = json.dumps(parameter_schema(map_scene.fn).model_dump())
    assert "How dark it is made." in form
    scene, out = write_raster(smooth(64, 64)), tmp_path / "m.zarr"
    command = ["map", scene, "--vocabulary", "demo", "--model", network, "--method", "none"]
    run(*command, "--set", "shade=0.7", "-o", out)
    record = open_map(out).record.dump()
    assert record["options"]["method"] == {"method": "none", "shade": 0.7}
    assert record["model"]["shade"] == 0.7
    told = {"model": {"model": network}, "method": {"method": "none"}}
    with pytest.raises(DigestMismatchError, match="another model"):
        begin.prepare(scene, vocabulary.load("demo"), out, options.build(**told))
    for wrong, why in (({"shade": 2}, "less than or equal to 1"), ({"method": "tmpa"}, "shade belongs to none")):
        with pytest.raises(OptionError, match=why):
            options.build(method={"method": "none", "shade": 0.7, **wrong})


SETTINGS_FILE = '''
    from typing import Literal

    from pydantic import Field

    from ovrs.methods.base import Method
    from ovrs.methods.clip import Clip


    class Dim(Clip):
        """A method for this test."""

        method: Literal["dim"] = "dim"
        """Frozen dense CLIP with a softer softmax."""
        factor: float = Field(default=0.5, gt=0)
        """The scale is multiplied by it."""


    DIM = Method(what="softer", source="-", proof="own", settings=Dim, build="dim_segmenter:segmenter")
'''
SEGMENTER_FILE = """
    def segmenter(parts):
        found = parts.frozen(parts.bank())
        softer = parts.settings.logit_scale * parts.settings.factor
        found.settings = parts.settings.model_copy(update={"logit_scale": softer})
        return found
"""


def test_a_new_method_is_two_files(network, write_raster, tmp_path, monkeypatch):
    """One with its settings, one with its segmenter; one entry in the registry makes it known everywhere."""
    for name, text in (("dim_settings", SETTINGS_FILE), ("dim_segmenter", SEGMENTER_FILE)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    from dim_settings import DIM

    monkeypatch.setitem(METHODS, DIM.name, DIM)
    assert "softer  [-; own]" in run("methods")
    scene, out = write_raster(smooth(64, 64)), tmp_path / "m.zarr"
    command = ["map", scene, "--vocabulary", "demo", "--model", network, "-o", out]
    run(*command, "--method", "dim", "--set", "method.factor=0.25")
    record = open_map(out).record.dump()
    assert (record["model"]["method"], record["model"]["factor"]) == ("dim", 0.25)
    other = tmp_path / "none.zarr"
    run(*command[:-1], other, "--method", "none")
    assert open_map(other).record.mean_confidence > open_map(out).record.mean_confidence
    with pytest.raises(OptionError, match="factor belongs to dim"):
        options.build(method={"method": "none", "factor": 0.25})


def _method_schema(schema):
    return schema["$defs"].get("MethodOptions") or schema["properties"]["method"]


def _properties(schema, place=""):
    for name, field in schema.get("properties", {}).items():
        yield f"{place}.{name}", field
    for key in ("$defs", "anyOf"):
        children = schema.get(key, {})
        for child in children.values() if isinstance(children, dict) else children:
            yield from _properties(child, f"{place}.{child.get('title', key)}")


def test_every_field_has_a_description():
    fields = dict(_properties(MapOptions.model_json_schema()))
    assert len(fields) > 200
    assert not [
        name for name, field in fields.items() if not field.get("description", "").strip() and "$ref" not in field
    ]
    assert not [key for key, option in options.listing().items() if not option.help]


@pytest.mark.parametrize("name", METHODS)
def test_what_is_resolved_is_complete_and_stays_as_it_is(name):
    """Resolving a resolved value changes nothing, whatever a model recommends."""
    found = METHODS[name]
    needed = {need.field: need.values[-1] for need in found.needs}
    once = registry.resolve(name, needed, recommended=recommended.of_model("bundled").of(name))
    told = {k: v for k, v in once.model_dump().items() if k != "method"}
    read = {k: v for k, v in told.items() if not _unread(once, k) and k not in found.fixed}
    swayed = {k: v for k, v in {"lr": 0.5, "bare": True, "logit_scale": 7}.items() if k in found.fields}
    assert registry.resolve(name, read, recommended=swayed).model_dump(include=set(read)) == {
        k: v for k, v in told.items() if k in read
    }
    assert found.build.count(":") == 1
    assert once.method == name == found.name


def _unread(settings, name):
    return any(
        getattr(settings, only.field, only.values[0]) not in only.values
        for only in type(settings).model_fields[name].metadata
        if isinstance(only, Only)
    )


def test_later_layers_win_and_null_asks_for_the_default():
    own = {"logit_scale": 7, "dense": "vanilla"}
    preset, catalog, typed = {"logit_scale": 40, "dense": "naclip"}, {"logit_scale": 30}, {"dense": None}
    assert registry.resolve("none").logit_scale == 50
    assert registry.resolve("none", recommended=own).logit_scale == 7
    found = registry.resolve("none", preset, catalog, typed, recommended=own)
    assert (found.logit_scale, found.dense) == (30, "vanilla")


def test_a_key_means_the_same_with_and_without_its_section():
    pairs = ["lr=0.1", "sam3.synonyms=1", "model.wide=2,3", "scene.bands=1", "run.block_pitches=2", "model.turned=true"]
    found = options.parse(pairs, {"scene.gsd": "0.5"})
    assert found["method"] == {"lr": 0.1, "synonyms": 1} == options.parse(["method.lr=0.1", "synonyms=1"])["method"]
    built = options.build(**{k: found[k] for k in ("scene", "model", "run")})
    assert (built.model.wide, built.model.turned, built.scene.bands, built.scene.gsd) == ((2, 3), True, (1,), 0.5)
    assert options.parse(["model.wide=none"])["model"] == {"wide": ()}
    for pairs, why in (
        (["scene.colour=1"], "no such option; choose one of scene.bands"),
        (["lr=1", "method.lr=2"], "given twice"),
        (["model.crop=1", "model.crop=2"], "given twice"),
        (["scene.bbox=1,2"], "takes 4 numbers"),
        (["run.workers="], "has no value"),
    ):
        with pytest.raises(OptionError, match=why):
            options.parse(pairs)
    with pytest.raises(OptionError, match=r"scene\.gsd is given twice"):
        options.parse(["scene.gsd=1"], {"scene.gsd": "2"})


def test_flags_of_several_commands_are_declared_once():
    commands = typer.main.get_command(app).commands
    own, other = ({p.name: p for p in commands[name].params} for name in ("map", "preview"))
    shared = own.keys() & other.keys() - {"bbox", "out", "overwrite", "help"}
    assert len(shared) >= 11
    for name in shared:
        assert (own[name].help, own[name].opts) == (other[name].help, other[name].opts), name
    for file in (Path(ovrs.__file__).parent / "cli").glob("*.py"):
        for key in ("scene.bands", "scene.gsd", "model.model", "model.device", "method.method", "method.examples"):
            assert file.name == "shared.py" or f'flag("{key}"' not in file.read_text(), (file, key)


@pytest.mark.parametrize(
    "command",
    ["map", "preview", "teach", "export", "stats", "report", "view", "publish", "sample", "assess", "diff", "models"],
)
def test_help_ends_with_two_examples_that_parse(command):
    shown = run(command, "--help")
    examples = shown.partition("Examples:\n")[2].splitlines()
    assert len(examples) >= 2
    parser = typer.main.get_command(app).commands[command]
    for line in examples:
        program, name, *arguments = shlex.split(line)
        assert (program, name) == ("ovrs", command)
        with parser.make_context(command, arguments, resilient_parsing=False):
            pass


def test_help_tells_defaults():
    shown = " ".join(run("map", "--help").split())
    assert "[default: bundled]" in shown
    assert "[default: auto]" in shown


def test_flags_are_fields_and_few():
    command = typer.main.get_command(app).commands["map"]
    flags = {
        p.opts[-1].removeprefix("--").replace("-", "_"): p for p in command.params if p.param_type_name == "option"
    }
    own = {"classes", "vocabulary", "preset", "set", "out", "catalog", "overwrite", "staging", "progress"}
    known = {key.partition(".")[2] for key in options.listing()}
    assert own < set(flags)
    assert set(flags) - own <= known
    assert len(flags) <= 21
    shown = run("map", "--help")
    assert [shown.index(f"\n{title}:") for title in ("Scene", "Words", "Model", "Run")] == sorted(
        shown.index(f"\n{title}:") for title in ("Scene", "Words", "Model", "Run")
    )


def test_a_flag_that_has_gone_is_answered_with_its_spelling(write_raster, tmp_path):
    scene, out = write_raster(smooth(64, 64)), tmp_path / "m.zarr"
    told = ["--block", "1", "--scores", "--stretch=2,98", "--not-turned", "--zarr-format", "2", "--crop", "32"]
    said = run("map", scene, "--classes", "a, b", "--model", "trivial", "-o", out, *told)
    for spelled in ("run.block_pitches=1", "run.store_scores=true", "scene.stretch=2,98", "model.turned=false"):
        assert f"--set {spelled}\n" in said
    kept = open_map(out).record.dump()["options"]
    assert (kept["run"]["block_pitches"], kept["run"]["zarr_format"], kept["run"]["store_scores"]) == (1, 2, True)
    assert (kept["scene"]["stretch"], kept["model"]["crop"]) == ([2, 98], 32)
    for words, why in ((["--crop"], "--set model.crop=VALUE"), (["--magic", "1"], "--magic")):
        result = CliRunner().invoke(app, ["map", str(scene), "--classes", "a,b", "-o", str(out), *words])
        assert result.exit_code == 2
        assert why in result.output


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -9999.0, None])
def test_a_record_keeps_every_value_of_no_data(value):
    chosen = options.build(scene={"nodata": value})
    kept = json.loads(json.dumps(chosen.model_dump(mode="json"), allow_nan=False))
    assert repr(MapOptions.model_validate(kept).scene.nodata) == repr(value)


def test_a_run_recorded_in_the_earlier_form_is_refused_by_name(write_raster, trivial, words, tmp_path):
    scene, out = write_raster(smooth(64, 64)), tmp_path / "m.zarr"
    begin.prepare(scene, words, out, trivial())
    content = RunDir(out).description().dump()
    content["options"]["method"] |= {"scene_tiles": 32, "layers": None, "sam3": {"synonyms": 3}}
    RunDir(out).write("run.json", content)
    for go_on in (lambda: begin.resume(out), lambda: begin.prepare(scene, words, out, trivial())):
        with pytest.raises(DigestMismatchError, match="earlier version of ovrs"):
            go_on()


def test_a_model_speaks_of_each_method(network):
    from pathlib import Path

    own = {"text": {"bare": True}, "head": {"logit_scale": 20}, "methods": {"tent": {"lr": 0.5}, "tmpa": {"steps": 1}}}
    (Path(network) / "ovrs.json").write_text(json.dumps(own))
    found = recommended.of_model(network)
    assert found.of("tent") == {"bare": True, "logit_scale": 20, "lr": 0.5}
    assert "lr" not in found.of("mlmp")
    words, look = vocabulary.load("demo"), options.ModelOptions(model=network)
    settings = options.resolved(look, options.MethodOptions(method="tmpa", adaptation="tile"), words)
    assert (settings.steps, settings.bare, settings.logit_scale, settings.bias) == (1, True, 20, "learned")
    assert options.resolved(look, options.MethodOptions(), words).bias == "entropy"
