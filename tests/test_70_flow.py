"""The Prefect flow does the library's work: identical arrays, artifacts, and the truth on disk."""

import asyncio
import functools
import importlib
from pathlib import Path

import numpy as np
import pytest
import zarr
from prefect.exceptions import CancelledRun
from prefect.states import Pending
from typer.testing import CliRunner

from ovrs import pipeline
from ovrs.errors import IncompleteRunError
from ovrs.scene.raster import RasterScene
from ovrs.store.record import RunRecord
from ovrs.words import vocabulary

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Prefect and its dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_a_retry_looks_at_classes_of_errors_and_never_at_words():
    from ovrs.flows._tasks import can_heal
    from ovrs.run.rundir import BlockRecord

    class State:
        def __init__(self, error):
            self.error = error

        async def aresult(self, raise_on_failure):
            return self.error

    def heals(*kinds, error=IncompleteRunError):
        records = [BlockRecord(name=k, status="failed", error=k, reason="SceneReadError: words") for k in kinds]
        return asyncio.run(can_heal(None, None, State(error("SceneReadError\n  OSError: words", records))))

    assert heals("SceneReadError", "KilledWorker", "ConnectionResetError")
    assert not heals("SceneReadError", "ValueError")
    assert not heals("OSError", error=ValueError)


def test_flow_equals_library(prefect_server, noise_scene, words, trivial, tmp_path):
    from ovrs.flows.map_scene import map_scene

    scene = noise_scene(700, 500)
    facts = map_scene(str(scene), str(tmp_path / "flow.zarr"), vocabulary_name="demo", options=trivial(), batches=3)
    pipeline.map_scene(scene, words, tmp_path / "library.zarr", trivial())
    flow, library = (zarr.open_group(tmp_path / f"{name}.zarr") for name in ("flow", "library"))
    for name in ("label", "confidence", "2/label", "2/confidence"):
        np.testing.assert_array_equal(flow[name][:], library[name][:])
    assert facts["blocks"] == 6
    assert (tmp_path / "flow.tif").exists()
    assert (tmp_path / "flow.png").exists()
    assert {"class-areas", "quicklook"} <= asyncio.run(artifact_keys())


async def artifact_keys():
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return {a.key for a in await client.read_artifacts()}


@pytest.mark.parametrize(("failures", "heals"), [(1, True), (99, False)])
def test_flow_retries_what_can_heal_and_never_hides_the_rest(
    prefect_server, noise_scene, words, trivial, tmp_path, monkeypatch, failures, heals
):
    from rasterio.errors import RasterioIOError

    room = importlib.import_module("ovrs.flows.map_scene")
    monkeypatch.setattr(room, "map_blocks", room.map_blocks.with_options(retries=1, retry_delay_seconds=0))
    reader, left = RasterScene._reader, [failures]

    class Flaky:
        def __init__(self, inner):
            self.inner = inner

        def read(self, window, shape=None):
            if window.row_off + window.height > 450 and left[0] > 0:
                left[0] -= 1
                raise RasterioIOError("connection reset")
            return self.inner.read(window, shape)

    scene, out = str(noise_scene(500, 300)), str(tmp_path / "flow.zarr")
    monkeypatch.setattr(RasterScene, "_reader", lambda self: Flaky(reader(self)))
    run = functools.partial(
        room.map_scene, scene, out, vocabulary_name="demo", options=trivial(), batches=2, products=False
    )
    if heals:
        assert run()["holes"] == []
        return
    with pytest.raises(IncompleteRunError, match="connection reset"):
        run()
    assert not Path(out).exists()
    left[0] = 0
    assert run()["holes"] == []


class Refused:
    """A future of a task run that its server did not let begin."""

    _final_state = None
    state = Pending()

    def wait(self, timeout=None):
        """It ended long ago."""


class Throttled:
    """A task whose first submissions are refused by the server."""

    def __init__(self, task, refusals):
        self.task, self.left = task, refusals

    def with_options(self, **options):
        self.named = self.task.with_options(**options)
        return self

    def submit(self, *arguments):
        self.left -= 1
        return Refused() if self.left >= 0 else self.named.submit(*arguments)


@pytest.mark.parametrize(("refusals", "heals"), [(2, True), (99, False)])
def test_a_task_run_that_the_server_did_not_let_begin_is_submitted_again(
    prefect_server, noise_scene, words, trivial, tmp_path, monkeypatch, refusals, heals
):
    module = importlib.import_module("ovrs.flows.map_scene")
    monkeypatch.setattr(module, "map_blocks", Throttled(module.map_blocks, refusals))
    scene, out = str(noise_scene(300, 260)), str(tmp_path / "m.zarr")
    call = functools.partial(module.map_scene, scene, out, vocabulary_name="demo", products=False, batches=1)
    if heals:
        assert call(options=trivial())["holes"] == []
    else:
        with pytest.raises(IncompleteRunError):
            call(options=trivial())


def test_batches_cover_all_names_in_order():
    names = [str(i) for i in range(11)]
    for count in (1, 3, 11, 40):
        parts = pipeline.batches(names, count)
        assert [n for part in parts for n in part] == names
        assert len(parts) == min(count, 11)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert pipeline.batches([], 4) == []


WATCHED = 'version: 1\noutputs: {root: maps}\nmodels: {quick: {model: trivial, crop: 64}}\ncollections:\n  drop: {pattern: "in/*.tif", vocabulary: demo, model: quick, method: {method: none}}\n'


def test_a_watcher_maps_what_is_new_and_nothing_twice(prefect_server, noise_scene, tmp_path, monkeypatch):
    import ovrs.collection.imagery
    from ovrs.collection.ledger import Ledger
    from ovrs.flows.imagery import watch_collection

    monkeypatch.setattr(ovrs.collection.imagery, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(ovrs.collection.imagery.images, "__kwdefaults__", {"settle": 0.0})
    (tmp_path / "in").mkdir()
    (tmp_path / "c.yaml").write_text(WATCHED)
    assert watch_collection("drop", tmp_path / "c.yaml") == {}
    noise_scene(200, 150, name="in/a.tif")
    assert watch_collection("drop", tmp_path / "c.yaml") == {"a": "mapped"}
    store = tmp_path / "maps/drop/a.zarr"
    before = (store / "zarr.json").stat().st_mtime_ns
    (tmp_path / "in/b.tif").write_bytes(b"no raster")
    with pytest.raises(IncompleteRunError, match="1 of 2 images failed: b"):
        watch_collection("drop", tmp_path / "c.yaml")
    assert (store / "zarr.json").stat().st_mtime_ns == before
    states = {e["name"]: e["status"] for e in Ledger(str(tmp_path / "maps")).entries()}
    assert states == {"a": "done", "b": "failed"}


def test_a_pass_submits_what_is_to_do_and_tells_the_hopeless_every_time(
    prefect_server, noise_scene, tmp_path, monkeypatch
):
    import ovrs.flows.imagery as room
    from ovrs.cli.app import app
    from ovrs.collection import imagery
    from ovrs.collection.ledger import MAX_ATTEMPTS

    monkeypatch.setattr(imagery, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(imagery.images, "__kwdefaults__", {"settle": 0.0})
    submitted, real = [], room.map_image.submit
    monkeypatch.setattr(room.map_image, "submit", lambda *a: submitted.append(a[2].name) or real(*a))
    file = tmp_path / "c.yaml"
    file.write_text(WATCHED)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.tif").write_bytes(b"no raster")
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(IncompleteRunError, match="1 of 1 images failed: bad"):
            room.map_collection("drop", file)
    noise_scene(100, 90, name="in/a.tif")
    submitted.clear()
    for flow in (room.map_collection, room.watch_collection):
        with pytest.raises(IncompleteRunError, match=r"1 of 2 images have no attempt left: bad \(.*retry NAME"):
            flow("drop", file)
    assert submitted == ["a"]
    run = CliRunner()
    assert run.invoke(app, ["collection", "forget", "bad", "--catalog", str(file)]).exit_code == 0
    assert room.watch_collection("drop", file) == {}
    state = room.map_collection("drop", file, return_state=True)
    assert (state.is_completed(), state.message) == (True, "drop: 0 mapped")
    assert submitted == ["a"]


def test_runs_are_named_and_marked_and_the_map_is_an_asset(prefect_server, noise_scene, trivial, tmp_path):
    from prefect.client.orchestration import get_client

    from ovrs.flows.map_scene import map_scene

    scene, out = noise_scene(200, 150, name="site 1.tif"), tmp_path / "m.zarr"
    state = map_scene(str(scene), str(out), vocabulary_name="demo", options=trivial(), batches=2, return_state=True)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
        tasks = [t for t in client.read_task_runs() if t.flow_run_id == run.id]
    assert (run.name, set(run.tags)) == ("site 1.tif", {"scene:site 1.tif"})
    named = sorted(t.name for t in tasks if "batch" in t.name)
    assert named[0].startswith("site 1.tif batch 1 of ")
    assert all("scene:site 1.tif" in t.tags for t in tasks if "batch" in t.name)
    module = importlib.import_module("ovrs.flows._runs")
    made = module.asset(str(out), "site 1")
    assert made.key == f"file://{out}"
    assert set(module.areas(RunRecord.read(asyncio.run(state.aresult()), str(out)))["classes"]) == {
        c.name for c in vocabulary.load("demo").classes
    }
    assert module.asset("s3://u:p@b/x y.zarr", "x").key == "s3://___@b/x_y.zarr".replace("@", "_")


def test_the_form_of_parameters_explains_each(prefect_server):
    from prefect.utilities.callables import parameter_schema

    from ovrs.flows.imagery import map_collection, watch_collection
    from ovrs.flows.map_scene import map_scene

    for flow in (map_scene, map_collection, watch_collection):
        schema = parameter_schema(flow.fn).model_dump()
        bare = [n for n, p in schema["properties"].items() if not p.get("description")]
        assert not bare, (flow.name, bare)
        assert "allow_holes" in schema["properties"]
    assert "overwrite" in parameter_schema(map_scene.fn).properties
    assert {"MapOptions", "SceneOptions", "MethodOptions"} <= set(parameter_schema(map_scene.fn).definitions)


def test_a_stop_ends_the_batches_within_a_block(prefect_server, noise_scene, trivial, tmp_path, monkeypatch):
    from ovrs.run.rundir import RunDir

    room, runs = importlib.import_module("ovrs.flows.map_scene"), importlib.import_module("ovrs.flows._runs")
    monkeypatch.setattr(runs.stopping, "is_set", lambda: len(RunDir(tmp_path / "m.zarr").records()) >= 2)
    with pytest.raises(CancelledRun, match="finished blocks are kept"):
        room.map_scene(
            str(noise_scene(900, 900)), str(tmp_path / "m.zarr"), vocabulary_name="demo", options=trivial(), batches=2
        )
    assert 2 <= len(RunDir(tmp_path / "m.zarr").records()) <= 6


def test_export_flow_writes_products_of_a_finished_map(prefect_server, noise_scene, words, trivial, tmp_path):
    from ovrs.flows.products import export_products

    pipeline.map_scene(noise_scene(200, 150), words, tmp_path / "m.zarr", trivial())
    paths = export_products(tmp_path / "m.zarr")
    assert all((tmp_path / p).exists() for p in paths)
    assert "products" in asyncio.run(artifact_keys())


def test_prompts_task_asks_by_name_without_a_model_and_stops_or_composes_when_it_is_down(
    prefect_server, noise_scene, trivial, tmp_path
):
    from ovrs.flows.map_scene import map_scene
    from ovrs.words.prompts import LanguageModel, PromptError

    scene, down = (
        str(noise_scene(200, 150)),
        LanguageModel(base_url="http://127.0.0.1:9/v1", name="m", retries=0, timeout=2),
    )
    facts = map_scene(scene, str(tmp_path / "b.zarr"), "water, sausage stand", options=trivial(), products=False)
    assert (facts["asked_by_name"], facts["composed_prompts"]) == (["sausage stand"], [])
    with pytest.raises(PromptError):
        map_scene(scene, str(tmp_path / "a.zarr"), "water, sausage stand", options=trivial(), llm=down)
    facts = map_scene(
        scene,
        str(tmp_path / "a.zarr"),
        "water, sausage stand",
        options=trivial(),
        llm=down,
        allow_composed_prompts=True,
        products=False,
    )
    assert facts["composed_prompts"] == ["sausage stand"]


def test_a_silent_server_is_asked_once_and_costs_nothing(caplog):
    import httpx

    from ovrs.flows._tasks import Reports

    report, asked = Reports(), []

    def tell(answers):
        asked.append(answers)
        if not answers:
            raise httpx.ConnectError("connection refused")
        return "seen"

    assert report(tell, True) == "seen"
    assert report(tell, False) is None
    assert "goes on unseen" in caplog.text
    assert report(tell, True) is None  # not asked again for some minutes
    assert asked == [True, False]
    with pytest.raises(ZeroDivisionError):
        Reports()(lambda: 1 / 0)
