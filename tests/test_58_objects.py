"""Maps made straight in object storage: equal to local ones, whole or not there, whatever the store or the net does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import conftest
import numpy as np
import pytest
import s3_server
import zarr

import ovrs
from ovrs import options, pipeline, repair
from ovrs.cli import edge
from ovrs.cli.app import app
from ovrs.collection.ledger import Image, Ledger
from ovrs.errors import DigestMismatchError, IncompleteRunError, OptionError, OutputError, StoreError, StoreLockedError
from ovrs.objects import claim, remote
from ovrs.objects.address import Address, objects_at, place_of
from ovrs.objects.folder import Folder
from ovrs.objects.remote import Remote
from ovrs.run import begin, publish, verify, versions, work
from ovrs.run import lock as locks
from ovrs.run.lock import Lock
from ovrs.run.report import status_of
from ovrs.run.rundir import RunDir

ROOT = Path(__file__).parents[1]
URL = "s3://maps/out/m.zarr"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # botocore and moto
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def server():
    with s3_server.serving() as gate:
        yield gate


@pytest.fixture
def gate(server, monkeypatch):
    """The store with an empty bucket; faults are set on what is returned."""
    for name, value in s3_server.environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OVRS_STAGING", raising=False)
    server.reset()
    s3_server.forget_clients()
    s3_server.make_bucket(server)
    yield server
    server.reset()
    Remote("s3://maps").delete_prefix("")
    s3_server.forget_clients()


def chosen(**run):
    return options.build(model={"model": "trivial", "crop": 64}, run={"block_pitches": 2, **run})


def contents(out):
    """Content of every file by its name; without the record of times in the root metadata."""
    below = objects_at(Address(out) if isinstance(out, str) else out)
    found = {entry.key: below.get(entry.key).content for entry in below.list()}
    for name in ("zarr.json", ".zattrs", ".zmetadata"):
        if name in found:
            content = json.loads(found[name])
            text = json.dumps(content)
            record = content.get("attributes", content.get("metadata", {}).get(".zattrs", content)).get("ovrs", {})
            for key in ("begun", "finished", "seconds"):
                text = text.replace(json.dumps(record.get(key)), "null") if key in record else text
            found[name] = text.encode()
    return found


def same_as_local(url, scene, words, folder, **run):
    local = folder / "quiet.zarr"
    pipeline.map_scene(scene, words, local, chosen(**{"shards": True, **run}))
    there, here = contents(url), contents(local)
    known = [name for name in there if name not in ("zarr.json", ".zattrs", ".zmetadata")]
    assert there.keys() == here.keys()
    assert [name for name in known if there[name] != here[name]] == []


# ---- the interface, the same for both kinds of place


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_the_interface_is_the_same_in_a_folder_and_in_a_bucket(kind, gate, tmp_path):
    place = Folder(tmp_path / "x") if kind == "folder" else Remote("s3://maps/a b/x")
    assert (place.get("k"), place.head("k"), place.list(), place.part("k", 0, 1)) == (None, None, [], None)
    first = place.put_if_absent("k/one", b"1")
    assert first
    assert place.put_if_absent("k/one", b"2") == ""
    assert place.get("k/one") == (b"1", first)
    second = place.put_if_match("k/one", b"22", first)
    assert second
    assert second != first
    assert place.put_if_match("k/one", b"3", first) == ""
    assert place.put_if_match("k/none", b"3", first) == ""
    place.put("k2", b"0123456789")
    assert [place.part("k2", *span) for span in ((2, 4), (-3, None), (5, None), (None, None))] == [
        b"23",
        b"789",
        b"56789",
        b"0123456789",
    ]
    assert [(e.key, e.size) for e in place.list()] == [("k/one", 2), ("k2", 10)]
    assert [e.key for e in place.list("k", deep=False)] == ["k2"]
    assert [e.key for e in place.list("k/")] == ["k/one"]
    assert abs(place.head("k2").changed - time.time()) < 60
    place.delete("k2")
    place.delete("k2")
    place.delete_prefix("k/")
    assert place.list() == []

    def refuse():
        raise StoreLockedError("lost")

    guarded = replace(place, guard=refuse)
    for write in (
        lambda: guarded.put("a", b""),
        lambda: guarded.put_if_absent("a", b""),
        lambda: guarded.put_if_match("a", b"", first),
        lambda: guarded.delete("a"),
    ):
        with pytest.raises(StoreLockedError):
            write()
    assert place.list() == []


def test_what_a_store_refuses_is_one_line(gate):
    for action, error in (
        (lambda: Remote("s3://nowhere/x").put("k", b""), OutputError),
        (lambda: Remote("ftp://host/x").put("k", b""), OptionError),
    ):
        with pytest.raises(error) as caught:
            action()
        assert "\n" not in str(caught.value)
        assert "<Error>" not in str(caught.value)


# ---- whole maps


@pytest.mark.slow
def test_a_map_in_a_bucket_is_the_local_one_and_everything_reads_it(gate, noise_scene, words, tmp_path, capsys):
    scene = noise_scene(600, 700)
    pipeline.map_scene(scene, words, URL, chosen())
    same_as_local(URL, scene, words, tmp_path)
    names = contents(URL)
    blocks = begin.build_job(scene, words, Address(URL), chosen())[0].plan.block_count
    for layer in ("label", "confidence"):  # one object per block and array
        assert sum(name.startswith(f"{layer}/c/") for name in names) == blocks
    run = {entry.key for entry in objects_at(Address("s3://maps/out/m.run")).list()}
    assert {"run.json", "manifest.json", "complete.json"} < run
    assert not any(key.startswith("lock") for key in run)
    assert pipeline.map_scene(scene, words, URL, chosen())["blocks"] == blocks  # complete already
    with pytest.raises(DigestMismatchError):
        pipeline.map_scene(scene, words, URL, chosen(block_pitches=3))
    for command in (
        ["status", URL],
        ["verify", URL],
        ["info", URL],
        ["stats", URL],
        ["resume", URL],
        ["export", URL, "--cog", str(tmp_path / "o.tif"), "--png", str(tmp_path / "o.png")],
        ["report", URL, "-o", str(tmp_path / "o.html")],
    ):
        assert edge.run(app, command) == 0, (command, capsys.readouterr())
    with ovrs.open(URL) as mapped, ovrs.open(tmp_path / "quiet.zarr") as here:
        np.testing.assert_array_equal(mapped.label[100:300, 50:99], here.label[100:300, 50:99])
    objects_at(Address(URL)).put("label/c/0/0", b"x")
    assert edge.run(app, ["verify", URL]) == 3
    assert [p.path for p in repair.repair(URL)] == ["label/c/0/0"]
    same_as_local(URL, scene, words, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [{"zarr_format": 2, "shards": None}, {"store_scores": True}, {"shards": False}], ids=str
)
def test_other_layouts_are_equal_too(run, gate, noise_scene, words, tmp_path):
    scene = noise_scene(300, 400)
    pipeline.map_scene(scene, words, URL, chosen(**run))
    same_as_local(URL, scene, words, tmp_path, **run)
    assert verify.check(Address(URL)).problems == ()


@pytest.mark.slow
def test_a_map_is_read_without_a_package_for_its_address(gate, noise_scene, words, monkeypatch):
    from ovrs.store import map as maps

    def none(url):
        raise OptionError("Install s3fs")

    pipeline.map_scene(noise_scene(70, 60), words, URL, chosen())
    monkeypatch.setattr(maps, "filesystem", none)
    with ovrs.open(URL) as mapped:
        assert np.asarray(mapped.label[:]).shape == (70, 60)
        assert mapped.to_xarray()["label"].shape == (70, 60)
    with pytest.raises(StoreError, match="no store at"):
        ovrs.open("s3://maps/none.zarr")
    with pytest.raises(OptionError, match="Install"):
        ovrs.open("ftp://maps/none.zarr")


def test_readers_find_no_map_until_it_is_whole(gate, noise_scene, words, tmp_path, capsys):
    scene, found = noise_scene(90, 90), []

    def look(record, done, total):
        with pytest.raises(StoreError, match="not finished; `ovrs status s3://"):
            ovrs.open(URL)
        with pytest.raises((FileNotFoundError, KeyError, ValueError)):
            zarr.open_group(URL, mode="r", storage_options={"use_listings_cache": False})
        assert not status_of(Address(URL)).complete
        found.append(done)

    pipeline.map_scene(scene, words, URL, chosen(), progress=look)
    assert found
    assert zarr.open_group(URL, mode="r")["label"].shape == (90, 90)
    same_as_local(URL, scene, words, tmp_path)


@pytest.mark.slow
def test_staging_stays_an_option(gate, noise_scene, words, tmp_path, monkeypatch):
    scene = noise_scene(200, 200)
    gate.ignored = ("if-none-match", "if-match")
    remote._prove.cache_clear()
    with pytest.raises(OptionError, match=r"ignores the conditions .*--staging"):
        pipeline.map_scene(scene, words, URL, chosen())
    assert Remote("s3://maps").list() == []
    gate.ignored = ()
    gate.refused = lambda method, path, headers: 501 if method == "PUT" and "If-None-Match" in headers else 0
    with pytest.raises(OptionError, match="--staging"):
        pipeline.map_scene(scene, words, URL, chosen())
    with pytest.raises(OptionError, match="conditional"):
        Ledger("s3://maps/out").claim(Image("a", "/a.tif", "1"))
    monkeypatch.setenv("OVRS_STAGING", str(tmp_path / "staging"))
    assert pipeline.map_scene(scene, words, URL, chosen())["blocks"]
    assert not list((tmp_path / "staging").glob("*"))
    with ovrs.open(URL) as mapped:
        assert mapped.label.shape == (200, 200)


# ---- faults of store and net


@pytest.mark.slow
def test_throttling_and_lost_answers_change_nothing(gate, noise_scene, words, tmp_path):
    scene, state = noise_scene(300, 300), {"n": 0}

    def every(kind, step):
        def decide(method, path):
            if method not in kind or "probe" in path:
                return False
            state["n"] += 1
            return state["n"] % step == 0

        return decide

    gate.throttled = every(("GET", "HEAD", "PUT"), 7)
    gate.lost = every(("PUT",), 5)
    pipeline.map_scene(scene, words, URL, chosen())
    gate.reset()
    same_as_local(URL, scene, words, tmp_path)
    assert verify.check(Address(URL)).problems == ()


def test_a_claim_whose_answer_is_lost_is_held(gate):
    lost = []
    gate.lost = lambda method, path: method == "PUT" and "lock" in path and not lost and (lost.append(1) or True)
    run = RunDir(Address(URL))
    with Lock(run) as lock:
        assert lost
        lock.claim.check()
        with pytest.raises(StoreLockedError, match=str(os.getpid())), Lock(RunDir(Address(URL))):
            pass
    assert run.objects.list() == []


@pytest.mark.slow
def test_a_store_that_goes_away_is_one_line_and_the_run_goes_on(gate, noise_scene, words, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_RETRIES", {"max_retries": 0})
    remote._opened.cache_clear()
    scene = noise_scene(400, 300)
    gate.throttled = lambda method, path: method == "PUT" and "/label/c/1/" in path
    with pytest.raises(IncompleteRunError, match="reduce your request rate") as caught:
        pipeline.map_scene(scene, words, URL, chosen())
    assert caught.value.exit_code == 4
    with pytest.raises(StoreError, match=r"not finished|no map"):
        ovrs.open(URL)
    gate.reset()
    pipeline.resume(URL)
    same_as_local(URL, scene, words, tmp_path)
    remote._opened.cache_clear()


@pytest.mark.slow
def test_a_holder_that_was_taken_over_writes_nothing_more(gate, noise_scene, words, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "FRESH_SECONDS", 0.0)
    scene = noise_scene(300, 300)
    job = begin.prepare(scene, words, Address(URL), chosen())
    with Lock(job.run_dir) as lock:
        late = replace(job, fence=lock.fence)
        name = late.missing()[0]
        other = RunDir(Address(URL)).objects
        other.put_if_absent("lock.2.json", b'{"token": "x"}')
        with pytest.raises(StoreLockedError):
            list(work.run_blocks(late, [name]))
        with pytest.raises(StoreLockedError):
            late.target.commit()
        with pytest.raises(StoreLockedError):
            late.target.discard()
        other.delete("lock.2.json")
    pipeline.map_scene(scene, words, URL, chosen())
    same_as_local(URL, scene, words, tmp_path)


@pytest.mark.slow
def test_overwrite_shows_the_old_map_or_none_or_the_new_one(gate, noise_scene, words, tmp_path):
    scene, seen = noise_scene(200, 200), set()
    pipeline.map_scene(scene, words, URL, chosen())

    def look(record, done, total):
        with pytest.raises(StoreError):
            ovrs.open(URL)
        seen.add(done)

    pipeline.map_scene(scene, words, URL, chosen(block_pitches=3), overwrite=True, progress=look)
    assert seen
    same_as_local(URL, scene, words, tmp_path, block_pitches=3)
    gate.calls.clear()
    begin.discard(Address(URL))
    assert not Remote("s3://maps").list()


class Cut(BaseException):
    """The end of the process. A KeyboardInterrupt would end the thread in which zarr works."""


@pytest.mark.slow
def test_cut_off_at_every_write_the_same_command_makes_the_same_map(gate, noise_scene, words, tmp_path, monkeypatch):
    """Also within the commit: a reader finds no map, or the whole one."""
    monkeypatch.setattr(remote, "_RETRIES", {"max_retries": 0})
    remote._opened.cache_clear()
    scene, real = noise_scene(70, 60), Remote._writing
    left = [0]

    @contextmanager
    def writing(self, key):
        left[0] -= 1
        if left[0] < 0 and "lock" not in key and ".probe" not in key:
            raise Cut
        with real(self, key):
            yield

    monkeypatch.setattr(Remote, "_writing", writing)
    finished = False
    for steps in range(5, 400, 9):
        left[0] = steps
        try:
            pipeline.map_scene(scene, words, URL, chosen())
            break
        except Cut:
            left[0] = 1000
        try:
            with ovrs.open(URL) as mapped:
                assert np.asarray(mapped.label[:]).shape == (70, 60)
            finished = True
        except StoreError:
            assert not finished
    left[0] = 1000
    remote._opened.cache_clear()
    same_as_local(URL, scene, words, tmp_path)
    assert verify.check(Address(URL)).problems == ()


def test_foreign_objects_and_the_scene_itself_are_not_overwritten(gate, noise_scene, words):
    scene = noise_scene(90, 90)
    Remote("s3://maps/mine.zarr").put("readme.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="not made by ovrs"):
            pipeline.map_scene(scene, words, "s3://maps/mine.zarr", chosen(), overwrite=overwrite)
    with pytest.raises(OptionError, match="lies in the output"):
        pipeline.map_scene("s3://maps/mine.zarr/scene.tif", words, "s3://maps/mine.zarr", chosen())
    assert [e.key for e in Remote("s3://maps").list()] == ["mine.zarr/readme.txt"]


@pytest.mark.slow
def test_a_published_copy_is_known_and_replaced(gate, noise_scene, words, tmp_path):
    scene = noise_scene(90, 90)
    pipeline.map_scene(scene, words, tmp_path / "m.zarr", chosen(shards=True))
    publish.publish(tmp_path / "m.zarr", URL)
    assert pipeline.map_scene(scene, words, URL, chosen())["blocks"]  # the same map
    pipeline.map_scene(scene, words, URL, chosen(block_pitches=3), overwrite=True)
    assert verify.check(Address(URL)).problems == ()
    with pytest.raises(StoreError, match="holds another map"):
        publish.publish(tmp_path / "m.zarr", URL)
    publish.publish(tmp_path / "m.zarr", URL, overwrite=True)
    assert not RunDir(Address(URL)).exists
    with ovrs.open(URL) as mapped:
        assert mapped.record.options.run["block_pitches"] == 2


# ---- processes


COMMAND = ["--vocabulary", "demo", "--model", "trivial", "--method", "none", "--crop", "64", "--block", "2"]


def started(scene, tmp_path, gate, code=""):
    environment = {**conftest.environment(tmp_path), **s3_server.environment(gate)}
    program = f"from ovrs.run import lock, work\n{code}\nfrom ovrs.cli.app import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, "map", str(scene), *COMMAND, "-o", URL],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def blocks_done():
    return len(objects_at(Address("s3://maps/out/m.run")).list("blocks/"))


def wait(condition, process=None):
    until = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_again_and_again_the_map_is_the_undisturbed_one(gate, noise_scene, words, tmp_path):
    scene, rng = noise_scene(900, 900), np.random.default_rng(0)
    for _ in range(6):
        process = started(scene, tmp_path, gate)
        before = blocks_done()
        wait(lambda before=before, p=process: p.poll() is not None or blocks_done() > before)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
    assert started(scene, tmp_path, gate).wait(timeout=240) == 0
    same_as_local(URL, scene, words, tmp_path)
    assert verify.check(Address(URL)).problems == ()


@pytest.mark.slow
def test_of_two_writers_one_stops_and_the_map_is_whole(gate, noise_scene, words, tmp_path):
    scene = noise_scene(900, 900)
    both = [started(scene, tmp_path, gate) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 3], [0, 0]), said  # 0 twice: the second came when the first had finished
    assert codes == [0, 0] or any("is being written by process" in text or "just taken over" in text for text in said)
    same_as_local(URL, scene, words, tmp_path)


@pytest.mark.slow
def test_a_process_stopped_beyond_the_expiry_changes_nothing_in_the_bucket(
    gate, noise_scene, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "EXPIRY_SECONDS", 4.0)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 1.0)
    scene = noise_scene(900, 900)
    process = started(scene, tmp_path, gate, "lock.EXPIRY_SECONDS, lock.HEARTBEAT_SECONDS = 4.0, 1.0")
    try:
        wait(lambda: blocks_done() >= 3, process)
        process.send_signal(signal.SIGSTOP)
        time.sleep(5.5)
        pipeline.map_scene(scene, words, URL, chosen())
        whole, run = contents(URL), contents("s3://maps/out/m.run")
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 3, said
    assert contents(URL) == whole
    left = {k: v for k, v in contents("s3://maps/out/m.run").items() if not k.startswith("lock")}
    assert left == {k: v for k, v in run.items() if not k.startswith("lock")}
    same_as_local(URL, scene, words, tmp_path)


def test_a_file_address_is_a_path_of_this_machine(tmp_path):
    for scheme in ("file://", "FILE://", "local://", "file://localhost"):
        assert place_of(f"{scheme}{tmp_path}/x y/o.zarr") == tmp_path / "x y/o.zarr"
    for scheme in ("s3", "gs", "az", "https", "files"):
        assert str(place_of(f"{scheme}://bucket/o.zarr/")) == f"{scheme}://bucket/o.zarr"


def test_a_file_address_means_the_same_folder_to_every_command(noise_scene, words, tmp_path):
    scene, out = noise_scene(70, 60), tmp_path / "m.zarr"
    url = f"file://{out}"
    first = pipeline.map_scene(scene, words, url, chosen())
    assert pipeline.map_scene(scene, words, out, chosen()) == first
    assert RunDir(out).exists
    with ovrs.open(url) as mapped:
        assert mapped.path == out
    for command in ("status", "verify", "info", "stats", "resume"):
        assert edge.run(app, [command, url]) == 0, command
    assert edge.run(app, ["publish", url, f"file://{tmp_path}/there/m.zarr"]) == 0
    assert versions.content_at(url) == versions.content_at(str(out)) != ""
    assert not versions.is_free(url)
    versions.promote(url, f"file://{tmp_path}/n.zarr", f"file://{tmp_path}/old.zarr")
    assert [path.exists() for path in (out, tmp_path / "n.zarr", tmp_path / "n.run/run.json")] == [False, True, True]


@pytest.mark.parametrize("kind", ["folder", "file", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_copy_without_its_run_directory_is_the_map_that_was_asked_for(
    kind, request, noise_scene, words, tmp_path, monkeypatch
):
    """Equal digests: nothing is computed. Another digest is refused; `--overwrite` makes it anew, with a run directory."""
    if kind == "bucket":
        request.getfixturevalue("gate")
    scene, made, there = noise_scene(90, 80), tmp_path / "m.zarr", tmp_path / "there/m.zarr"
    place = {"folder": str(there), "file": f"file://{there}", "bucket": URL}[kind]
    facts = pipeline.map_scene(scene, words, made, chosen(shards=True))
    if kind == "folder":
        shutil.copytree(made, there)
    else:
        publish.publish(made, place)
    before, computed, real = contents(place_of(place)), [], work._computed
    monkeypatch.setattr(work, "_computed", lambda job, name, *more: computed.append(name) or real(job, name, *more))
    for _ in range(2):
        assert pipeline.map_scene(scene, words, place, chosen(shards=True)) == facts
    with pytest.raises(DigestMismatchError, match="begun with another"):
        pipeline.map_scene(scene, words, place, chosen(block_pitches=3, shards=True))
    assert contents(place_of(place)) == before
    assert (computed, RunDir(place_of(place)).exists) == ([], False)
    told = status_of(place_of(place))
    assert (told.complete, told.facts["done"]) == (True, facts["blocks"])
    assert "a copy without its run directory" in told.text
    pipeline.map_scene(scene, words, place, chosen(shards=True), overwrite=True)
    assert computed
    assert verify.check(place_of(place)).problems == ()


def test_a_folder_that_is_no_whole_map_is_not_taken_for_one(noise_scene, words, tmp_path):
    scene, out = noise_scene(90, 80), tmp_path / "m.zarr"
    pipeline.map_scene(scene, words, out, chosen())
    shutil.rmtree(tmp_path / "m.run")
    (out / "zarr.json").unlink()
    (tmp_path / "empty.zarr").mkdir()
    for place in (out, tmp_path / "empty.zarr"):
        with pytest.raises(StoreError, match="not overwritten" if place == out else "no run directory .*--overwrite"):
            pipeline.map_scene(scene, words, place, chosen())
    assert pipeline.map_scene(scene, words, tmp_path / "empty.zarr", chosen(), overwrite=True)["blocks"]
