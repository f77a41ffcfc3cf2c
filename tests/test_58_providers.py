"""Maps made straight in Google's and Microsoft's object storage: the same bytes as in a folder, by the same code.

Azurite, Microsoft's own emulator, comes with `make test-infra`. For Google there is no emulator that knows conditional
writes of its XML interface, so a stand-in of this project speaks it.
"""

import base64
import email.utils
import hashlib
import hmac
import http.client
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import gcs_server
import numpy as np
import pytest

import ovrs
from ovrs import options, pipeline
from ovrs.cli import edge
from ovrs.cli.app import app
from ovrs.errors import OvrsError, StoreLockedError
from ovrs.objects.address import Address, objects_at
from ovrs.objects.remote import Remote
from ovrs.run import begin, verify, work
from ovrs.run.lock import Lock
from ovrs.run.rundir import RunDir

AZURITE = Path(__file__).parents[1] / "build/azurite/node_modules/.bin/azurite-blob"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every Azurite has; documented, no secret."""


@pytest.fixture(scope="module")
def azurite():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [AZURITE, "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    server = subprocess.Popen([*map(str, command), "--blobHost", "127.0.0.1", "--blobPort", str(port)])
    try:
        until = time.monotonic() + 60
        while True:
            try:
                make_container(port)
                break
            except OSError:
                assert time.monotonic() < until
                assert server.poll() is None
                time.sleep(0.3)
        yield port
    finally:
        server.kill()
        server.wait()


def make_container(port):
    """An empty container `maps`, by a request that is signed as Azure documents it."""
    date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    lines = ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{version}", f"/{ACCOUNT}/{ACCOUNT}/maps"]
    text = "\n".join([*lines, "restype:container"]).encode()
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text, hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0"}
    there = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    there.request("PUT", f"/{ACCOUNT}/maps?restype=container", headers=headers)
    assert there.getresponse().status in (201, 409)
    there.close()


@pytest.fixture(params=["gs", pytest.param("az", marks=pytest.mark.infra)])
def url(request, tmp_path, monkeypatch):
    """Address of a map in an empty bucket."""
    monkeypatch.delenv("OVRS_STAGING", raising=False)
    if request.param == "gs":
        with gcs_server.serving() as server:
            for name, value in gcs_server.environment(server, tmp_path).items():
                monkeypatch.setenv(name, value)
            yield "gs://maps/a b/m.zarr"
        return
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{request.getfixturevalue('azurite')}")
    yield "az://maps/a b/m.zarr"
    Remote("az://maps").delete_prefix("")


def chosen(**run):
    return options.build(model={"model": "trivial", "crop": 64}, run={"block_pitches": 2, "shards": True, **run})


def test_the_interface_is_that_of_a_folder(url):
    place = Remote(url)
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
    spans = ((2, 4), (-3, None), (5, None), (None, None))
    assert [place.part("k2", *span) for span in spans] == [b"23", b"789", b"56789", b"0123456789"]
    assert [(e.key, e.size) for e in place.list()] == [("k/one", 2), ("k2", 10)]
    assert [e.key for e in place.list("k", deep=False)] == ["k2"]
    assert [e.key for e in place.list("k/")] == ["k/one"]
    assert abs(place.head("k2").changed - time.time()) < 60
    place.require_conditional()
    place.delete("k2")
    place.delete("k2")
    place.delete_prefix("k/")
    assert place.list() == []


def test_a_bucket_that_is_not_there_is_named(url):
    nowhere = Remote(f"{url.partition('://')[0]}://nowhere/m.run")
    for write in (lambda: nowhere.put("k", b""), lambda: nowhere.put_if_absent("k", b""), nowhere.require_conditional):
        with pytest.raises(OvrsError, match=r"(?i)nowhere.*(exist|NoSuch|404)") as told:
            write()
        assert "\n" not in str(told.value)
        assert "conditions" not in str(told.value)


@pytest.mark.slow
def test_a_map_is_the_local_one_and_everything_reads_it(url, noise_scene, words, tmp_path):
    scene, local = noise_scene(200, 170), tmp_path / "m.zarr"
    job = begin.prepare(scene, words, Address(url), chosen())
    with Lock(job.run_dir) as lock:
        with pytest.raises(StoreLockedError, match="is being written by process"):
            pipeline.map_scene(scene, words, url, chosen())
        some = replace(job, fence=lock.fence)
        list(work.run_blocks(some, some.missing()[:1]))  # and the process ends here
    assert edge.run(app, ["status", url]) == 4
    facts = pipeline.resume(url)
    pipeline.map_scene(scene, words, local, chosen())
    there, here = (
        {e.key: place.get(e.key).content for e in place.list()} for place in map(objects_at, (Address(url), local))
    )
    assert there.keys() == here.keys()
    assert [k for k in there if k != "zarr.json" and there[k] != here[k]] == []
    assert pipeline.map_scene(scene, words, url, chosen()) == facts
    assert verify.check(Address(url)).problems == ()
    for command in (["status"], ["verify"], ["info"], ["stats"]):
        assert edge.run(app, [*command, url]) == 0
    with ovrs.open(url) as mapped, ovrs.open(local) as wanted:
        np.testing.assert_array_equal(np.asarray(mapped.label[:]), np.asarray(wanted.label[:]))
    pipeline.map_scene(scene, words, url, chosen(block_pitches=3), overwrite=True)
    assert not any(e.key.startswith("lock") for e in RunDir(Address(url)).objects.list())
    begin.discard(Address(url))
    assert Remote(url.rpartition("/")[0]).list() == []
