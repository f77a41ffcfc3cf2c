"""Minutes long: `make test-slow`."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import environment

from ovrs import options, pipeline
from ovrs.demo.synth import World, write_scene
from ovrs.run.rundir import RunDir
from ovrs.run.verify import plan_of
from ovrs.words import vocabulary

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name):
    import sys

    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_seams_of_adapted_tiles_are_within_chance(tmp_path):
    """TMPA on 8192²: class changes on tile and block lines against 64 random offsets of the same lines."""
    write_scene(tmp_path / "s.tif", height=8192, width=8192, world=World(seed=21))
    out = tmp_path / "m.zarr"
    pipeline.map_scene(tmp_path / "s.tif", vocabulary.load("demo"), out, options.build(run={"executor": "threads"}))
    found = benchmark("seams").measure(zarr.open_group(out)["label"][:], plan_of(RunDir(out).description()))
    for family in found:
        if "crop" not in family.name:
            assert family.inside, family


def test_memory_does_not_grow_with_the_scene(tmp_path):
    """Trivial segmenter, real engine, store and export: 20,000² within 20 % of 5,000² above the import baseline."""
    memory = benchmark("memory")
    peaks = {}
    for side in (64, 5000, 20000):
        scene, store = memory.mirrored_scene(tmp_path / f"{side}.tif", side), tmp_path / f"{side}.zarr"
        peaks["map", side] = memory.peak(
            ["map", str(scene), "--vocabulary", "demo", "--model", "trivial", "-o", str(store)]
        )[0]
        peaks["export", side] = memory.peak(
            ["export", str(store), "--cog", str(tmp_path / "c.tif"), "--png", str(tmp_path / "q.png")]
        )[0]
        scene.unlink()
    for command in ("map", "export"):
        small, large = (peaks[command, side] - peaks[command, 64] for side in (5000, 20000))
        assert large <= 1.2 * small, peaks


def test_local_dask_processes_give_the_same_arrays(tmp_path):
    write_scene(tmp_path / "s.tif", height=900, width=900, world=World(seed=22))
    for executor in ("serial", "dask"):
        chosen = options.build(model={"model": "trivial"}, run={"executor": executor, "block_pitches": 1})
        pipeline.map_scene(tmp_path / "s.tif", vocabulary.load("demo"), tmp_path / f"{executor}.zarr", chosen)
    serial, dask = (zarr.open_group(tmp_path / f"{e}.zarr") for e in ("serial", "dask"))
    for name in ("label", "confidence"):
        np.testing.assert_array_equal(serial[name][:], dask[name][:])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_tower_gives_the_same_map():
    from conftest import smooth

    from ovrs.model.clip.build import build_clip_segmenter
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.scene.grid import Window
    from ovrs.words import vocabulary

    crops = (Window(0, 0, 160, 160),)
    rgb, valid = smooth(160, 160), np.ones((160, 160), bool)
    words = vocabulary.load("demo")
    plain, compiled = (
        build_clip_segmenter(ModelOptions(compile=c), MethodOptions(method="none"), words)
        .segment(rgb, valid, crops)
        .scores
        for c in (False, True)
    )
    np.testing.assert_allclose(compiled, plain, atol=1e-4)


def test_a_hundred_kills_change_nothing(tmp_path):
    """SIGKILL at a hundred random moments of twenty runs, each then finished: every array equals the calm run's."""
    write_scene(tmp_path / "s.tif", height=1500, width=1500, world=World(seed=23))
    command = [
        sys.executable,
        "-m",
        "ovrs",
        "map",
        str(tmp_path / "s.tif"),
        "--vocabulary",
        "demo",
        "--model",
        "trivial",
    ]
    command += ["--set", "run.block_pitches=1", "-o"]
    env = environment(tmp_path)
    begun = time.perf_counter()
    subprocess.run([*command, str(tmp_path / "calm.zarr")], check=True, env=env, capture_output=True)
    calm, rng, killed, rounds = time.perf_counter() - begun, np.random.default_rng(), 0, 0
    wanted = zarr.open_group(tmp_path / "calm.zarr", mode="r")
    while killed < 100:
        rounds += 1
        assert rounds < 80, f"only {killed} kills hit a running process"
        out = tmp_path / f"r{rounds}.zarr"
        for moment in rng.uniform(0.3, 1.0, 5):
            process = subprocess.Popen(
                [*command, str(out)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(calm * moment)
            process.send_signal(signal.SIGKILL)
            hit = process.wait() == -signal.SIGKILL
            killed, calm = killed + hit, calm if hit else 0.9 * calm  # too late: the machine has become faster
        done = subprocess.run([*command, str(out)], check=False, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = zarr.open_group(out, mode="r")
        for name in ("label", "confidence", "2/label", "2/confidence"):
            np.testing.assert_array_equal(found[name][:], wanted[name][:])
        shutil.rmtree(out)
    assert not list(tmp_path.glob("*.partial"))


def test_memory_of_polygons_stays_bounded(tmp_path):
    """Polygons of 20,000² labels, many of them crossing blocks: time and peak are printed, the peak is bounded."""
    script = Path(__file__).parents[1] / "benchmarks/vectors.py"
    done = subprocess.run(
        [sys.executable, str(script), "--sizes", "4000", "20000", "--work", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    peaks = [float(line.split("|")[4]) for line in done.stdout.splitlines() if line.startswith(("| 4000", "| 20000"))]
    assert peaks[1] < peaks[0] + 1500, done.stdout
