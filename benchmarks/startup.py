"""Seconds from the command to the first tile, and what the imports cost.

    python -m benchmarks.startup [--repeats 3] [--against TREE] [--out RESULTS.json]

A corner of 100 m (500 px of 0.2 m) is mapped by the bundled model, in a process of its own; the moment is that at which
the first tile goes to the network. Wall and processor seconds of the quickest repeat, and which heavy packages were
imported by then. The words' vectors come from the cache after the first run. `--against` measures another checkout too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "open_clip",
    "timm",
    "torchvision",
    "transformers",
    "torch._dynamo",
    "scipy",
    "geopandas",
    "distributed",
)
CORNER = """
import json, os, sys, time
from ovrs.model.clip.encoder import Encoder
inputs = Encoder.inputs
def first(*given):
    wall, spent = time.time() - float(os.environ["BEGUN"]), time.process_time()
    found = [name for name in {heavy!r} if name in sys.modules]
    print(json.dumps({{"wall": wall, "processor": spent, "imported": found}}), flush=True)
    os._exit(0)
Encoder.inputs = first
sys.argv = ["ovrs", "map", {scene!r}, "--classes", "building, road, water, tree", "-o", {out!r}]
from ovrs.cli.app import main
main()
"""


def make(path: Path) -> None:
    """A scene of 100 m."""
    import rasterio
    from rasterio.transform import from_origin

    rgb = np.random.default_rng(0).integers(0, 255, (3, 32, 32), np.uint8).repeat(16, 1).repeat(16, 2)[:, :500, :500]
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 0.2, 0.2)}
    with rasterio.open(path, "w", driver="GTiff", height=500, width=500, count=3, dtype="uint8", **place) as target:
        target.write(rgb)


def run(code: str, tree: Path, cache: Path) -> dict[str, object]:
    """What a process of a checkout prints last, and its own times if it prints nothing."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OVRS_CACHE": str(cache), "BEGUN": str(time.time())}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tree
    )
    lines = done.stdout.splitlines()
    found: dict[str, object] = json.loads(lines[-1]) if lines else {"wall": time.perf_counter() - started}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    trees = {"here": ROOT, **({"against": args.against.absolute()} if args.against else {})}
    clock = (
        "; import json, os, time; spent = time.process_time(); wall = time.time() - float(os.environ['BEGUN'])"
        "; print(json.dumps({'wall': wall, 'processor': spent}))"
    )
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.tif"
        make(scene)
        work = {
            f"import {name}": f"import {name}{clock}" for name in ("numpy", "rasterio", "zarr", "torch", "open_clip")
        }
        for number in range(args.repeats + 1):
            for which, tree in trees.items():
                out = Path(folder) / f"{which} {number}.zarr"
                corner = CORNER.format(heavy=HEAVY, scene=str(scene), out=str(out))
                for name, code in {**work, "first tile": corner}.items():
                    if which != "here" and name != "first tile":
                        continue
                    found = run(code, tree, Path(folder) / f"cache {which}")
                    named = name if which == "here" else f"{name}, {which}"
                    known = results.get(named)
                    if number and (known is None or found["wall"] < known["wall"]):
                        results[named] = found
    for name, found in results.items():
        print(name, json.dumps(found))
    if args.out:
        record.keep(args.out, results, bundled=False)


if __name__ == "__main__":
    main()
