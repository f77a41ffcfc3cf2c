"""Runs beside a device: threads around the one that computes, rates of stages, cards of local workers, arithmetic, imports."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import smooth, write_clip_directory
from test_40_block import ArrayScene
from test_41_device import mapped, segmenter_of  # noqa: F401 - a fixture
from typer.testing import CliRunner

from ovrs import options, pipeline
from ovrs.engine import workers
from ovrs.engine.tiling import Plan
from ovrs.errors import OptionError
from ovrs.run import begin, stages, work
from ovrs.run.rundir import BlockRecord, RunDir
from ovrs.scene.raster import RasterScene
from ovrs.store.map import open_map

ROOT = Path(__file__).parents[1]


# ---- threads around the one that computes


def pixels_of(path):
    group = zarr.open_group(path, mode="r")
    return [group[name][:] for name in ("label", "confidence")]


def small(**run):
    """Options for blocks of 128 pixels a side."""
    return options.build(model={"model": "trivial", "crop": 64}, run={"block_pitches": 1, **run})


@pytest.fixture
def beside_a_device(monkeypatch):
    """Runs believe that their network is on a GPU."""
    prepare = begin.prepare

    def prepared(*given, **named):
        job = prepare(*given, **named)
        return work.replace(job, facts={**job.facts, "device": "cuda"})

    monkeypatch.setattr(work.network, "require_same", lambda _: None)
    return prepared


def test_beside_a_device_two_threads_read_and_two_write_and_the_map_is_the_same(
    beside_a_device, noise_scene, words, tmp_path, monkeypatch
):
    scene = noise_scene(500, 380)
    pipeline.map_scene(scene, words, tmp_path / "one.zarr", small(executor="threads", workers=1))
    job = beside_a_device(scene, words, tmp_path / "many.zarr", small())
    names, held, most, lock = job.missing(), [0], [0], threading.Lock()
    read, commit, threads = RasterScene.read, work._commit, {"ovrs-read": set(), "ovrs-write": set()}

    def reading(self, window):
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        threads["ovrs-read"].add(threading.current_thread().name)
        time.sleep(0.02)
        return read(self, window)

    def writing(*given):
        threads["ovrs-write"].add(threading.current_thread().name)
        time.sleep(0.05)
        found = commit(*given)
        with lock:
            held[0] -= 1
        return found

    monkeypatch.setattr(RasterScene, "read", reading)
    monkeypatch.setattr(work, "_commit", writing)
    records = list(work.run_blocks(job, names))
    assert [r.name for r in records] == names
    assert most[0] <= 3 * work.BESIDE_DEVICE + 2 < len(names)  # read ahead, computed, waiting, being written
    assert {kind: len(found) for kind, found in threads.items()} == {"ovrs-read": 2, "ovrs-write": 2}
    monkeypatch.undo()
    pipeline.resume(tmp_path / "many.zarr")
    for one, other in zip(pixels_of(tmp_path / "one.zarr"), pixels_of(tmp_path / "many.zarr"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_error_of_any_stage_is_told_of_its_own_block(beside_a_device, noise_scene, words, tmp_path, monkeypatch):
    job = beside_a_device(noise_scene(300, 300), words, tmp_path / "m.zarr", small())
    names = job.missing()
    bad = dict(zip(("read", "model", "write"), (names[1], names[3], names[4]), strict=True))
    read, compute, write = RasterScene.read, work.map_block, work._write

    def reading(self, window):
        if window == job.block(bad["read"]).read:
            raise OSError("no answer of the disk")
        return read(self, window)

    def computing(scene, segmenter, plan, block, *given, **named):
        if block.name == bad["model"]:
            raise ValueError("no finite number")
        return compute(scene, segmenter, plan, block, *given, **named)

    def writing(job, block, result):
        if block.name == bad["write"]:
            raise OSError("no room")
        return write(job, block, result)

    monkeypatch.setattr(RasterScene, "read", reading)
    monkeypatch.setattr(work, "map_block", computing)
    monkeypatch.setattr(work, "_write", writing)
    records = {r.name: r for r in work.run_blocks(job, names)}
    assert {n for n, r in records.items() if not r.finished} == set(bad.values())
    for stage, reason in (("read", "no answer"), ("model", "no finite"), ("write", "no room")):
        assert reason in records[bad[stage]].reason
    left = [t.name for t in threading.enumerate() if t.name.startswith(("ovrs-read", "ovrs-write"))]
    assert left == []


# ---- rates of stages


def test_the_slowest_stage_is_named_with_rates():
    def spent(**seconds):
        return stages.seconds([BlockRecord(name="a", status="done", stages=seconds)] * 2)

    assert stages.slowest(spent(read=5, compute=2, write=1, model=2)) == "read"
    assert stages.slowest(spent(read=1, compute=4, write=1, model=1, blend=2, download=0.5)) == "blend"
    assert stages.slowest(spent(read=1, compute=4, write=5)) == "write"
    assert stages.slowest(spent(compute=4)) == "compute"
    assert stages.slowest({}) == stages.line({}, 0) == ""
    found = spent(read=0.5, compute=4, model=3, write=1)
    assert stages.rates(found, 8_000_000) == {"read": 8.0, "compute": 1.0, "write": 4.0, "model": 1.333}
    assert "read 8, compute 1, write 4 (of computing: model 1.33)" in stages.line(found, 8_000_000)
    assert "the model holds the run up" in stages.line(found, 8_000_000)


def test_status_and_record_tell_the_rate_of_each_stage(noise_scene, words, trivial, tmp_path, monkeypatch):
    from ovrs.cli.app import app

    read = RasterScene.read

    def slow(self, window):
        time.sleep(0.1)
        return read(self, window)

    monkeypatch.setattr(RasterScene, "read", slow)
    out = tmp_path / "m.zarr"
    pipeline.map_scene(noise_scene(300, 200), words, out, trivial(block_pitches=2))
    assert all(r.stages["read"] >= 0.1 for r in RunDir(out).records().values())  # measured where it happens
    told = json.loads(CliRunner().invoke(app, ["status", str(out), "--json"]).stdout)
    assert told["held_up_by"] == stages.slowest(told["stages"]) != ""
    assert told["mpx_per_second"].keys() >= {"read", "compute", "write", "model", "blend"}
    assert told["mpx_per_second"]["read"] == pytest.approx(0.06 / told["stages"]["read"], rel=0.01)
    assert told["stages"]["model"] + told["stages"]["blend"] <= told["stages"]["compute"] + 0.01
    shown = CliRunner().invoke(app, ["status", str(out)]).stdout
    line = stages.line(told["stages"], 60_000)
    assert line in shown
    record = open_map(out).record
    assert (record.held_up_by, record.mpx_per_second) == (told["held_up_by"], told["mpx_per_second"])
    assert line in CliRunner().invoke(app, ["info", str(out)]).stdout


# ---- cards of local workers


@pytest.fixture
def cards(monkeypatch):
    """`cards(n)`: PyTorch sees so many."""

    def seen(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    monkeypatch.delenv(workers.LOCAL_WORKER, raising=False)
    monkeypatch.delenv("OVRS_DEVICE", raising=False)
    return seen


def test_each_local_worker_takes_a_card_of_its_own(cards, monkeypatch):
    from ovrs.model.clip.loading import resolve_device

    cards(2)
    assert str(resolve_device("cuda")) == "cuda"
    for worker, card in ((0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")):
        monkeypatch.setenv(workers.LOCAL_WORKER, "yes")  # as the cluster starts it
        told = asyncio.run(workers.join("t", b"", type("W", (), {"name": worker})()))
        assert told.name == str(worker)
        assert str(resolve_device("cuda")) == str(resolve_device("auto")) == card
        assert str(resolve_device("cuda:1")) == "cuda:1"
        assert str(resolve_device("cpu")) == "cpu"
    monkeypatch.setenv("OVRS_DEVICE", "cuda:1")
    assert str(resolve_device("auto")) == "cuda:1"


def test_more_local_workers_than_cards_are_refused_unless_a_card_is_named(cards, monkeypatch):
    from ovrs.model.clip.cards import require_cards
    from ovrs.run import network

    cards(2)
    require_cards("cuda", 2)
    require_cards("cuda:0", 5)
    for device in ("cuda", "auto"):
        with pytest.raises(OptionError, match=r"3 local Dask workers for 2 GPUs.*--workers 2, or --device cuda:0"):
            require_cards(device, 3)
    monkeypatch.setenv("OVRS_DEVICE", "cuda:0")
    require_cards("auto", 3)
    spec = type("S", (), {"model": options.ModelOptions(device="cuda")})()
    found = network.Network(geometry=None, facts={"device": "cuda"}, adapts=False)
    monkeypatch.setattr(network, "_described", lambda _: found)
    for executor in ("serial", "threads"):
        assert network.describe(spec, options.RunOptions(executor=executor, workers=3)) is found
    with pytest.raises(OptionError, match="3 local Dask workers"):
        network.describe(spec, options.RunOptions(executor="dask", workers=3))


@pytest.mark.slow
def test_local_workers_of_a_real_cluster_know_which_they_are():
    from ovrs.engine.execute import run

    found = run(options.RunOptions(executor="dask", workers=2), _which, range(12))
    assert set(found) == {"0", "1"}


def _which(_):
    time.sleep(0.3)
    return os.environ[workers.LOCAL_WORKER]


# ---- arithmetic


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.99), ("float16", 0.999)])
def test_labels_of_half_precision_are_those_of_float32(dtype, share, words, tmp_path):
    """The tower alone is in half precision; normalisation, softmax and entropy are not."""
    import rasterio

    from ovrs.demo.synth import World, write_scene
    from ovrs.model.clip.build import build_clip_segmenter
    from ovrs.options import MethodOptions, ModelOptions

    write_scene(tmp_path / "s.tif", height=400, width=400, world=World(seed=3))
    with rasterio.open(tmp_path / "s.tif") as source:
        scene, found = ArrayScene(source.read()), {}
    for kind in ("float32", dtype):
        model = ModelOptions(dtype=kind, device="cpu", pixel_size=0.5)
        segmenter = build_clip_segmenter(model, MethodOptions(method="none"), words)
        found[kind] = mapped(scene, segmenter, pitches=8, keep=False)[0]
    assert (found[dtype] == found["float32"]).mean() >= share


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "method", ["none", "tmpa", "tmpa_shift", "tpt", "coninfer", "tent", "mlmp", "clipartt", "watt"]
)
def test_half_precision_maps_or_is_refused(tiny_clip, tmp_path, noise_scene, words, method, dtype):
    """Layer norms are near one, where bfloat16 cannot hold a step of 0.001."""
    write_clip_directory(tiny_clip, tmp_path)
    model = {"model": str(tmp_path), "dtype": dtype}
    given = options.build(model=model, method={"method": method}, run={"pyramid": False})
    out = tmp_path / "m.zarr"
    if method in ("tent", "mlmp", "clipartt", "watt"):
        with pytest.raises(OptionError, match=f"{dtype} is too coarse for; use --set model.dtype=float32"):
            pipeline.map_scene(noise_scene(60, 70), words, out, given)
        assert not out.exists()
    else:
        assert pipeline.map_scene(noise_scene(60, 70), words, out, given)["holes"] == []


# ---- pixels on the device


def test_pixels_go_to_the_device_once_a_block_and_tiles_are_views_of_them(segmenter_of):  # noqa: F811 - the fixture
    """Crops, wider windows and enlargement are made of what lies there; a block that needs no tile sends nothing."""
    segmenter = segmenter_of("tmpa", 2, (2,), adaptation="tile")
    place, sent, looked = segmenter.place, [], segmenter.look

    def placing(rgb, valid):
        sent.append(tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in place(rgb, valid)))
        return sent[-1]

    def looking(tiles):
        for rgb, valid, _ in tiles:
            for values, whole in zip((rgb, valid), sent[-1], strict=True):
                assert values.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
                assert whole.dtype in (torch.uint8, torch.bool)
        return looked(tiles)

    scene = ArrayScene(smooth(120, 240, 2))
    expected = mapped(scene, segmenter)
    segmenter.place, segmenter.look = placing, looking
    found = mapped(scene, segmenter)
    for one, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    g = segmenter.geometry
    plan = Plan(height=120, width=240, geometry=g, block_pitches=2)
    assert 1 <= len(sent) <= plan.block_count


# ---- imports

BARE = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"rasterio", "geopandas", "zarr", "odc", "pyproj", "shapely", "open_clip", "transformers"}:
            raise ImportError(f"{name} is not for the engine and its networks")
sys.meta_path.insert(0, Refused())
import torch
from benchmarks import device
from ovrs.engine.tiling import TileGeometry
from ovrs.model.clip.windows import Views
device.MODELS["tiny"] = {"vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}, "embed_dim": 32}
model = device.network("tiny", torch.device("cpu"), torch.float32)
views = Views(TileGeometry(crop=32, stride=16))
for method in ("none", "tmpa", "tmpa per scene", "mlmp"):
    segmenter = device.segmenter_of(model, views, method, 3, 2)
    assert device.engine(segmenter, 1, 0.01)["mpx_s"] > 0
assert device.stages(segmenter.frozen, 0.001)["encode"] > 0
"""


def test_the_engine_on_a_device_needs_neither_rasterio_nor_geopandas():
    """The part of `benchmarks.device` that runs in memory, with these packages out of reach."""
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
