"""Beyond one machine: object storage against a local S3 server, the ledger, collections, lost workers and schedulers."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_55_stopped import fail_in_the_first_row

import ovrs
from ovrs import pipeline
from ovrs.collection import catalog
from ovrs.collection.imagery import images
from ovrs.collection.ledger import Image, Ledger
from ovrs.errors import (
    CatalogError,
    DigestMismatchError,
    IncompleteRunError,
    SceneChangedError,
    SchedulerLostError,
    StoreError,
)
from ovrs.request import Request
from ovrs.run import begin, publish, work

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def s3():
    """A real S3-speaking server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{s3}",
        "AWS_S3_ENDPOINT": s3,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    if not files.exists("maps"):
        files.mkdir("maps")
    yield files
    files.rm("maps", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # botocore and moto
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def labels(store):
    group = zarr.open_group(store, mode="r")
    return group["label"][:], group["confidence"][:]


def test_a_scene_goes_from_s3_to_s3(bucket, noise_scene, words, trivial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = noise_scene(400, 300)
    bucket.put_file(str(scene), "maps/in/scene.tif")
    url = "s3://maps/out/scene.zarr"
    facts = pipeline.map_scene("s3://maps/in/scene.tif", words, url, trivial())
    pipeline.map_scene(scene, words, tmp_path / "local.zarr", trivial())
    for there, here in zip(labels(url), labels(tmp_path / "local.zarr"), strict=True):
        np.testing.assert_array_equal(there, here)
    assert not list((tmp_path / "ovrs-staging").glob("*"))  # published, so taken away
    again = pipeline.map_scene("s3://maps/in/scene.tif", words, url, trivial())
    assert again["digest"] == facts["digest"]
    with pytest.raises(DigestMismatchError):
        pipeline.map_scene("s3://maps/in/scene.tif", words, url, trivial(block_pitches=3))


def test_another_scene_under_the_same_key_is_noticed(bucket, noise_scene, words, trivial, tmp_path):
    scene, uri, out = noise_scene(400, 300), "s3://maps/in/again.tif", tmp_path / "m.zarr"
    bucket.put_file(str(scene), "maps/in/again.tif")
    this = begin.prepare(uri, words, out, trivial())
    assert all(r.finished for r in work.run_blocks(this, this.missing()[:1]))
    bucket.put_file(str(scene), "maps/in/again.tif")  # the same bytes: the same scene
    assert all(r.finished for r in work.run_blocks(this, this.missing()[:1]))
    bucket.put_file(str(noise_scene(400, 300, seed=1)), "maps/in/again.tif")
    with pytest.raises(SceneChangedError):
        pipeline.run(this)
    with pytest.raises(DigestMismatchError, match="another scene"):
        pipeline.map_scene(uri, words, out, trivial())


@pytest.mark.parametrize("remote", [True, False])
def test_a_publish_that_was_cut_off_is_never_seen_half_and_goes_on(
    bucket, noise_scene, words, trivial, tmp_path, monkeypatch, remote
):
    store = tmp_path / "m.zarr"
    pipeline.map_scene(noise_scene(400, 300), words, store, trivial())
    url = "s3://maps/cut/m.zarr" if remote else f"file://{tmp_path}/published/m.zarr"
    real, sent = publish._put, []

    def cut(files, source, target):
        if len(sent) == 5:
            raise ConnectionError("the line went dead")
        sent.append(target)
        real(files, source, target)

    monkeypatch.setattr(publish, "_put", cut)
    with pytest.raises(StoreError, match="run the same command again"):
        publish.publish(store, url)
    with pytest.raises(StoreError, match="only partly published"):
        ovrs.open(url)
    assert publish.published_facts(url) is None
    monkeypatch.setattr(publish, "_put", real)
    total = sum(p.is_file() for p in store.rglob("*"))
    assert publish.publish(store, url) == total - 5
    assert publish.published_facts(url)["classes"]
    with ovrs.open(url) as mapped:
        np.testing.assert_array_equal(mapped.to_xarray().label, ovrs.open(store).label[:])
    for there, here in zip(labels(url), labels(store), strict=True):
        np.testing.assert_array_equal(there, here)
    assert publish.publish(store, url) == 0


@pytest.mark.parametrize("remote", [True, False])
def test_a_map_that_is_replaced_is_the_old_one_or_none_or_the_new_one(
    bucket, noise_scene, words, trivial, tmp_path, monkeypatch, remote
):
    """Cut off after every single write or removal, with a reader each time."""
    import fsspec

    scene = noise_scene(90, 80)
    old, new = tmp_path / "old.zarr", tmp_path / "new.zarr"
    pipeline.map_scene(scene, words, old, trivial())
    pipeline.map_scene(scene, words, new, trivial(block_pitches=3))
    url = "s3://maps/swap/m.zarr" if remote else f"file://{tmp_path}/published/m.zarr"
    publish.publish(old, url)
    files = fsspec.core.url_to_fs(url)[0]
    seen, left = set(), [0]

    def stopping(name):
        real = getattr(files, name)

        def call(*given, **named):
            if left[0] <= 0:
                raise ConnectionError("the line went dead")
            left[0] -= 1
            return real(*given, **named)

        return call

    for name in ("rm_file", "pipe_file", "put_file"):
        monkeypatch.setattr(files, name, stopping(name))
    for steps in range(1000):
        left[0] = steps + 1
        try:
            publish.publish(new, url, overwrite=True)
        except StoreError:
            assert steps < 200
        try:
            with ovrs.open(url) as mapped:
                np.asarray(mapped.label[:])
                seen.add(mapped.record.options.run["block_pitches"])
        except StoreError:
            seen.add(None)
        if publish.published_facts(url) and seen >= {3}:
            break
    assert None in seen
    with ovrs.open(url) as mapped, ovrs.open(new) as wanted:
        np.testing.assert_array_equal(np.asarray(mapped.label[:]), np.asarray(wanted.label[:]))
    left[0] = 10
    assert publish.publish(new, url, overwrite=True) == 0


def test_another_map_is_not_overwritten_by_accident(bucket, noise_scene, words, trivial, tmp_path):
    scene = noise_scene(200, 200)
    pipeline.map_scene(scene, words, tmp_path / "a.zarr", trivial())
    pipeline.map_scene(scene, words, tmp_path / "b.zarr", trivial(block_pitches=3))
    publish.publish(tmp_path / "a.zarr", "s3://maps/one.zarr")
    with pytest.raises(StoreError, match="holds another map"):
        publish.publish(tmp_path / "b.zarr", "s3://maps/one.zarr")
    publish.publish(tmp_path / "b.zarr", "s3://maps/one.zarr", overwrite=True)
    bucket.pipe_file("maps/other/readme.txt", b"mine")
    with pytest.raises(StoreError, match="was not published by ovrs"):
        publish.publish(tmp_path / "a.zarr", "s3://maps/other")


def test_a_published_map_with_holes_is_replaced_by_a_whole_one(
    bucket, noise_scene, words, trivial, tmp_path, monkeypatch
):
    scene, url = noise_scene(700, 300), "s3://maps/holes/m.zarr"
    wanted = Request(uri=scene, words=words, target=url, options=trivial(allow_holes=True))
    with monkeypatch.context() as while_full:
        fail_in_the_first_row(while_full)
        assert pipeline.map(wanted, staging=tmp_path / "staging")["holes"]
    facts = pipeline.map(replace(wanted, options=trivial()), staging=tmp_path / "staging")
    assert facts["holes"] == publish.published_facts(url)["holes"] == []


@pytest.mark.parametrize("root", ["s3://maps/products", "folder"])
def test_one_of_many_watchers_gets_an_image(bucket, tmp_path, root):
    place = root if "://" in root else str(tmp_path / root)
    image = Image("a", "/data/a.tif", "1-1")
    won = []
    ledgers = [Ledger(place) for _ in range(8)]
    threads = [threading.Thread(target=lambda own=own: won.append(own.claim(image))) for own in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1
    ledgers[0].done(image, map="a.zarr")
    assert not Ledger(place).claim(image)
    assert Ledger(place).claim(Image("a", "/data/a.tif", "2-2"))  # the file changed: another image
    assert [e["status"] for e in Ledger(place).entries()].count("done") == 1


def test_claims_of_the_dead_expire_and_the_hopeless_are_left(tmp_path, monkeypatch):
    from ovrs.collection import ledger as room

    ledger, image = Ledger(str(tmp_path)), Image("a", "a", "1")
    assert ledger.claim(image)
    assert not Ledger(str(tmp_path)).claim(image)
    monkeypatch.setattr(room, "EXPIRY_SECONDS", -1.0)
    assert Ledger(str(tmp_path)).claim(image)
    assert Ledger(str(tmp_path)).entry(image)["attempt"] == 2
    other = Image("b", "b", "1")
    for attempt in range(room.MAX_ATTEMPTS):
        own = Ledger(str(tmp_path))
        assert own.claim(other)
        with pytest.raises(RuntimeError), own.working_on(other):
            raise RuntimeError("no luck")
        assert own.entry(other)["attempt"] == attempt + 1
    assert not Ledger(str(tmp_path)).claim(other)
    assert "no luck" in Ledger(str(tmp_path)).entry(other)["reason"]


def test_files_that_still_grow_are_left_for_the_next_look(noise_scene, tmp_path):
    noise_scene(50, 50, name="a.tif")
    (tmp_path / "c.yaml").write_text('version: 1\ncollections:\n  new: {pattern: "*.tif", vocabulary: demo}\n')
    known = catalog.load(tmp_path / "c.yaml")
    assert images(known, "new") == []
    found = images(known, "new", settle=0)
    assert [i.name for i in found] == ["a"]
    (tmp_path / "a.tif").touch()
    assert images(known, "new", settle=0)[0].key != found[0].key


class _Stac(BaseHTTPRequestHandler):
    """A STAC API with one collection of three items, two a page."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(
            {
                "type": "Catalog",
                "id": "c",
                "stac_version": "1.0.0",
                "description": "d",
                "links": self._links(),
                "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
            }
        )

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        start = int(asked.get("token", 0))
        page = [self._item(i) for i in range(3)][start : start + 2]
        links = []
        if start + 2 < 3:
            links = [
                {"rel": "next", "href": f"{self._base()}/search", "method": "POST", "body": {**asked, "token": "2"}}
            ]
        self._answer({"type": "FeatureCollection", "features": page, "links": links})

    def _base(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def _links(self):
        return [
            {"rel": "self", "href": self._base()},
            {"rel": "root", "href": self._base()},
            {"rel": "search", "href": f"{self._base()}/search", "method": "POST", "type": "application/geo+json"},
        ]

    def _item(self, i):
        assets = {"visual": {"href": f"https://example.org/{i}.tif"}} if i != 1 else {"other": {"href": "x"}}
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"item{i}",
            "collection": "naip",
            "links": [],
            "assets": assets,
            "geometry": {"type": "Point", "coordinates": [6, 50]},
            "bbox": [6, 50, 6, 50],
            "properties": {"datetime": "2026-01-01T00:00:00Z", "updated": f"2026-02-0{i + 1}T00:00:00Z"},
        }

    def _answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_stac_search_gives_images(tmp_path, caplog):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stac)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    text = f"version: 1\ncollections:\n  api: {{vocabulary: demo, stac: {{url: '{url}', collections: [naip], bbox: [6, 50, 7, 51]}}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    try:
        found = images(catalog.load(tmp_path / "c.yaml"), "api")
    finally:
        server.shutdown()
        server.server_close()
    assert [(i.name, i.uri) for i in found] == [
        ("item0", "https://example.org/0.tif"),
        ("item2", "https://example.org/2.tif"),
    ]
    assert found[0].fingerprint.startswith("2026-02-01")
    assert "item1 has no asset visual" in caplog.text
    assert server.asked[0]["bbox"] == [6, 50, 7, 51]
    with pytest.raises(CatalogError, match="does not answer"):
        images(catalog.load(tmp_path / "c.yaml"), "api")


# ---- Dask ------------------------------------------------------------------------------------------------------------


class Suicidal:
    """A picklable job that kills its process for one item, once or always."""

    def __init__(self, flag, victim, always):
        self.flag, self.victim, self.always = flag, victim, always

    def __call__(self, item):
        import os
        import signal

        if item == self.victim and (self.always or not self.flag.exists()):
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item * 2

    def lost(self, item, error):
        return f"lost {item}"


@pytest.mark.parametrize("always", [False, True])
def test_a_dying_worker_loses_nothing_and_a_poisoned_item_is_recorded(tmp_path, always):
    from ovrs.engine.execute import run
    from ovrs.options import RunOptions

    work = Suicidal(tmp_path / "died", 3, always)
    options = RunOptions(executor="dask", workers=2)
    found = list(run(options, work, range(6), lost=work.lost))
    wanted = {0, 2, 4, 8, 10, "lost 3" if always else 6}
    assert set(found) == wanted
    assert len(found) == 6


class Poisoned:
    """A picklable job over lists of numbers that kills its process for one number."""

    def __init__(self, victim):
        self.victim = victim

    def __call__(self, numbers):
        import os
        import signal

        if self.victim in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        return [2 * n for n in numbers]

    def parts(self, numbers):
        return [[n] for n in numbers]

    def lost(self, numbers, error):
        return [f"{type(error).__name__} {n}" for n in numbers]


def test_an_item_that_kills_workers_is_divided_and_only_its_poison_is_lost():
    import dask

    from ovrs.engine.execute import run
    from ovrs.options import RunOptions

    work, options = Poisoned(3), RunOptions(executor="dask", workers=1)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):  # the first death of a worker is enough
        done = list(run(options, work, [[0, 1], [2, 3]], parts=work.parts, lost=work.lost))
    found = [n for numbers in done for n in numbers]
    assert sorted(map(str, found)) == ["0", "2", "4", "KilledWorker 3"]


def test_records_say_what_failed_in_a_field(noise_scene, words, trivial, tmp_path, monkeypatch):
    """Also after a change of process: what a retry decides by is no text."""
    import pickle

    from ovrs.store import layout as store

    def full(*_, **__):
        raise ConnectionResetError("SceneReadError: words that lie")

    monkeypatch.setattr(store, "write_block", full)
    out = tmp_path / "m.zarr"
    with pytest.raises(IncompleteRunError) as caught:
        pipeline.map_scene(noise_scene(100, 100), words, out, trivial())
    there = pickle.loads(pickle.dumps(caught.value))
    assert [(r.name, r.error) for r in there.records] == [("00000_00000", "ConnectionResetError")]
    job = begin.resume(out)
    (lost,) = work.Worker(job).lost(["00000_00000"], MemoryError("no more"))
    assert (lost.error, lost.attempt) == ("MemoryError", 2)
    assert job.run_dir.record_of(lost.name) == lost


@pytest.fixture
def processes(tmp_path):
    """Start real processes; they are ended, and their logs shown, when the test fails."""
    started = []

    def start(*command, name="process", **settings):
        log = (tmp_path / f"{name}.log").open("w")
        started.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, **settings))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for log in tmp_path.glob("*.log"):
        sys.stdout.write(f"--- {log.name}\n{log.read_text()[-3000:]}")  # shown when the test fails


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def dask(*arguments):
    return [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]


def wait_workers(address, count):
    from distributed import Client

    with Client(address, timeout="30s", set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def test_a_restarted_scheduler_is_waited_for(processes, noise_scene, words, trivial, tmp_path, monkeypatch):
    """Scheduler and worker end in the middle; both come back; the map equals the undisturbed one."""
    from ovrs.engine import cluster

    monkeypatch.setattr(cluster, "RECONNECT_SECONDS", 60.0)
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    worker = [
        "worker",
        address,
        "--nthreads",
        1,
        "--no-dashboard",
        "--resources",
        "GPU=1",
        "--local-directory",
        tmp_path,
    ]
    running = [processes(*dask(*scheduler), name="s1"), processes(*dask(*worker), name="w1")]
    wait_workers(address, 1)
    scene, out = noise_scene(900, 700), tmp_path / "m.zarr"
    options = trivial(executor="dask", scheduler=address, resources={"GPU": 1}, batch=1)
    this = begin.prepare(scene, words, out, options)
    seen = []

    def progress(record, done, total):
        seen.append(record.name)
        if len(seen) == 2:
            for process in running:
                process.kill()
                process.wait()
            processes(*dask(*scheduler), name="s2")
            processes(*dask(*worker), name="w2")

    pipeline.run(this, progress=progress)
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    for a, b in zip(labels(out), labels(tmp_path / "quiet.zarr"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_scheduler_that_stays_away_is_named(processes, noise_scene, words, trivial, tmp_path, monkeypatch):
    from ovrs.engine import cluster

    monkeypatch.setattr(cluster, "RECONNECT_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "RECONNECTS", 0)
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    running = [
        processes(*dask("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"), name="s"),
        processes(*dask("worker", address, "--nthreads", 1, "--no-dashboard", "--local-directory", tmp_path), name="w"),
    ]
    wait_workers(address, 1)
    out = tmp_path / "m.zarr"
    this = begin.prepare(noise_scene(900, 700), words, out, trivial(executor="dask", scheduler=address, batch=1))

    def progress(record, done, total):
        if done == 1:
            for process in running:
                process.kill()
                process.wait()

    with pytest.raises(SchedulerLostError, match=r"finished blocks are kept, `ovrs resume` goes on"):
        pipeline.run(this, progress=progress)
    assert 1 <= len(this.run_dir.records()) < this.plan.block_count


# ---- faults on one machine -----------------------------------------------------------------------------------------------


def test_a_full_disk_is_recorded_and_the_rest_can_be_resumed(noise_scene, words, trivial, tmp_path, monkeypatch):
    from ovrs.store import layout as store

    scene, out = noise_scene(700, 500), tmp_path / "m.zarr"
    real, calls = store.write_block, []

    def full(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(*arguments, **named)

    monkeypatch.setattr(store, "write_block", full)
    with pytest.raises(StoreError, match="No space left on device"):
        pipeline.map_scene(scene, words, out, trivial())
    monkeypatch.setattr(store, "write_block", real)
    pipeline.resume(out)
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    for a, b in zip(labels(out), labels(tmp_path / "quiet.zarr"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_truncated_tiff_names_the_blocks_and_maps_the_others(noise_scene, words, trivial, tmp_path):
    scene = noise_scene(900, 700, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    data = scene.read_bytes()
    scene.write_bytes(data[: int(len(data) * 0.6)] + b"\0" * (len(data) - int(len(data) * 0.6)))
    out = tmp_path / "m.zarr"
    with pytest.raises(StoreError, match="SceneReadError") as caught:
        pipeline.map_scene(scene, words, out, trivial())
    assert "ovrs resume" in str(caught.value)
    facts = pipeline.map_scene(scene, words, out, trivial(allow_holes=True), overwrite=True)
    assert 0 < len(facts["holes"]) < facts["blocks"]


class _Slow(BaseHTTPRequestHandler):
    """Serves a file by ranges; hangs while told to."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._head(200, len(self.server.content))

    def do_GET(self):
        if self.server.hang:
            time.sleep(2)
            return
        given = self.headers.get("Range")
        if given is None:
            self._head(200, len(self.server.content))
            self.wfile.write(self.server.content)
            return
        first, last = given.removeprefix("bytes=").split("-")
        part = self.server.content[int(first) : int(last or len(self.server.content) - 1) + 1]
        self._head(
            206, len(part), {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(self.server.content)}"}
        )
        self.wfile.write(part)

    def _head(self, status, length, more=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(length), "Accept-Ranges": "bytes", **dict(more)}.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.mark.slow
def test_a_hanging_server_times_out_and_the_run_goes_on_later(noise_scene, words, trivial, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setenv("VSI_CACHE", "FALSE")
    scene = noise_scene(300, 260, tiled=True, blockxsize=64, blockysize=64)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    server.content, server.hang = scene.read_bytes(), False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri, out = f"/vsicurl/http://127.0.0.1:{server.server_port}/scene.tif", tmp_path / "m.zarr"
    try:
        this = begin.prepare(uri, words, out, trivial())
        server.hang = True
        with pytest.raises(StoreError, match="SceneReadError"):
            pipeline.run(this)
        server.hang = False
        pipeline.resume(out)
    finally:
        server.shutdown()
        server.server_close()
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    for a, b in zip(labels(out), labels(tmp_path / "quiet.zarr"), strict=True):
        np.testing.assert_array_equal(a, b)
