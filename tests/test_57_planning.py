"""Planning loads no network: with a Dask scheduler the workers describe it, learn from the scene, and are compared."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from conftest import environment, write_clip_directory

from ovrs import options, pipeline
from ovrs.engine import cluster, execute
from ovrs.errors import DigestMismatchError, IncompleteRunError, SchedulerLostError, WeightsError
from ovrs.run import begin, network, segmenters
from ovrs.words import vocabulary

AWAY = {"executor": "dask", "scheduler": "tcp://127.0.0.1:8786", "block_pitches": 1}


@pytest.fixture
def workers(monkeypatch):
    """Questions are answered as by a worker; in this process no segmenter can be built meanwhile."""
    build, asked = segmenters.build, []

    def ask(run, question, *, lost):
        asked.append(question)
        monkeypatch.setattr(segmenters, "build", build)
        answer = question()
        monkeypatch.setattr(segmenters, "build", refuse)
        return answer

    def refuse(spec):
        raise AssertionError("the planning process builds a segmenter")

    monkeypatch.setattr(segmenters, "build", refuse)
    monkeypatch.setattr(execute, "ask", ask)
    return asked


def test_with_a_scheduler_only_workers_build_the_segmenter(workers, noise_scene, words, tmp_path):
    scene = noise_scene(400, 400)
    far = options.build(model={"model": "trivial"}, run=AWAY)
    _, description = begin.build_job(scene, words, tmp_path / "m.zarr", far)
    assert len(workers) == 1
    assert description.model.model == "trivial"


def test_what_is_learned_from_the_scene_is_learned_by_a_worker(workers, directory, noise_scene, words, tmp_path):
    far = options.build(model={"model": str(directory)}, method={"scene_tiles": 2}, run=AWAY)
    job = begin.prepare(noise_scene(200, 200), words, tmp_path / "m.zarr", far)
    assert len(workers) == 2
    assert job.spec.state == tmp_path / "m.run/adaptation.npz"
    assert job.spec.state.is_file()


def test_here_and_there_give_the_same_digest(workers, monkeypatch, noise_scene, words, tmp_path):
    scene, out = noise_scene(400, 400), tmp_path / "m.zarr"
    _, there = begin.build_job(scene, words, out, options.build(model={"model": "trivial"}, run=AWAY))
    monkeypatch.undo()
    here = options.build(model={"model": "trivial"}, run={"block_pitches": 1})
    assert begin.build_job(scene, words, out, here)[1].digest == there.digest


def test_an_error_of_a_worker_is_told_with_its_scheduler(workers, directory, noise_scene, words, tmp_path):
    (directory / "open_clip_model.safetensors").write_bytes(b"no weights")
    far = options.build(model={"model": str(directory)}, run=AWAY)
    with pytest.raises(WeightsError, match=r"said by a worker of tcp://127\.0\.0\.1:8786"):
        begin.build_job(noise_scene(200, 200), words, tmp_path / "m.zarr", far)


def test_a_worker_with_another_network_computes_nothing(noise_scene, words, trivial, tmp_path):
    job = begin.prepare(noise_scene(400, 400), words, tmp_path / "m.zarr", trivial())
    network.require_same(job)
    other = replace(job, facts={**job.facts, "weights": "others", "device": "cuda"})
    with pytest.raises(DigestMismatchError, match=r"device None instead of 'cuda', weights 'none' instead of 'others'"):
        network.require_same(other)
    with pytest.raises(IncompleteRunError, match="another network than the run was begun with") as caught:
        pipeline.run(other)
    assert {record.error for record in caught.value.records} == {"DigestMismatchError"}


def test_workers_that_die_of_the_question_are_one_clear_line(monkeypatch, words):
    from distributed.scheduler import KilledWorker

    def dies(work, items, run, stop):
        yield work.lost(next(iter(items)), KilledWorker("describe", SimpleNamespace(address="tcp://w:1"), 3))

    monkeypatch.setattr(cluster, "run_dask", dies)
    chosen = options.build(model={"model": "trivial"}, run=AWAY)
    spec = segmenters.SegmenterSpec(chosen.model, chosen.method, words)
    with pytest.raises(SchedulerLostError, match="died that were to load the model"):
        network.describe(spec, chosen.run)


PARENT = """
import sys
sys.modules["torch"] = None  # `import torch` fails
from ovrs import options, pipeline
from ovrs.words import vocabulary
scene, model, out, scheduler = sys.argv[1:]
run = {"executor": "dask", "scheduler": scheduler, "block_pitches": 1}
chosen = options.build(model={"model": model}, method={"scene_tiles": 2}, run=run)
pipeline.map_scene(scene, vocabulary.load("demo"), out, chosen)
assert sys.modules["torch"] is None
"""


@pytest.mark.slow
def test_the_parent_of_a_cluster_run_works_without_torch(tiny_clip, noise_scene, tmp_path):
    """Scene-level adaptation, blocks, finish: the map is the one of a single process."""
    from distributed import LocalCluster

    scene, folder = noise_scene(200, 200), tmp_path / "model"
    folder.mkdir()
    write_clip_directory(tiny_clip, folder)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", processes=True) as cluster:
        command = [sys.executable, "-c", PARENT, scene, folder, tmp_path / "far.zarr", cluster.scheduler_address]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment(tmp_path))
        assert done.returncode == 0, done.stderr
    near = options.build(model={"model": str(folder)}, method={"scene_tiles": 2}, run={"block_pitches": 1})
    pipeline.map_scene(scene, vocabulary.load("demo"), tmp_path / "near.zarr", near)
    there, here = (zarr.open_group(tmp_path / f"{name}.zarr", mode="r")["label"][:] for name in ("far", "near"))
    np.testing.assert_array_equal(there, here)
