"""STAC Items of maps and of the bundled model follow MLM 1.5; with a folder of schemas in OVRS_STAC_SCHEMAS, every extension.

The folder holds `mlm/v1.5.0/schema.json` and so on, as they lie below https://stac-extensions.github.io.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import pystac
import pytest
from conftest import smooth
from safetensors import safe_open
from typer.testing import CliRunner

import ovrs
from ovrs import pipeline
from ovrs.cli.app import app
from ovrs.errors import OptionError
from ovrs.export import mlm, stac
from ovrs.methods import recommended
from ovrs.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OPEN_CLIP = recommended.place_of("bundled") / "open_clip_model.safetensors"


@pytest.fixture
def mapped(write_raster, tmp_path, words, trivial):
    """A map whose record says that the bundled model made it."""
    request = Request(uri=write_raster(smooth(80, 96)), words=words, options=trivial(), target=tmp_path / "out.zarr")
    pipeline.map(request)
    with ovrs.open(request.target) as found:
        found.record = made_by(found.record, model="bundled", weights="ab" * 32)
        yield found


def made_by(record, **model):
    return record.model_copy(update={"model": record.model.model_copy(update=model)})


def validate(item):
    """The core's schema, MLM's rules, and all extensions where their schemas are at hand."""
    core = {**item, "stac_extensions": []}
    pystac.Item.from_dict(json.loads(json.dumps(core)), href="/tmp/item.json").validate()
    properties, assets = item["properties"], item["assets"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= properties.keys()
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    models = [a for a in assets.values() if "mlm:model" in a["roles"]]
    assert len(models) == 1
    assert models == [a for a in assets.values() if "mlm:artifact_type" in a]
    for part in (*properties["mlm:input"], *properties["mlm:output"]):
        tensor = part.get("input") or part["result"]
        assert all({"value", "name", "description"} <= c.keys() for c in part.get("classification:classes", []))
        assert len(tensor["shape"]) == len(tensor["dim_order"])
        assert ("bands" in tensor["dim_order"]) == bool(part.get("bands"))
    if folder := os.environ.get("OVRS_STAC_SCHEMAS"):
        in_full(item, Path(folder))


def in_full(item, folder):
    from jsonschema import Draft7Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT7

    def retrieve(uri):
        if uri.startswith("https://schemas.stacspec.org/"):  # the core: pystac's copies, looked at above
            return DRAFT7.create_resource({})
        content = json.loads((folder / uri.rstrip("#").split("github.io/")[1]).read_text())
        return Resource.from_contents(content, default_specification=DRAFT7)

    registry = Registry(retrieve=retrieve)
    for uri in item["stac_extensions"]:
        schema = retrieve(uri).contents
        faults = [
            f"{uri}: {e.json_path}: {e.message[:300]}"
            for e in Draft7Validator(schema, registry=registry).iter_errors(item)
        ]
        assert not faults, "\n".join(faults)


def test_the_item_of_a_map_describes_its_model(mapped, tmp_path):
    item = stac.item(mapped, tmp_path)
    assert mlm.SCHEMA in item["stac_extensions"]
    validate(item)
    assert item["properties"]["mlm:name"] == "ovrs-bundled"
    assert item["properties"]["mlm:hyperparameters"]["stride"] == mapped.record.plan.stride
    assert item["assets"]["model"]["href"] == "urn:ovrs:weights:" + "ab" * 32
    mapped.record = made_by(mapped.record, model="farslip-b16")
    assert stac.item(mapped, tmp_path)["assets"]["model"]["href"].startswith("https://huggingface.co/")


def test_a_map_without_a_network_has_no_model(mapped, tmp_path):
    mapped.record = made_by(mapped.record, model="trivial", weights="none")
    item = stac.item(mapped, tmp_path)
    assert mlm.SCHEMA not in item["stac_extensions"]
    assert not [key for key in item["properties"] if key.startswith("mlm:")]
    assert "model" not in item["assets"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bundled", "ovrs-bundled"),
        ("/data/my models/clip é v1/", "clip-v1"),
        ("C:\\models\\7", "model-7"),
        ("ViT-B-16", "ViT-B-16"),
        ("hf-hub:ORG/Name_2", "Name_2"),
        ("…", "model-unnamed"),
        ("x" * 90, "x" * 60),
    ],
)
def test_every_model_has_a_name_that_mlm_takes(model, name):
    assert mlm.name_of(model) == name
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", name)


def test_the_bundled_model_has_an_item(tmp_path):
    out = tmp_path / "a b" / "model.json"
    run = CliRunner()
    done = run.invoke(app, ["models", "--stac", str(out)], catch_exceptions=False)
    assert done.output == f"stac: {out}\n"
    item = json.loads(out.read_text())
    validate(item)
    with safe_open(OPEN_CLIP, "np") as weights:
        numbers = sum(weights.get_tensor(key).size for key in weights.keys())  # noqa: SIM118  (no dictionary)
    assert item["properties"]["mlm:total_parameters"] == numbers
    model = item["assets"]["model"]
    assert (out.parent / model["href"]).resolve() == OPEN_CLIP.resolve()
    assert model["file:checksum"] == "1220" + hashlib.sha256(OPEN_CLIP.read_bytes()).hexdigest()
    assert model["file:size"] == OPEN_CLIP.stat().st_size
    assert item["properties"]["mlm:input"][0]["input"]["shape"] == [-1, 3, 160, 160]
    assert run.invoke(app, ["models", "--stac", str(out)]).exit_code == 0  # ours: replaced
    (tmp_path / "mine.json").write_text("{}")
    for wrong in ("mine.json", "model.txt"):
        assert isinstance(run.invoke(app, ["models", "--stac", str(tmp_path / wrong)]).exception, OptionError)
    assert (tmp_path / "mine.json").read_text() == "{}"
