"""The whole installation as separate processes on loopback, by the commands of `infra/README.md`: `make test-cluster`."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from webserver import Web

from ovrs import options, pipeline
from ovrs.collection.ledger import Ledger
from ovrs.demo.synth import World, write_scene
from ovrs.words import vocabulary

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Site:
    """Server, scheduler, workers; everything they say goes to log files that are kept when a test fails."""

    def __init__(self, folder):
        self.folder, self.running = folder, {}
        self.api_port, self.dask_port = free_port(), free_port()
        self.scheduler = f"tcp://127.0.0.1:{self.dask_port}"
        self.env = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.api_port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_REQUEST_TIMEOUT": "300",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite, on a busy machine
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",
            "OVRS_HOME": str(ROOT),
            "OVRS_INCOMING": str(folder / "incoming"),
            "OVRS_OUTPUTS": str(folder / "maps"),
            "OVRS_CACHE": str(folder / "cache"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def start(self, name, *command):
        with (self.folder / f"{name}.log").open("w") as log:
            self.running[name] = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=ROOT,
                start_new_session=True,
            )

    def run(self, *command):
        done = subprocess.run(
            list(map(str, command)), check=False, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self):
        for process in self.running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()
        for pid in self.flows():  # they have sessions of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def flows(self):
        """Processes of flow runs and of what they started."""
        return processes_with(f"PREFECT_API_URL={self.env['PREFECT_API_URL']}")


@pytest.fixture(scope="module")
def site(tmp_path_factory, request):
    found = Site(tmp_path_factory.mktemp("site"))
    (found.folder / "incoming").mkdir()
    try:
        found.start("server", BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", found.api_port)
        found.start(
            "scheduler", BIN / "dask", "scheduler", "--host", "127.0.0.1", "--port", found.dask_port, "--no-dashboard"
        )
        for i in range(2):
            worker = [
                "worker",
                found.scheduler,
                "--nthreads",
                1,
                "--resources",
                "GPU=1",
                "--name",
                f"w{i}",
                "--no-dashboard",
            ]
            found.start(f"worker{i}", BIN / "dask", *worker, "--local-directory", found.folder)
        wait(lambda: is_up(found))
        found.run(BIN / "prefect", "work-pool", "create", "ovrs", "--type", "process")
        found.run(BIN / "prefect", "--no-prompt", "deploy", "--prefect-file", deployments(found), "--all")
        found.start("flows", BIN / "prefect", "worker", "start", "--pool", "ovrs", "--limit", 3)
        yield found
    finally:
        found.stop()
        kept = ROOT / "build/cluster-logs"
        kept.mkdir(parents=True, exist_ok=True)
        for log in found.folder.glob("*.log"):
            shutil.copy(log, kept)


@pytest.fixture
def web(tmp_path):
    found = Web(tmp_path)
    yield found
    found.stop()


def deployments(site):
    """The project's deployments; the watcher looks every twenty seconds here, and computes on the Dask cluster."""
    content = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())
    watch = next(d for d in content["deployments"] if d["name"] == "watch")
    watch["schedules"] = [{"interval": 20}]
    run = {"executor": "dask", "scheduler": site.scheduler, "resources": {"GPU": 1}, "block_pitches": 1, "batch": 1}
    watch["parameters"] |= {"catalog": str(ROOT / "data_catalog.yaml"), "run": run}
    file = site.folder / "prefect.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def processes_with(words):
    """Numbers of the processes that have these words in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and words.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def is_up(site):
    with urllib.request.urlopen(f"http://127.0.0.1:{site.api_port}/api/health", timeout=30) as answer:
        return answer.status == 200


def wait(condition, seconds=900):
    """Until something holds; the bound is for a machine that others use, too."""
    until = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < until, "timed out; logs are in build/cluster-logs"
        time.sleep(1)


def mapped(site, name):
    entries = {e["name"]: e for e in Ledger(str(site.folder / "maps")).entries()}
    state = entries.get(name, {"status": "none"})
    assert state["status"] != "failed", state
    return state["status"] == "done"


def compare(site, name, scene):
    quiet = site.folder / f"{name}-quiet.zarr"
    pipeline.map_scene(scene, vocabulary.load("landcover"), quiet, options.build(run={"block_pitches": 1}))
    there, here = (zarr.open_group(p, mode="r") for p in (site.folder / f"maps/incoming/{name}.zarr", quiet))
    for array in ("label", "confidence"):
        assert np.mean(there[array][:] == here[array][:]) == 1.0


def test_a_dropped_file_is_mapped_by_schedule_and_exported(site):
    write_scene(site.folder / "first.tif", height=1200, width=1000, world=World(seed=5))
    shutil.move(site.folder / "first.tif", site.folder / "incoming/first.tif")
    wait(lambda: mapped(site, "first"))
    assert (site.folder / "maps/incoming/first.tif").exists()
    assert (site.folder / "maps/incoming/first.png").exists()
    compare(site, "first", site.folder / "incoming/first.tif")


def test_a_killed_worker_changes_nothing(site):
    write_scene(site.folder / "second.tif", height=1600, width=1400, world=World(seed=6))
    shutil.move(site.folder / "second.tif", site.folder / "incoming/second.tif")
    blocks = site.folder / "maps/incoming/second.run/blocks"
    wait(lambda: len(list(blocks.glob("*.json"))) >= 2)
    os.killpg(site.running["worker0"].pid, signal.SIGKILL)
    wait(lambda: mapped(site, "second"))
    compare(site, "second", site.folder / "incoming/second.tif")


def test_the_alert_can_be_made(site):
    for name in ("automation", "automation-killed"):
        site.run(BIN / "prefect", "automation", "create", "--from-file", ROOT / f"infra/{name}.yaml")


def processes_of(run):
    """Processes of a flow run, and of what it started."""
    return processes_with(f"FLOW_RUN_ID={run}")


def asked(site, path, method="GET"):
    """The server's answer; one that is late is asked again."""
    request = urllib.request.Request(f"http://127.0.0.1:{site.api_port}/api/{path}", method=method)
    for wait_seconds in (5, 20, 60):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except OSError:
            time.sleep(wait_seconds)
    raise AssertionError(f"{path}: no answer")


def stop_watching(site):
    """End the schedule: each pass is a process of its own that takes its share of the machine and the server."""
    number = asked(site, "deployments/name/watch-collection/watch")["id"]
    asked(site, f"deployments/{number}/pause_deployment", "POST")


def test_a_cancelled_run_ends_within_a_block_and_leaves_no_process(site, web):
    """With local Dask workers, which are processes, too; what is done is kept, and the same run again goes on.

    The scene's server takes two seconds for each answer, so that a hundred blocks take minutes on any machine.
    """
    stop_watching(site)
    scene, out = web.folder / "scene.tif", site.folder / "third.zarr"
    write_scene(scene, height=1300, width=1300, world=World(seed=8))
    web.set(wait=2.0)
    chosen = {"model": {"model": "trivial", "crop": 64}, "method": {"method": "none"}}
    run = {"executor": "dask", "workers": 1, "block_pitches": 1, "batch": 2}
    given = {"scene": web.url, "out": str(out), "products": False, "options": {**chosen, "run": run}}
    told = site.run(BIN / "prefect", "deployment", "run", "map-scene/scene", "--params", json.dumps(given))
    number = re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", told)[0]
    blocks = site.folder / "third.run/blocks"
    wait(lambda: len(list(blocks.glob("*.json"))) >= 3)
    assert len(processes_of(number)) >= 2
    site.run(BIN / "prefect", "flow-run", "cancel", number)
    wait(lambda: not processes_of(number))
    count = len(list(blocks.glob("*.json")))
    found = asked(site, f"flow_runs/{number}")
    assert found["state"]["type"] in ("CANCELLED", "CANCELLING")
    assert (found["name"], "scene:scene.tif" in found["tags"]) == ("scene.tif", True)
    time.sleep(3)
    assert len(list(blocks.glob("*.json"))) == count
    web.set(wait=0.0)
    assert 3 <= count < pipeline.resume(out)["blocks"]
    quiet = site.folder / "third-quiet.zarr"
    pipeline.map_scene(
        scene, vocabulary.load("landcover"), quiet, options.build(**chosen, run={"block_pitches": run["block_pitches"]})
    )
    there, here = (zarr.open_group(p, mode="r") for p in (out, quiet))
    for array in ("label", "confidence"):
        np.testing.assert_array_equal(there[array][:], here[array][:])


FLOW = """
import sys
from ovrs.flows.map_scene import map_scene
from ovrs import options
map_scene(sys.argv[1], sys.argv[2], "", "landcover", options.build(run={"block_pitches": 1}), 6, products=False)
"""


@pytest.mark.parametrize("back", [True, False], ids=["comes back", "stays away"])
def test_the_prefect_server_goes_away_during_a_run(tmp_path, back):
    """The map is finished all the same; whether the flow run is, too, depends on the server."""
    site = Site(tmp_path)
    site.env["PREFECT_CLIENT_MAX_RETRIES"] = "6" if back else "1"
    serve = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", site.api_port]
    write_scene(tmp_path / "s.tif", height=1500, width=1500, world=World(seed=7))
    try:
        site.start("server", *serve)
        wait(lambda: is_up(site))
        site.start("flow", sys.executable, "-c", FLOW, tmp_path / "s.tif", tmp_path / "m.zarr")
        flow = site.running["flow"]
        wait(lambda: len(list((tmp_path / "m.run/blocks").glob("*.json"))) >= 2)
        os.killpg(site.running["server"].pid, signal.SIGKILL)
        site.running.pop("server").wait()
        if back:
            site.start("server_again", *serve)
        assert (flow.wait(timeout=900) == 0) == back, (tmp_path / "flow.log").read_text()[-3000:]
        if not back:
            assert "the map goes on unseen" in (tmp_path / "flow.log").read_text()
    finally:
        site.stop()
    quiet = tmp_path / "quiet.zarr"
    pipeline.map_scene(tmp_path / "s.tif", vocabulary.load("landcover"), quiet, options.build(run={"block_pitches": 1}))
    there, here = (zarr.open_group(p, mode="r") for p in (tmp_path / "m.zarr", quiet))
    for array in ("label", "confidence"):
        np.testing.assert_array_equal(there[array][:], here[array][:])
