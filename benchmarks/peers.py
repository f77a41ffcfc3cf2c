"""Our engine beside other tiled inference engines: the same scene, model, tiles; time and memory of whole processes.

    python -m benchmarks.peers --size 8192 [--repeats 3] [--only NAME …] [--work DIR]
                               [--out benchmarks/results/peers.json]

All run in turns, and the least of a peer's whole processes counts. A peer that is not installed is left out, and said to
be. Peers do not all fit one environment: where there is a `build/peers/NAME/bin/python`, NAME being the first word of a
peer's name (`geoai`, `TerraTorch`), that peer runs in it, the others in this one.
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

ENVIRONMENTS = Path("build/peers")
OURS = ("ovrs, serial", "ovrs, 2 threads", "bare Zarr loop, halo 32", "bare rasterio loop, no overlap")


def one(name: str, folder: Path) -> None:
    """In a process of its own: imports count, as they do for everyone who runs it."""
    try:
        found = engine.measured(PEERS[name], folder, folder / "out_peer.tif")
    except ModuleNotFoundError as error:
        found = {"missing": str(error.name)}
    print("\n" + json.dumps(found))


def interpreter(name: str) -> str:
    own = ENVIRONMENTS.absolute() / name.split()[0] / "bin" / "python"
    return str(own) if name in PEERS and own.exists() else sys.executable


def run(name: str, folder: Path) -> dict[str, float | str]:
    room = "benchmarks.peers" if name in PEERS else "benchmarks.engine"
    command = [interpreter(name), "-W", "ignore", "-m", room, "--one", name, "--work", str(folder)]
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="beginnings of names")
    parser.add_argument("--work", type=Path, default=Path("build/engine"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.work)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    engine.make(args.work, args.size)
    left = [n for n in (*OURS, *PEERS) if not args.only or n.startswith((*OURS, *args.only))]
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.repeats):  # in turns, so that a busy moment hits all
        for name in list(left):
            found = run(name, args.work)
            if "missing" in found:
                print(f"{name}: not run: {found['missing']}", flush=True)
                left.remove(name)
            elif name not in best or found["whole"] < best[name]["whole"]:
                best[name] = {key: found[key] for key in ("whole", "seconds", "peak_mb", "agree")}
    print("| engine | whole process, s | of it mapping, s | peak MB | agree |\n|---|---|---|---|---|")
    for name, f in sorted(best.items(), key=lambda item: item[1]["whole"]):
        print(f"| {name} | {f['whole']:.1f} | {f['seconds']:.1f} | {f['peak_mb']:.0f} | {f['agree']:.4f} |")
    if args.out is not None:
        record.keep(args.out, best, bundled=False)


if __name__ == "__main__":
    main()
