"""Locks that fence: a process that was stopped beyond its lock's expiry changes nothing when it goes on."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import environment

from ovrs import pipeline
from ovrs.errors import DigestMismatchError, StoreLockedError
from ovrs.objects.claim import Generations
from ovrs.objects.folder import Folder
from ovrs.run import begin, finish, verify, work
from ovrs.run import lock as locks
from ovrs.run.lock import Lock
from ovrs.run.rundir import BlockRecord, RunDir

ROOT = Path(__file__).parents[1]


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_locks(folder):
    return {
        name: content
        for name, content in contents(folder).items()
        if not name.startswith("lock.") and ".ovrs-part-" not in name
    }


@pytest.fixture
def quick(monkeypatch):
    """Locks expire within a second."""
    monkeypatch.setattr(locks, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.2)


def taken_over(lock):
    """Another process takes a lock over, as one that found it silent."""
    places = Generations(Folder(lock.run.path))
    return places.take("lock", max(places.listed("lock")) + 1, lambda word: json.dumps({"token": word}).encode())


# ---- one process


def test_every_write_of_a_holder_that_was_taken_over_is_refused(noise_scene, words, trivial, tmp_path):
    out = tmp_path / "m.zarr"
    job = begin.prepare(noise_scene(400, 400), words, out, trivial())
    with Lock(job.run_dir) as lock:
        job = pickle.loads(pickle.dumps(replace(job, fence=lock.fence)))  # as a worker gets it
        done = [r for r in work.run_blocks(job, job.missing()) if r.finished]
        assert len(done) == job.plan.block_count
        taken_over(lock)
        before = contents(tmp_path)
        for write in (
            lambda: job.run_dir.record(BlockRecord(name=done[0].name, status="done")),
            lambda: job.run_dir.forget(done[0].name),
            lambda: list(work.run_blocks(job, [done[0].name])),
            lambda: finish.finish(job),
            lambda: verify.write_manifest(job.run_dir, {}, {}),
            lambda: zarr.open_group(job.target.unfinished(), mode="r+").attrs.update({"x": 1}),
            lambda: zarr.open_group(job.target.unfinished(), mode="r+").create_group("2", overwrite=True),
            job.target.commit,
            job.target.discard,
            job.run_dir.clear,
        ):
            with pytest.raises(StoreLockedError, match="taken over"):
                write()
        assert contents(tmp_path) == before
    assert (job.run_dir.path / "lock.2.json").exists()  # the other's


def test_a_holder_whose_heartbeat_is_late_gives_up_before_its_next_write(tmp_path, quick):
    run = RunDir(tmp_path / "a.zarr")
    with Lock(run) as lock:
        fenced = RunDir(run.store, lock.fence)
        fenced.record(BlockRecord(name="00000_00000", status="done"))
        time.sleep(0.5)
        fenced.record(BlockRecord(name="00000_00001", status="done"))  # the heartbeat keeps it
        lock.claim.alive -= 0.9
        with pytest.raises(StoreLockedError, match="no sign of life for"):
            fenced.record(BlockRecord(name="00000_00002", status="done"))
        assert not lock.claim.beat()  # late once, late for ever
        with pytest.raises(StoreLockedError):
            fenced.forget("00000_00000")
    assert sorted(run.records()) == ["00000_00000", "00000_00001"]


def test_a_block_that_is_done_never_becomes_failed(tmp_path):
    run = RunDir(tmp_path / "a.zarr")
    done = BlockRecord(name="00000_00000", status="done", crc="00ff")
    run.record(done)
    assert run.record(BlockRecord(name="00000_00000", status="failed", reason="late")) == done
    assert run.records() == {done.name: done}


def test_the_digest_is_compared_again_under_the_lock(noise_scene, words, trivial, tmp_path):
    scene, out = noise_scene(300, 300), tmp_path / "m.zarr"
    first = begin.prepare(scene, words, out, trivial())
    pipeline.map_scene(scene, words, out, trivial(block_pitches=2), overwrite=True)
    whole = contents(tmp_path)
    out.rename(tmp_path / "m.zarr.partial")
    with pytest.raises(DigestMismatchError):
        pipeline.run(first)
    (tmp_path / "m.zarr.partial").rename(out)
    assert contents(tmp_path) == whole


def test_prepare_and_run_take_the_lock_once(noise_scene, words, trivial, tmp_path, monkeypatch):
    taken, real = [], Lock._take
    monkeypatch.setattr(Lock, "_take", lambda self: taken.append(1) or real(self))
    pipeline.map_scene(noise_scene(200, 200), words, tmp_path / "m.zarr", trivial())
    assert len(taken) == 1
    assert not list((tmp_path / "m.run").glob("lock*"))


def test_many_takers_of_a_silent_lock_one_wins(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    run = RunDir(tmp_path / "a.zarr")
    run.path.mkdir()
    (run.path / "lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(run.path / "lock.json", (1, 1))
    held = []

    def take(_):
        try:
            with Lock(RunDir(run.store)):
                held.append(1)
                time.sleep(0.5)
        except StoreLockedError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1


# ---- real processes, stopped at each stage


STOPPED = """
import os, signal, sys
from pathlib import Path
from ovrs import options, pipeline
from ovrs.cli import edge
from ovrs.run import finish, lock, verify, work
from ovrs.run.rundir import RunDir
from ovrs.store import layout, pyramid
from ovrs.store.target import FolderTarget
from ovrs.words import vocabulary
lock.EXPIRY_SECONDS, lock.HEARTBEAT_SECONDS = 8.0, 1.0
stage, scene, out, reached = sys.argv[1:]
places = {
    "schema": (FolderTarget, "begin"), "description": (RunDir, "begin"), "block": (layout, "write_block"),
    "marker": (RunDir, "record"), "overviews": (pyramid, "_reduce"), "manifest": (verify, "write_manifest"),
    "commit": (FolderTarget, "commit"), "last word": (RunDir, "complete"),
}
where, name = places[stage]
real = getattr(where, name)
calls = []
def stopping(*given, **named):
    calls.append(1)
    if len(calls) == (2 if stage in ("block", "marker") else 1):
        Path(reached).touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*given, **named)
setattr(where, name, stopping)
chosen = options.build(model={"model": "trivial", "crop": 64}, run={"block_pitches": 2})
def run():
    pipeline.map_scene(scene, vocabulary.load("demo"), out, chosen)
try:
    run()
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 99))
"""
STAGES = ("schema", "description", "block", "marker", "overviews", "manifest", "commit", "last word")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_process_stopped_at_any_stage_changes_nothing_when_it_goes_on(
    stage, noise_scene, words, tmp_path, monkeypatch
):
    """Seconds that a machine which others use leaves to each process."""
    from ovrs import options

    monkeypatch.setattr(locks, "EXPIRY_SECONDS", 8.0)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 1.0)
    scene, out, reached = noise_scene(700, 600), tmp_path / "m.zarr", tmp_path / "reached"
    chosen = options.build(model={"model": "trivial", "crop": 64}, run={"block_pitches": 2})
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, stage, scene, out, reached],
        cwd=ROOT,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while not reached.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(9)
        pipeline.map_scene(scene, words, out, chosen)
        whole = {**contents(out), **without_locks(RunDir(out).path)}
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    after = {**contents(out), **without_locks(RunDir(out).path)}
    assert [name for name in whole.keys() | after.keys() if whole.get(name) != after.get(name)] == [], said
    assert verify.check(out).problems == ()
    assert process.returncode == 3, said
    assert "StoreLockedError" in said
    assert "nothing more" in said.lower()
    assert not list(tmp_path.glob("*.partial*"))
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", chosen)
    for layer in ("label", "confidence", "2/label"):
        there, here = (zarr.open_group(p, mode="r")[layer][:] for p in (out, tmp_path / "quiet.zarr"))
        np.testing.assert_array_equal(there, here)
