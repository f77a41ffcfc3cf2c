"""A whole installation under random kills: Prefect server and worker, Dask scheduler and workers, and clients in mid run.

    python -m benchmarks.soak --minutes 60 [--seed 0] [--pace 7] [--work build/soak] [--out benchmarks/results/soak.json]

`--pace` is the mean number of seconds between two events: one that is shorter than a pass takes lets no pass end.

Images are delivered, delivered again, renamed, replaced and cut in halves meanwhile. At the end nothing is killed any more,
and everything must come to rest: every image mapped, each content once, and each map equal to a serial run byte for byte.
Images without an attempt left are given new ones by `ovrs collection retry`, as a person would. Ends with code 1 else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

from benchmarks import record

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CATALOG = """version: 1
outputs: {root: maps}
models: {quick: {model: trivial, crop: 64}}
collections:
  drop: {pattern: "in/*.tif", vocabulary: demo, model: quick, method: {method: none}}
"""
RUN = {"executor": "dask", "block_pitches": 1, "batch": 2}
KINDS = ("client", "client", "worker0", "worker1", "worker2", "flows", "scheduler", "server")
"""What is killed, with clients twice as often."""
REST_SECONDS = 1800.0
"""How long everything may take to come to rest."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Installation:
    """All parts as processes on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        self.api, self.dask = free_port(), free_port()
        self.env = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OVRS_HOME": str(ROOT),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.api}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_CLIENT_MAX_RETRIES": "8",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite, on a busy machine
        }
        scheduler = f"tcp://127.0.0.1:{self.dask}"
        worker = ["dask", "worker", scheduler, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        self.commands = {
            "server": ["prefect", "server", "start", "--host", "127.0.0.1", "--port", self.api],
            "scheduler": ["dask", "scheduler", "--host", "127.0.0.1", "--port", self.dask, "--no-dashboard"],
            "flows": ["prefect", "worker", "start", "--pool", "ovrs", "--type", "process", "--limit", "2"],
        } | {f"worker{i}": [*worker, "--name", f"w{i}", "--local-directory", folder / "tmp"] for i in range(3)}

    def start(self, name: str) -> None:
        program, *rest = self.commands[name]
        with (self.folder / "logs" / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                [str(BIN / str(program)), *map(str, rest)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=ROOT,
                start_new_session=True,
            )

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), check=False, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=600
        )

    def begin(self) -> None:
        (self.folder / "logs").mkdir(parents=True)
        (self.folder / "in").mkdir()
        (self.folder / "c.yaml").write_text(CATALOG)
        self.start("server")
        self.wait_for_server()
        for name in ("scheduler", "worker0", "worker1", "worker2"):
            self.start(name)
        made = self.run(BIN / "prefect", "work-pool", "create", "ovrs", "--type", "process")
        made = self.run(BIN / "prefect", "--no-prompt", "deploy", "--prefect-file", self.deployment(), "--all")
        if made.returncode:
            raise SystemExit(made.stdout + made.stderr)
        self.start("flows")

    def deployment(self) -> Path:
        """The project's watcher, which looks every minute here."""
        import yaml

        content = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())
        watch = next(d for d in content["deployments"] if d["name"] == "watch")
        watch["schedules"] = [{"interval": 60}]
        run = {**RUN, "scheduler": f"tcp://127.0.0.1:{self.dask}"}
        watch["parameters"] = {"collection": "drop", "catalog": str(self.folder / "c.yaml"), "run": run}
        content["deployments"] = [watch]
        (self.folder / "prefect.yaml").write_text(yaml.safe_dump(content))
        return self.folder / "prefect.yaml"

    def wait_for_server(self) -> None:
        for _ in range(300):
            try:
                if urllib.request.urlopen(f"http://127.0.0.1:{self.api}/api/health", timeout=2).status == 200:
                    return
            except OSError:
                time.sleep(1)
        raise SystemExit("the Prefect server did not start")

    def clients(self) -> list[int]:
        """Processes of flow runs, told by the address of this installation's server in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                is_client = entry.name.isdigit() and b"engine" in (entry / "cmdline").read_bytes()
                if is_client and self.env["PREFECT_API_URL"].encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def kill(self, kind: str) -> bool:
        """Kill one part without warning, and start it again; whether there was one."""
        if kind == "client":
            victims = self.clients()
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(victims), signal.SIGKILL)
            return bool(victims)
        self.running[kind].kill()
        self.running[kind].wait()
        self.start(kind)
        return True

    def supervise(self) -> None:
        """Start again what ended by itself, as systemd and Compose do."""
        for name, process in self.running.items():
            if process.poll() is not None:
                self.start(name)

    def end(self) -> None:
        for process in self.running.values():
            process.terminate()
        time.sleep(3)
        for pid in self.clients():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


class Deliveries:
    """What somebody puts into the folder."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance, self.count = folder, chance, 0
        self.half: tuple[Path, bytes] | None = None

    def image(self) -> bytes:
        """A new image; no two are alike."""
        from ovrs.demo.synth import World, write_scene

        self.count += 1
        made = self.folder / "made.tif"
        height, width = self.chance.randrange(300, 700), self.chance.randrange(300, 700)
        write_scene(made, height=height, width=width, world=World(seed=self.count))
        return made.read_bytes()

    def put(self, name: str, content: bytes) -> None:
        """Deliver in one step, by a change of name."""
        part = self.folder / "part"
        part.write_bytes(content)
        part.rename(self.folder / "in" / name)

    def act(self) -> str:
        """One delivery of a kind at random; returns the kind."""
        there = sorted((self.folder / "in").glob("*.tif"))
        if self.half is not None:
            path, content = self.half
            self.half = None
            path.write_bytes(content)
            return "second half"
        kind = self.chance.choice(["new", "new", "again", "touch", "copy", "replace", "half"]) if there else "new"
        if kind == "new":
            self.put(f"image{self.count:04d}.tif", self.image())
        elif kind == "half":
            content, path = self.image(), self.folder / "in" / f"image{self.count:04d}.tif"
            path.write_bytes(content[: len(content) // 2])
            self.half = path, content
        else:
            chosen = self.chance.choice(there)
            if kind == "touch":
                chosen.touch()
            elif kind == "replace":
                self.put(chosen.name, self.image())
            else:
                name = chosen.name if kind == "again" else f"copy{self.chance.randrange(10**6)}.tif"
                self.put(name, chosen.read_bytes())
        return kind


def disturb(
    site: Installation, deliveries: Deliveries, minutes: float, pace: float, chance: random.Random
) -> Counter[str]:
    """Deliver and kill for so long, something every `pace` seconds on average."""
    done: Counter[str] = Counter()
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.3, 1.7) * pace)
        site.supervise()
        if chance.random() < 0.5:
            done["delivered: " + deliveries.act()] += 1
        else:
            kind = chance.choice(KINDS)
            done["killed: " + kind] += site.kill(kind)
        print(f"{until - time.monotonic():6.0f} s left  {dict(done)}", flush=True)
    if deliveries.half is not None:
        done["delivered: " + deliveries.act()] += 1
    return done


def at_rest(site: Installation) -> tuple[bool, dict[str, list[str]]]:
    """Whether every image is mapped; images by state. Hopeless ones are given new attempts."""
    command = [BIN / "python", "-m", "ovrs", "collection", "status", "--catalog", site.folder / "c.yaml", "--json"]
    told = site.run(*command)
    if told.returncode not in (0, 4):
        return False, {"no answer": [told.stderr[-300:]]}
    found: dict[str, list[str]] = {}
    for image in json.loads(told.stdout):
        found.setdefault(str(image["state"]), []).append(str(image["name"]))
    for name in found.get("hopeless", []):
        site.run(BIN / "python", "-m", "ovrs", "collection", "retry", name, "--catalog", site.folder / "c.yaml")
    return set(found) <= {"done"}, found


def compare(site: Installation) -> tuple[int, list[str]]:
    """Number of contents, and faults: contents mapped twice or not at all, and maps that differ from a serial run."""
    import numpy as np
    import zarr

    from ovrs import options, pipeline
    from ovrs.collection import catalog
    from ovrs.collection.deliveries import look
    from ovrs.collection.ledger import Ledger
    from ovrs.words import vocabulary

    known = catalog.load(site.folder / "c.yaml")
    ledger = Ledger(known.resolve(known.outputs.root))
    done = Counter(e["content"] for e in ledger.entries() if e["status"] == "done")
    faults = [
        f"content {content[:12]} stands in the ledger {count} times" for content, count in done.items() if count > 1
    ]
    maps = {e["content"]: e["map"] for e in ledger.entries() if e["status"] == "done"}
    words = vocabulary.load("demo")
    chosen = options.build(
        model={"model": "trivial", "crop": 64}, method={"method": "none"}, run={"block_pitches": RUN["block_pitches"]}
    )
    images = {d.image.content: d.image for d in look(known, "drop", ledger)}
    for content, image in images.items():
        if content not in maps:
            faults.append(f"{image.name}: not mapped")
            continue
        quiet = site.folder / "quiet.zarr"
        pipeline.map_scene(image.uri, words, quiet, chosen, overwrite=True)
        there, here = (zarr.open_group(p, mode="r") for p in (maps[content], quiet))
        different = [a for a in ("label", "confidence") if not np.array_equal(there[a][:], here[a][:])]
        faults += [f"{image.name}: {array} differs from a serial run" for array in different]
    return len(images), faults


def outcome(minutes: float, seed: int, done: Counter[str], **found: object) -> dict[str, object]:
    """What a run of so long came to, as it is kept."""
    return {
        "minutes": minutes,
        "seed": seed,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "killed": {k.partition(": ")[2]: n for k, n in sorted(done.items()) if k.startswith("killed")},
        "delivered": {k.partition(": ")[2]: n for k, n in sorted(done.items()) if k.startswith("delivered")},
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=7.0)
    parser.add_argument("--work", type=Path, default=Path("build/soak"))
    parser.add_argument("--out", type=Path, help="JSON of the outcome")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    shutil.rmtree(args.work, ignore_errors=True)
    site = Installation(args.work.absolute())
    try:
        site.begin()
        done = disturb(site, Deliveries(site.folder, chance), args.minutes, args.pace, chance)
        quiet, rest, contents = time.monotonic(), False, 0
        until = quiet + REST_SECONDS
        while not rest and time.monotonic() < until:
            time.sleep(10)
            site.supervise()
            rest, states = at_rest(site)
            print({state: len(names) for state, names in states.items()}, flush=True)
        settled = time.monotonic() - quiet
        contents, faults = compare(site) if rest else (0, [f"not at rest: {states}"])
    finally:
        site.end()
    for what, count in sorted(done.items()):
        print(f"{count:5d}  {what}")
    print("\n".join(faults) or "every image is mapped, each content once, equal to a serial run")
    told = outcome(
        args.minutes,
        args.seed,
        done,
        pace=args.pace,
        images={state: len(names) for state, names in states.items()},
        contents=contents,
        seconds_to_rest=round(settled),
        faults=faults,
    )
    if args.out:
        record.keep(args.out, told, bundled=False)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
