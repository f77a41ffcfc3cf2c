"""Progress counts tiles, for people and for programs; cautions say what a reader should know."""

import html
import json
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from conftest import environment, smooth

from ovrs import pipeline
from ovrs.demo.synth import World, write_scene
from ovrs.engine.tiling import Plan, TileGeometry
from ovrs.errors import OptionError
from ovrs.request import Request
from ovrs.run import meter
from ovrs.run.report import info_of
from ovrs.store.cautions import SKETCH, cautions
from ovrs.store.map import open_map
from ovrs.store.picture import card
from ovrs.store.record import ClassArea, ModelFacts, NearTie, RunRecord
from ovrs.view.page import warnings_of
from ovrs.view.server import open_viewer


@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_tiles_are_counted_within_a_block(write_raster, tmp_path, words, trivial, executor):
    rgb = smooth(900, 900)
    rgb[:, :400, :400] = 0  # blocks without data count as done, too
    options = trivial(executor=executor, workers=2)
    request = Request(uri=write_raster(rgb, nodata=0), words=words, options=options, target=tmp_path / "m.zarr")
    seen = []

    class Watched(meter.Meter):
        def __call__(self, record, done, total):
            super().__call__(record, done, total)
            seen.append((self.done, self.total, done))

    watched = Watched()
    pipeline.map(request, progress=watched)
    plan = Plan(height=900, width=900, geometry=TileGeometry(crop=160, stride=80), block_pitches=1)
    expected = sum(len(plan.tiles_of(b.core)) for b in plan.blocks())
    assert watched.total == expected
    assert seen[-1] == (expected, expected, plan.block_count)
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)
    assert watched.blocks == (9, 9)
    assert f"{expected} of {expected} tiles (100 %)" in watched.line


def test_a_meter_moves_before_the_first_block_is_done():
    plan = Plan(height=1000, width=1000, geometry=TileGeometry(crop=96, stride=80))
    found = meter.Meter()
    found.begin(plan, plan.block_names())
    assert (found.done, found.total, found.seconds_left) == (0, 16, None)
    for _ in range(4):
        meter.tick()
    time.sleep(0.01)
    assert found.done == 4
    assert found.seconds_left == pytest.approx(3 * found.seconds, rel=0.5)
    assert json.loads(found.json) | {"seconds": 0, "seconds_left": 0} == {
        "event": "progress", "tiles": 4, "tiles_total": 16, "blocks": 0, "blocks_total": 1, "seconds": 0, "seconds_left": 0
    }  # fmt: skip


def test_lines_appear_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(meter, "LINE_SECONDS", 0.02)
    plan = Plan(height=1000, width=1000, geometry=TileGeometry(crop=96, stride=80))
    with meter.metered() as found:
        time.sleep(0.05)
        found.begin(plan, plan.block_names())
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert {line.partition(" of ")[0] for line in lines} == {"mapping: 0"}
    with pytest.raises(OptionError, match="--progress"), meter.metered("loud"):
        pass


def test_programs_read_json(write_raster, tmp_path):
    command = [sys.executable, "-m", "ovrs", "map", str(write_raster(smooth(300, 300))), "--vocabulary", "demo"]
    command += ["--model", "trivial", "--progress", "json", "-o", str(tmp_path / "m.zarr")]
    done = subprocess.run(command, check=True, env=environment(tmp_path), capture_output=True, text=True)
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["event"] == "progress"
    assert last["tiles"] == last["tiles_total"] > 0


def test_cautions_stand_where_people_read(write_raster, tmp_path, words, trivial):
    out = tmp_path / "m.zarr"
    pipeline.map(Request(uri=write_raster(smooth(200, 200)), words=words, options=trivial(), target=out))
    with open_map(out) as mapped:
        record = mapped.record
        assert cautions(record) == []  # no network, no knowledge of sizes
        classes = [ClassArea(name=n, pixels=p, hectares=p, percent=p) for n, p in (("a", 70), ("b", 30), ("c", 0))]
        update = {
            "model": ModelFacts(model="bundled", method="none"),
            "pixel_size_m": (10.0, 10.0),
            "mean_confidence": 0.3,
            "classes": classes,
        }
        doubtful = record.model_copy(update=update)
        told = cautions(doubtful)
        assert [
            any(w in t for t in told) for w in (SKETCH, "10 m", "a covers 70", "nowhere in the map: c", "0.30")
        ] == [True] * 5
        assert warnings_of(doubtful)[: len(told)] == told
        pair = [
            NearTie(name="a", second="b", percent=97, pixels=900),
            NearTie(name="b", second="a", percent=60, pixels=70),
        ]
        few = NearTie(name="a", second="c", percent=99, pixels=9)
        doubtful = doubtful.model_copy(update={"near_ties": [*pair, few]})
        told = cautions(doubtful)
        assert [t for t in told if "told apart" in t] == [
            "a and b are rarely told apart: in 97 percent of the pixels of a, b is nearly as high; join them, or use other words"
        ]
        mapped.__dict__["record"] = doubtful
        assert all(html.escape(t) in card(mapped) for t in told)
        with open_viewer(mapped, None, "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page = urllib.request.urlopen(server.url).read().decode()
            server.shutdown()
        assert all(html.escape(t) in page for t in told)
        assert "--set run.store_scores=true" in page
        assert f"caution    {told[0]}" in info_of(mapped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"), [("building, tree, trees, field", 1), ("building, road, tree, field", 0)]
)
def test_two_words_for_one_thing_are_told_of(tmp_path, words, expected):
    """With the bundled model, whose text knows both."""
    write_scene(tmp_path / "s.tif", height=300, width=260, world=World(seed=4))
    facts = pipeline.map(Request.from_names(tmp_path / "s.tif", tmp_path / "m.zarr", classes=words))
    told = [t for t in cautions(RunRecord.model_validate(facts)) if "told apart" in t]
    assert len(told) == expected
    assert all("tree" in t and "trees" in t for t in told)
