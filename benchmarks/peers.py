"""Our engine beside other tiled inference engines: the same scene, model, tiles; time and memory of whole processes.

    python -m benchmarks.peers --size 8192 [--python PEER=/path/to/its/python …] [--only NAME …] [--work DIR]
                               [--out benchmarks/results/peers.json]

A peer that is not installed is left out, and said to be. Peers do not all fit one environment; `--python` names the
interpreter of one by the first word of its name (`--python geoai=… --python TerraTorch=…`), the others run in this one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import engine, record
from benchmarks.peer_ways import PEERS

OURS = ("ovrs, serial", "ovrs, 2 threads", "bare Zarr loop, halo 32", "bare rasterio loop, no overlap")


def one(name: str, folder: Path) -> None:
    """In a process of its own: imports count, as they do for everyone who runs it."""
    try:
        found = engine.measured(PEERS[name], folder, folder / "out_peer.tif")
    except ModuleNotFoundError as error:
        found = {"missing": str(error.name)}
    print("\n" + json.dumps(found))


def run(name: str, folder: Path, python: str) -> dict[str, float | str]:
    room = "benchmarks.peers" if name in PEERS else "benchmarks.engine"
    command = [python, "-W", "ignore", "-m", room, "--one", name, "--work", str(folder)]
    started = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    whole = time.perf_counter() - started
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"whole": whole - found.pop("checking", 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH")
    parser.add_argument("--only", nargs="*", help="beginnings of names")
    parser.add_argument("--work", type=Path, default=Path("build/engine"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.work)
        return
    interpreters = dict(given.split("=", 1) for given in args.python)
    args.work.mkdir(parents=True, exist_ok=True)
    engine.make(args.work, args.size)
    print("| engine | whole process, s | of it mapping, s | peak MB | agree |\n|---|---|---|---|---|")
    measured = {}
    for name in (*OURS, *PEERS):
        if args.only and not name.startswith((*OURS, *args.only)):
            continue
        found = run(name, args.work, interpreters.get(name.split()[0], sys.executable))
        if "missing" in found:
            print(f"| {name} | not run: {found['missing']} | | | |", flush=True)
            continue
        numbers = f"{found['whole']:.1f} | {found['seconds']:.1f} | {found['peak_mb']:.0f} | {found['agree']:.4f}"
        print(f"| {name} | {numbers} |", flush=True)
        measured[name] = {key: found[key] for key in ("whole", "seconds", "peak_mb", "agree")}
    if args.out is not None:
        record.keep(args.out, measured, bundled=False)


if __name__ == "__main__":
    main()
