"""Dask workers as processes: who is taken, who is left out, and who joins later. Processes in `make test-cluster`."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from ovrs import pipeline
from ovrs.engine import door, session, workers
from ovrs.engine.execute import run
from ovrs.errors import OvrsError, StoreError, WorkersUnfitError
from ovrs.options import RunOptions
from ovrs.run import begin, place, work
from ovrs.run.rundir import RunDir
from ovrs.telemetry import JsonLines

ROOT = Path(__file__).parents[1]
ALIKE = {"ovrs": "1", "torch": "2", "threads": "1"}


# ---- who is admitted, without processes -------------------------------------------------------------------------------------


def new_door(**more):
    told = []
    return door.Door({"ovrs": "1"}, mixed=more.pop("mixed", False), admitted=told.append, **more), told


def say(found, address, facts=ALIKE, fault=""):
    found.joined(address, workers.Introduction(f"name-{address}", "host", dict(facts), fault))


def test_the_most_common_kind_of_the_beginning_is_taken_and_others_are_named(caplog):
    found, told = new_door()
    found.present({"a": 1, "b": 1, "c": 1})
    say(found, "a", {**ALIKE, "threads": "8"})
    assert not found.inside  # the others may be of another kind
    say(found, "b")
    say(found, "c")
    assert found.inside == {"b", "c"}
    assert found.slots == 2
    assert "name-a on host is left out: it has threads 8 instead of 1 (run.allow_mixed" in caplog.text
    assert told == [ALIKE]


def test_a_worker_that_joins_later_is_held_to_those_before():
    found, _ = new_door()
    found.present({"a": 2})
    say(found, "a")
    found.present({"a": 2, "b": 4, "c": 1})
    say(found, "b")
    say(found, "c", {**ALIKE, "torch": "3"})
    assert (found.inside, found.slots) == ({"a", "b"}, 6)
    found.present({"b": 4})
    assert (found.inside, found.left_out) == ({"b"}, {})


def test_other_code_is_refused_also_where_most_have_it_and_mixed_takes_all():
    other = {**ALIKE, "ovrs": "2"}
    for mixed, inside in ((False, {"c"}), (True, {"a", "b", "c"})):
        found, told = new_door(mixed=mixed)
        found.present({"a": 1, "b": 1, "c": 1})
        for address, facts in {"a": other, "b": other, "c": ALIKE}.items():
            say(found, address, facts)
        assert found.inside == inside
        assert len(told) == 1 + mixed


def test_a_silent_worker_of_the_beginning_delays_nobody_for_long(monkeypatch):
    monkeypatch.setattr(door, "FIRST_SECONDS", 0.0)
    found, _ = new_door()
    found.present({"a": 1, "hung": 1})
    say(found, "a")
    assert found.inside == {"a"}
    assert found.is_undecided


def test_a_process_that_sees_no_scene_or_no_output_says_why(noise_scene, words, trivial, tmp_path):
    scene, out = noise_scene(64, 64), tmp_path / "m.zarr"
    task = work.Worker.of(begin.prepare(scene, words, out, trivial()))
    assert task.prepare().items() >= {"weights": "none", "device": "cpu"}.items()
    assert task.label(["00000_00000"]) == ("m", "00000_00000")
    scene.rename(tmp_path / "away.tif")
    with pytest.raises(OvrsError, match=r"scene\.tif"):
        task.prepare()
    (tmp_path / "away.tif").rename(scene)
    (tmp_path / "m.run").rename(tmp_path / "away.run")
    with pytest.raises(StoreError, match=r"does not see .*m\.run; all workers must see the output"):
        task.prepare()
    (tmp_path / "away.run").rename(tmp_path / "m.run")
    with pytest.raises(StoreError, match="another run"):
        place.require_seen(task.job, "1999-01-01T00:00:00+00:00")


# ---- processes --------------------------------------------------------------------------------------------------------------


class Failing(workers.Work):
    """Numbers; one of them raises an error that looks like one of the connection."""

    def __init__(self, error):
        self.error = error

    def __call__(self, item):
        if item == 2:
            raise self.error
        return item

    def lost(self, item, error):
        return f"{type(error).__name__}: {error}"


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("error", [CancelledError("mine"), OSError("disk"), TimeoutError("slow")], ids=repr)
def test_an_error_of_an_item_is_its_own(error):
    from distributed.comm.core import CommClosedError

    for kind in {error.__class__: error, CommClosedError: CommClosedError("closed")}.values():
        found = list(run(RunOptions(executor="dask", workers=1), Failing(kind), range(4)))
        assert sorted(map(str, found)) == ["0", "1", "3", f"{type(kind).__name__}: {kind}"]


@pytest.fixture
def site(tmp_path):
    """Scheduler and workers as processes on loopback."""
    found = Site(tmp_path)
    yield found
    for process in found.running.values():
        process.kill()
        process.wait()
    for log in sorted((tmp_path / "logs").glob("*.log")):
        sys.stdout.write(f"--- {log.name}\n{log.read_text()[-3000:]}")  # shown when the test fails


class Site:
    def __init__(self, folder):
        from test_75_cluster import free_port

        self.folder, self.running, port = folder, {}, free_port()
        (folder / "logs").mkdir()
        self.protocol, self.tls = "tcp", []
        self.port = port
        self.env = {**os.environ, "OVRS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}

    @property
    def address(self):
        return f"{self.protocol}://127.0.0.1:{self.port}"

    def start(self, name, *command, env=None, cwd=None):
        with (self.folder / "logs" / f"{name}.log").open("w") as log:
            self.running[name] = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.env, **(env or {})},
                cwd=cwd or self.folder,
            )

    def scheduler(self):
        host = ["--host", f"{self.protocol}://127.0.0.1", "--port", self.port, "--no-dashboard"]
        self.start("scheduler", sys.executable, "-m", "distributed.cli.dask_scheduler", *host, *self.tls)

    def worker(self, name, *, env=None, before=(), nanny=False, start=("-m", "distributed.cli.dask_worker")):
        folder = self.folder / f"worker-{name}"
        folder.mkdir()
        command = [*before, sys.executable, *start, self.address, "--nthreads", 1]
        more = ["--name", name, "--no-dashboard", "--local-directory", folder, *self.tls]
        threads = {"OMP_NUM_THREADS": "1"}
        alone = [] if nanny else ["--no-nanny"]
        self.start(name, *command, *more, *alone, env={**threads, **(env or {})}, cwd=folder)

    def options(self, **run):
        return {"executor": "dask", "scheduler": self.address, "batch": 1, **run}

    def log(self, name):
        return (self.folder / "logs" / f"{name}.log").read_text()

    def wait_registered(self, *names):
        until = time.monotonic() + 600
        while not all("Registered to" in self.log(name) for name in names):
            assert time.monotonic() < until
            time.sleep(0.3)


def same(store, other):
    for array in ("label", "confidence"):
        a, b = (zarr.open_group(s, mode="r")[array][:] for s in (store, other))
        np.testing.assert_array_equal(a, b)


def by_worker(out):
    found = {}
    for record in RunDir(out).records().values():
        found[record.worker] = found.get(record.worker, 0) + 1
    return found


def slow_scene(noise_scene):
    return noise_scene(1300, 1300)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_relative_outputs_and_staging_and_names_of_tasks(site, noise_scene, words, trivial, tmp_path):
    """The guide's own command, given from another folder than the workers'."""
    site.scheduler()
    site.worker("w0")
    scene = noise_scene(500, 400)
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    (tmp_path / "here").mkdir()
    site.wait_registered("w0")
    command = [sys.executable, "-m", "ovrs", "map", str(scene), "--vocabulary", "demo", "--model", "trivial"]
    command += ["--method", "none", "--set", "run.block_pitches=1", "--set", f"run.scheduler={site.address}"]
    for out, staging in (("o.zarr", None), (f"file://{tmp_path}/there/u.zarr", "stage")):
        env = {**site.env, **({"OVRS_STAGING": staging} if staging else {})}
        done = subprocess.run(
            [*command, "-o", out],
            cwd=tmp_path / "here",
            env=env,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    same(tmp_path / "here/o.zarr", tmp_path / "quiet.zarr")
    same(tmp_path / "there/u.zarr", tmp_path / "quiet.zarr")
    keys = set()

    def look(*_):
        from distributed import Client

        with Client(site.address, set_as_default=False) as client:
            keys.update(str(k) for found in client.processing().values() for k in found)

    pipeline.map_scene(scene, words, tmp_path / "my-map v1.zarr", trivial(**site.options()), progress=look)
    assert any("my_map_v1 00000_00001" in key for key in keys), keys
    assert not any("/" in key or "scene.tif" in key for key in keys)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_workers_that_join_later_get_their_share(site, noise_scene, words, trivial, tmp_path):
    site.scheduler()
    site.worker("w0")
    scene, out = slow_scene(noise_scene), tmp_path / "m.zarr"
    site.wait_registered("w0")
    seen = []

    def progress(record, done, total):
        seen.append(record.name)
        time.sleep(0.1 if len(by_worker(out)) == 3 else 3)  # no new work is given meanwhile
        if len(seen) == 2:
            for i in (1, 2):
                site.worker(f"w{i}")
            site.wait_registered("w1", "w2")

    pipeline.map_scene(scene, words, out, trivial(**site.options()), progress=progress)
    shares = by_worker(out)
    assert len(shares) == 3, shares
    assert min(shares.values()) > 2, shares
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    same(out, tmp_path / "quiet.zarr")


ADAPTIVE = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=0, threads_per_worker=1, scheduler_port=int(sys.argv[1]), dashboard_address=None) as cluster:
        cluster.adapt(minimum=0, maximum=3, interval="500ms", target_duration="1s")
        time.sleep(600)
"""


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_an_adaptive_cluster_grows_from_zero(site, noise_scene, words, trivial, tmp_path):
    (tmp_path / "adaptive.py").write_text(ADAPTIVE)
    site.start("cluster", sys.executable, tmp_path / "adaptive.py", site.port)
    from ovrs.engine import scheduler

    options = trivial(**site.options())
    scheduler.wait_for(options.run, 60)
    out = tmp_path / "m.zarr"
    pipeline.map_scene(slow_scene(noise_scene), words, out, options, progress=lambda *_: time.sleep(0.3))
    assert by_worker(out)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_worker_with_other_code_is_refused_by_name_or_recorded(site, noise_scene, words, trivial, tmp_path, caplog):
    shutil.copytree(ROOT / "ovrs", tmp_path / "other/ovrs", ignore=shutil.ignore_patterns("assets", "static"))
    (tmp_path / "other/ovrs/assets").symlink_to(ROOT / "ovrs/assets")
    code = tmp_path / "other/ovrs/provenance.py"
    code.write_text(code.read_text().replace("NUMERICS = ", "NUMERICS = 9"))
    site.scheduler()
    site.worker("good")
    site.worker("old", env={"PYTHONPATH": str(tmp_path / "other")})
    site.worker("bare", start=("-c", BARE))
    scene = slow_scene(noise_scene)
    site.wait_registered("good", "old", "bare")
    out = tmp_path / "m.zarr"
    pipeline.map_scene(scene, words, out, trivial(**site.options()))
    assert "Dask worker old on" in caplog.text
    assert "numerics 9" in caplog.text
    assert re.search(r"is left out: .*ModuleNotFoundError", caplog.text)
    assert [name.split(":")[1] for name in by_worker(out)] == [str(site.running["good"].pid)]
    assert "mixed_workers" not in json.loads((out / "zarr.json").read_text())["attributes"]["ovrs"]
    site.running.pop("bare").kill()
    mixed = tmp_path / "mixed.zarr"
    facts = pipeline.map_scene(scene, words, mixed, trivial(**site.options(allow_mixed=True)))
    assert len(facts["mixed_workers"]) == 2
    assert len(by_worker(mixed)) == 2
    site.running.pop("good").kill()
    session_seconds, session.UNFIT_SECONDS = session.UNFIT_SECONDS, 1.0
    try:
        with pytest.raises(WorkersUnfitError, match=r"no Dask worker can compute this run: old on .*numerics"):
            pipeline.map_scene(scene, words, tmp_path / "none.zarr", trivial(**site.options()))
    finally:
        session.UNFIT_SECONDS = session_seconds


BARE = "import sys; sys.modules['ovrs'] = None; from distributed.cli.dask_worker import main; main()"


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_sees_no_output_or_loses_it_is_left_out(site, noise_scene, words, trivial, tmp_path, caplog):
    """A worker in a mount namespace of its own, where the folder is empty: at once, or from some moment on."""
    apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    if subprocess.run([*apart, "mount -t tmpfs none /mnt"], check=False, capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    work_folder = tmp_path / "work"
    work_folder.mkdir()
    hide = f"mount -t tmpfs none {work_folder}"
    site.scheduler()
    site.worker("good")
    site.worker("blind", before=[*apart, f'{hide}; exec "$@"', "sh"])
    later = f'(while [ ! -e {tmp_path}/now ]; do sleep 0.1; done; {hide}) & exec "$@"'
    site.worker("losing", before=[*apart, later, "sh"])
    scene, out = slow_scene(noise_scene), work_folder / "m.zarr"
    site.wait_registered("good", "blind", "losing")
    seen = []

    def progress(record, done, total):
        seen.append(record.name)
        if len(seen) == 5:
            (tmp_path / "now").touch()
            time.sleep(2)

    pipeline.map_scene(scene, words, out, trivial(**site.options()), progress=progress)
    assert "Dask worker blind on" in caplog.text
    assert "it does not see" in caplog.text
    assert "Dask worker losing on" in caplog.text
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    same(out, tmp_path / "quiet.zarr")


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_an_encrypted_cluster_by_options(site, noise_scene, words, trivial, tmp_path):
    ca, cert, key = certificates(tmp_path)
    site.protocol, site.tls = "tls", ["--tls-ca-file", ca, "--tls-cert", cert, "--tls-key", key]
    site.scheduler()
    site.worker("w0")
    site.wait_registered("w0")
    out = tmp_path / "m.zarr"
    options = trivial(**site.options(tls_ca=ca, tls_cert=cert, tls_key=key))
    pipeline.map_scene(noise_scene(300, 200), words, out, options)
    assert by_worker(out)


def certificates(folder):
    """A certificate that signs itself, for 127.0.0.1."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ovrs")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=2100)
    )
    cert = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return folder / "cert.pem", folder / "cert.pem", folder / "key.pem"


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_client_that_ends_stops_its_workers_within_a_block(site, noise_scene, words, trivial, tmp_path):
    """Killed, or told to stop: workers finish at most the block under way of a piece of many."""
    site.scheduler()
    site.worker("w0")
    scene, out = slow_scene(noise_scene), tmp_path / "m.zarr"
    site.wait_registered("w0")
    job = begin.prepare(scene, words, out, trivial(**site.options(batch=1000)))
    stop = threading.Event()
    threading.Timer(0.0, lambda: (wait_for_blocks(out, 2), stop.set())).start()
    pipeline.compute(job, job.missing(), stop=stop)
    count = len(RunDir(out).records())
    time.sleep(3)
    assert len(RunDir(out).records()) <= count + 3
    assert count < job.plan.block_count
    command = [sys.executable, "-m", "ovrs", "resume", str(out)]
    client = subprocess.Popen(command, env=site.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_blocks(out, count + 5)
    client.kill()
    client.wait()
    time.sleep(2)
    count = len(RunDir(out).records())
    time.sleep(3)
    assert len(RunDir(out).records()) == count


def wait_for_blocks(out, count):
    until = time.monotonic() + 600
    while len(RunDir(out).records()) < count and time.monotonic() < until:
        time.sleep(0.02)


# ---- what machines read -----------------------------------------------------------------------------------------------------


def test_counters_lines_of_json_and_status_for_machines(noise_scene, words, trivial, tmp_path, monkeypatch, caplog):
    from ovrs.cli.app import app

    monkeypatch.setenv("OVRS_METRICS", str(tmp_path / "metrics"))
    scene, out = noise_scene(300, 200), tmp_path / "m.zarr"
    with caplog.at_level("INFO", logger="ovrs"):
        pipeline.map_scene(scene, words, out, trivial())
    blocks = [json.loads(JsonLines().format(r)) for r in caplog.records if r.getMessage().startswith("block ")]
    total = len(RunDir(out).records())
    assert len(blocks) == total
    assert blocks[0].keys() >= {"scene", "block", "attempt", "seconds", "worker", "time", "level"}
    assert (blocks[0]["scene"], blocks[0]["worker"]) == ("scene.tif", f"{socket.gethostname()}:{os.getpid()}")
    (file,) = (tmp_path / "metrics").iterdir()
    text = file.read_text()
    assert f'ovrs_blocks_total{{map="{out}",status="done"}} {total}' in text
    assert f'ovrs_map_blocks{{map="{out}",state="finished"}} {total}' in text
    assert 'stage="compute"' in text
    from prometheus_client.parser import text_string_to_metric_families as parse

    assert {f.name for f in parse(text)} >= {"ovrs_blocks", "ovrs_pixels", "ovrs_stage_seconds", "ovrs_map_blocks"}
    told = json.loads(CliRunner().invoke(app, ["status", str(out), "--json"]).stdout)
    assert (told["blocks"], told["done"], told["failed"], told["state"]) == (total, total, [], "complete")
    assert told["stages"]["compute"] > 0
    assert sum(told["workers"].values()) == total
