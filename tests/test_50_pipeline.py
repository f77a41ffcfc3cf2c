"""Whole runs: executors, resume, refusal to mix, failures, provenance."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from conftest import environment, rotated, smooth

from ovrs import options, pipeline
from ovrs.demo.synth import World, write_scene
from ovrs.errors import DigestMismatchError, IncompleteRunError, OptionError, SceneChangedError, StoreError
from ovrs.run import begin, segmenters, verify
from ovrs.run.report import info_of, status_of
from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.map import open_map
from ovrs.words import vocabulary


def arrays(path):
    group = zarr.open_group(path, mode="r")
    return {name: group[name][:] for name in ("label", "confidence", "2/label", "2/confidence") if name in group}


def files(path):
    """Every file's bytes but those of the metadata, which hold times."""
    return {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(path.rglob("*"))
        if f.is_file() and f.name != "zarr.json"
    }


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_run_end_to_end(noise_scene, words, trivial, tmp_path):
    out = tmp_path / "map.zarr"
    seen = []
    facts = pipeline.map_scene(
        noise_scene(700, 500), words, out, trivial(), progress=lambda r, d, t: seen.append((r.status, d, t))
    )
    assert seen == [("done", i, 6) for i in range(1, 7)]
    group = store.open_complete(out)
    label = group["label"][:]
    assert label.shape == (700, 500)
    for index, entry in enumerate(facts["classes"]):
        assert entry["pixels"] == (label == index).sum()
        assert entry["hectares"] == pytest.approx(entry["pixels"] * 0.25 / 1e4, rel=2e-3, abs=1e-4)
    assert sum(c["percent"] for c in facts["classes"]) == pytest.approx(100, abs=0.01)
    assert facts["model"]["model"] == "trivial"
    assert verify.check(out).problems == ()
    assert "6/6 blocks" in status_of(out).text
    text = info_of(open_map(out))
    assert "EPSG:32633" in text
    assert "a dark smooth surface without texture" in text


def test_executors_give_the_same_arrays(noise_scene, words, trivial, tmp_path):
    scene = noise_scene(700, 500)
    found = []
    for executor in ("serial", "threads"):
        pipeline.map_scene(scene, words, tmp_path / f"{executor}.zarr", trivial(executor=executor))
        found.append(arrays(tmp_path / f"{executor}.zarr"))
    assert_same(*found)


def test_dask_local_and_standing_cluster(noise_scene, words, trivial, tmp_path):
    from distributed import LocalCluster

    scene = noise_scene(700, 500)
    pipeline.map_scene(scene, words, tmp_path / "serial.zarr", trivial())
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=False) as cluster:
        pipeline.map_scene(
            scene, words, tmp_path / "dask.zarr", trivial(executor="dask", scheduler=cluster.scheduler_address)
        )
    assert_same(arrays(tmp_path / "serial.zarr"), arrays(tmp_path / "dask.zarr"))
    with pytest.raises(OptionError, match="dask scheduler"):
        pipeline.map_scene(
            scene, words, tmp_path / "none.zarr", trivial(executor="dask", scheduler="tcp://127.0.0.1:1")
        )


def test_rotated_scene_contains_its_footprint(write_raster, words, trivial, tmp_path):
    scene = write_raster(np.maximum(smooth(200, 300), 1), transform=rotated())
    facts = pipeline.map_scene(scene, words, tmp_path / "map.zarr", trivial())
    assert "resampled onto a north-up grid" in facts["grid_note"]
    assert facts["source_rotated"]
    label = zarr.open_group(tmp_path / "map.zarr")["label"][:]
    assert 0.4 < (label != 255).mean() < 0.9
    assert facts["valid_pixels"] * 0.25 == pytest.approx(200 * 300 * 0.25, rel=0.02)


def test_the_same_command_continues_and_another_is_refused(noise_scene, words, trivial, tmp_path):
    scene, out = noise_scene(700, 500), tmp_path / "map.zarr"
    this = begin.prepare(scene, words, out, trivial())
    pipeline.compute(this, this.missing()[:2])
    assert "2/6 blocks" in status_of(out).text
    with pytest.raises(DigestMismatchError, match="another model, vocabulary"):
        pipeline.map_scene(scene, vocabulary.load("landcover"), out, trivial())
    with pytest.raises(DigestMismatchError, match="plan"):
        pipeline.map_scene(scene, words, out, trivial(block_pitches=2))
    computed = []
    pipeline.map_scene(scene, words, out, trivial(executor="threads"), progress=lambda r, d, t: computed.append(r.name))
    assert len(computed) == 4
    again = []
    pipeline.map_scene(scene, words, out, trivial(), progress=lambda r, d, t: again.append(r.name))
    assert again == []


def test_a_changed_scene_is_noticed(write_raster, words, trivial, tmp_path):
    scene, out = write_raster(smooth(200, 200)), tmp_path / "map.zarr"
    begin.prepare(scene, words, out, trivial())
    with rasterio.open(scene, "r+") as target:
        target.write(smooth(200, 200, 5))
    with pytest.raises(DigestMismatchError, match="scene"):
        pipeline.resume(out)


def test_foreign_output_is_not_overwritten_unasked(noise_scene, words, trivial, tmp_path):
    out = tmp_path / "map.zarr"
    out.mkdir()
    with pytest.raises(StoreError, match="--overwrite"):
        pipeline.map_scene(noise_scene(100, 100), words, out, trivial())
    pipeline.map_scene(noise_scene(100, 100), words, out, trivial(), overwrite=True)
    with pytest.raises(OptionError, match=r"\*\.zarr"):
        pipeline.map_scene(noise_scene(100, 100), words, tmp_path / "map.tif", trivial())


def test_failed_blocks_are_recorded_and_the_rest_goes_on(write_raster, words, trivial, tmp_path):
    scene, out = write_raster(smooth(700, 500), tiled=True, blockxsize=128, blockysize=128), tmp_path / "map.zarr"
    with scene.open("r+b") as stream:  # the last rows of the raster are lost
        stream.truncate(scene.stat().st_size * 7 // 10)
    this = begin.prepare(scene, words, out, trivial())
    with pytest.raises(IncompleteRunError, match=r"SceneReadError.*scene\.tif") as caught:
        pipeline.run(this)
    assert caught.value.exit_code == 4
    report = status_of(out)
    assert not report.complete
    assert "failed 00002_00000 (attempt 1)" in report.text
    assert not out.exists()
    holes = pipeline.run(replace(this, options=trivial(allow_holes=True)))
    assert holes["holes"]
    assert {r.attempt for r in RunDir(out).records().values()} == {1, 2}
    assert (zarr.open_group(out)["label"][690:] == 255).all()


def test_a_healed_scene_is_finished_by_resume(write_raster, words, trivial, tmp_path):
    scene, out = write_raster(smooth(700, 500), tiled=True, blockxsize=128, blockysize=128), tmp_path / "map.zarr"
    whole = scene.read_bytes()
    this = begin.prepare(scene, words, out, trivial())
    scene.write_bytes(whole[: len(whole) * 7 // 10])
    with pytest.raises(SceneChangedError, match="changed while it was being mapped"):
        pipeline.run(this)
    assert not RunDir(out).records()
    scene.write_bytes(whole)
    pipeline.resume(out)
    pipeline.map_scene(scene, words, tmp_path / "other.zarr", trivial())
    assert files(out) == files(tmp_path / "other.zarr")


def test_scores_are_stored_on_request(noise_scene, words, trivial, tmp_path):
    pipeline.map_scene(noise_scene(200, 150), words, tmp_path / "map.zarr", trivial(store_scores=True))
    group = zarr.open_group(tmp_path / "map.zarr")
    score, label, confidence = group["score"][:], group["label"][:], group["confidence"][:]
    assert score.shape == (6, 200, 150)
    np.testing.assert_array_equal(np.take_along_axis(score, label[None].astype(int), 0)[0], confidence)


def test_kill_at_any_moment_and_go_on_gives_the_same_bytes(noise_scene, tmp_path):
    """SIGKILL at three random moments, then the same command: every chunk file equals the undisturbed run's.

    Moments are shares of the blocks and a little more: a share of the calm run's time would miss whenever the machine's
    load changes between the two.
    """
    scene = noise_scene(1300, 1300)
    command = [
        sys.executable,
        "-m",
        "ovrs",
        "map",
        str(scene),
        "--vocabulary",
        "demo",
        "--model",
        "trivial",
        "--set",
        "run.block_pitches=1",
        "-o",
    ]
    env = environment(tmp_path)
    subprocess.run([*command, str(tmp_path / "calm.zarr")], check=True, env=env, capture_output=True)

    def blocks(name):
        return len(list((tmp_path / f"{name}.run" / "blocks").glob("*.json")))

    assert blocks("calm") > 3
    rng = np.random.default_rng()
    killed = 0
    for share in sorted(rng.uniform(0, 0.8, 3)):
        process = subprocess.Popen(
            [*command, str(tmp_path / "rough.zarr")], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and blocks("rough") < share * blocks("calm"):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 1
    done = subprocess.run(
        [*command, str(tmp_path / "rough.zarr")], check=False, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "calm.zarr") == files(tmp_path / "rough.zarr")
    assert_same(arrays(tmp_path / "calm.zarr"), arrays(tmp_path / "rough.zarr"))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("method", ["none", "tmpa", "tmpa_shift", "tmpa_compat"])
def test_bundled_model_maps_with_every_method(method, write_raster, words, tmp_path):
    from ovrs import options
    from ovrs.demo.synth import World

    rgb, _ = World(seed=5).render(0, 0, 330, 250)
    scene = write_raster(rgb)
    out = tmp_path / "map.zarr"
    facts = pipeline.map_scene(scene, words, out, options.build(method={"method": method}, run={"block_pitches": 1}))
    assert facts["model"]["method"] == method
    assert facts["valid_pixels"] == 330 * 250
    assert len(np.unique(zarr.open_group(out)["label"][:])) > 1
    assert set(facts["tile_events"]) <= {"adapted", "reverted_entropy", "reverted_collapse", "no_prototype"}


def test_bundled_frozen_map_does_not_depend_on_its_blocks(write_raster, words, tmp_path):
    from ovrs import options
    from ovrs.demo.synth import World

    scene = write_raster(World(seed=6).render(0, 0, 500, 420)[0])
    for pitches in (1, 8):
        pipeline.map_scene(
            scene,
            words,
            tmp_path / f"{pitches}.zarr",
            options.build(method={"method": "none"}, run={"block_pitches": pitches}),
        )
    assert_same(arrays(tmp_path / "1.zarr"), arrays(tmp_path / "8.zarr"))


def test_one_class_is_refused_with_advice(noise_scene, tmp_path):
    with pytest.raises(OptionError, match="background"):
        pipeline.map_scene(
            noise_scene(64, 64), vocabulary.from_names(["water"]), tmp_path / "m.zarr", pipeline_options()
        )


def pipeline_options():
    from ovrs.options import MapOptions

    return MapOptions()


def test_paths_stay_where_they_were_put(noise_scene, words, trivial, tmp_path):
    before = set(Path.cwd().iterdir())
    pipeline.map_scene(noise_scene(64, 64), words, tmp_path / "deep" / "er" / "m.zarr", trivial())
    assert (tmp_path / "deep/er/m.run/run.json").exists()
    assert set(Path.cwd().iterdir()) == before


def test_scene_level_adaptation_is_learned_once_and_leaves_no_seams(tmp_path):
    """Kept beside the run, used by every block and after a resume; any block size gives the same map."""
    scene = tmp_path / "scene.tif"
    write_scene(scene, height=700, width=700, world=World(seed=3, gsd=0.5))
    words = vocabulary.load("demo")
    maps = []
    for name, block in (("a", 2), ("b", 1)):
        chosen = options.build(
            method={"method": "tmpa", "adaptation": "scene", "scene_tiles": 3},
            run={"block_pitches": block, "pyramid": False},
        )
        facts = pipeline.map_scene(scene, words, tmp_path / f"{name}.zarr", chosen)
        assert facts["scene_adaptation"]["tiles"] == 3
        maps.append(np.asarray(open_map(tmp_path / f"{name}.zarr").label[:]))
    np.testing.assert_array_equal(*maps)
    learned = tmp_path / "a.run/adaptation.npz"
    before = learned.stat().st_mtime_ns
    begin.resume(tmp_path / "a.zarr")
    assert learned.stat().st_mtime_ns == before
    learned.unlink()
    with pytest.raises(StoreError, match="begin anew"):
        segmenters.build(replace(begin.build_job(scene, words, tmp_path / "c.zarr", chosen)[0].spec, state=learned))
    with pytest.raises(OptionError, match="adaptation belongs to tmpa"):
        options.build(method={"method": "none", "adaptation": "scene"})
