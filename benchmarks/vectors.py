"""Polygons of large label rasters: time and peak memory.

    python -m benchmarks.vectors --sizes 4000 20000

Labels: round fields of random classes on a background that spans the scene, so components cross every block border.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import ovrs


def make(path: Path, side: int) -> None:
    import numpy as np
    import zarr
    from odc.geo.geobox import GeoBox
    from rasterio.transform import from_origin

    from ovrs.store import layout as store

    words = ["ground", "field", "forest", "water"]
    box = GeoBox((side, side), from_origin(5e5, 5.6e6, 0.5, 0.5), "EPSG:32633")
    colours = [(200, 200, 200), (250, 220, 90), (20, 120, 40), (40, 90, 220)]
    store.create(path, box, store.Schema(classes=words, colours=colours, chunk=500))
    group = zarr.open_group(path, mode="r+")
    group.attrs["ovrs"] = record(words, side)
    rng = np.random.default_rng(0)
    span = 1000
    rows, cols = np.mgrid[0:span, 0:span]
    for top in range(0, side, span):
        for left in range(0, side, span):
            part = np.zeros((span, span), np.uint8)
            for _ in range(60):
                y, x, r = [*rng.integers(0, span, 2).tolist(), int(rng.integers(5, 90))]
                part[(rows - y) ** 2 + (cols - x) ** 2 < r * r] = rng.integers(0, 4)
            h, w = min(span, side - top), min(span, side - left)
            group["label"][top : top + h, left : left + w] = part[:h, :w]
            group["confidence"][top : top + h, left : left + w] = 150


def record(words: list[str], side: int) -> dict[str, object]:
    """What a finished map of `side` x `side` pixels tells of itself, without any results."""
    from ovrs.store.record import RunRecord

    now = "2026-01-01T00:00:00+00:00"
    entries = [{"name": n, "synonyms": [], "descriptions": [], "prompt_source": "name"} for n in words]
    content = {
        "version": "benchmark",
        "uri": "labels.tif",
        "begun": now,
        "finished": now,
        "scene": {"name": "labels.tif", "width": side, "height": side, "count": 1, "dtypes": ["uint8"]},
        "grid": {"epsg": 32633, "shape": [side, side], "aoi": None},
        "grid_note": "drawn",
        "pixel_size_m": [0.5, 0.5],
        "radiometry": {"bands": [1], "stretch": None},
        "plan": {"crop": 500, "stride": 500},
        "model": {"model": "none", "method": "none"},
        "rule": {"background": None, "threshold": 0.0},
        "composed_prompts": [],
        "vocabulary": {"name": "drawn", "classes": entries},
        "options": {"scene": {}},
        "versions": {},
        "digest": {},
        "seconds": 0.0,
        "blocks": 1,
        "holes": [],
        "tile_events": {},
        "valid_pixels": side * side,
        "mean_confidence": 0.75,
        "classes": [{"name": n, "pixels": 0, "hectares": 0.0, "percent": 0.0} for n in words],
    }
    return RunRecord.model_validate(content).dump()


def export(path: Path, out: Path) -> None:
    from ovrs.export.vectors import write_vectors

    started = time.perf_counter()
    count = write_vectors(ovrs.open(path), out).features
    seconds = time.perf_counter() - started
    peak = next(
        int(line.split()[1]) / 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(f"{count} {seconds:.1f} {peak:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4000, 20000])
    parser.add_argument("--work", type=Path, default=Path("build/vectors"))
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        export(*args.one)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    print("| side | file | polygons | peak MB | s |\n|---|---|---|---|---|")
    for side in args.sizes:
        path = args.work / f"{side}.zarr"
        if not path.exists():
            make(path, side)
        for suffix in ("gpkg",):
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--one",
                str(path),
                str(args.work / f"{side}.{suffix}"),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            count, seconds, peak = done.stdout.split()
            print(f"| {side} | {suffix} | {count} | {peak} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
