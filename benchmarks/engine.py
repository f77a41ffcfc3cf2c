"""The engine's own cost: a model that costs next to nothing, against bare loops of reading, model and writing.

    python -m benchmarks.engine --size 8192 [--repeats 3] [--work DIR] [--out benchmarks/results/engine.json]

Model: one 3x3 convolution to six classes. Each way runs in a process of its own, imports not counted, then counted; the
ratios are the result. `agree` is the share of pixels equal to the untiled answer; its counting is in no figure. Ours writes
labels and confidence and one marker a block, and keeps freed memory, as the command line does; overviews are left out, as the
loops have none. Everybody has two threads: in ours of two threads, each computes with one.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.record import keep

CLASSES, TILE, HALO, SHARD = 6, 512, 32, 2048


def model(threads: int = 2):
    import torch

    torch.set_num_threads(threads)
    net = torch.nn.Conv2d(3, CLASSES, 3, padding=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.weight.copy_(torch.randn(net.weight.shape, generator=generator))
        net.bias.zero_()
        net.weight -= net.weight.mean(dim=(1, 2, 3), keepdim=True)
    return net.eval()


def run_model(net, rgb):
    import torch

    with torch.inference_mode():
        return net(torch.from_numpy(rgb).float().div_(255)[None])[0]


def make(folder: Path, size: int) -> None:
    import rasterio
    from rasterio.transform import from_origin

    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": size, "width": size, "count": 3, "dtype": "uint8", "tiled": True}
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 0.2, 0.2), "blockxsize": 512, "blockysize": 512}
    coarse = rng.integers(1, 255, (3, size // 8 + 1, size // 8 + 1))
    image = np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, :size, :size]
    image = (image + rng.integers(-20, 20, (1, size, size), dtype=np.int16)).clip(1, 255).astype(np.uint8)
    with rasterio.open(folder / "scene.tif", "w", **profile, **place) as target:
        target.write(image)
    net, answer = model(), np.empty((size, size), np.uint8)
    for top in range(0, size, 1024):
        first, last = max(0, top - 1), min(size, top + 1025)
        answer[top : top + 1024] = run_model(net, image[:, first:last]).max(0).indices.numpy()[top - first :][:1024]
    np.save(folder / "answer.npy", answer)


def bare_rasterio(source: Path, out: Path) -> None:
    """Read a window, model, write the window; no overlap, so borders are wrong."""
    import rasterio
    from rasterio.windows import Window

    net = model()
    with rasterio.open(source) as scene:
        profile = {**scene.profile, "count": 1, "nodata": 255}
        with rasterio.open(out, "w", **profile) as target:
            for y in range(0, scene.height, TILE):
                for x in range(0, scene.width, TILE):
                    window = Window(x, y, min(TILE, scene.width - x), min(TILE, scene.height - y))
                    labels = run_model(net, scene.read(window=window)).max(0).indices
                    target.write(labels.numpy().astype(np.uint8), 1, window=window)


def bare_zarr(source: Path, out: Path) -> None:
    """Read 2,048 px with a halo, tiles of 512 px with a halo, write each shard once."""
    import rasterio
    import zarr
    from rasterio.windows import Window

    net = model()
    with rasterio.open(source) as scene:
        h, w = scene.height, scene.width
        made = {"shape": (h, w), "chunks": (TILE, TILE), "shards": (SHARD, SHARD), "dtype": "uint8", "fill_value": 255}
        array = zarr.create_array(out, **made)
        for y in range(0, h, SHARD):
            for x in range(0, w, SHARD):
                top, left = max(0, y - HALO), max(0, x - HALO)
                bottom, right = min(h, y + SHARD + HALO), min(w, x + SHARD + HALO)
                block = scene.read(window=Window(left, top, right - left, bottom - top))
                core = np.empty((min(SHARD, h - y), min(SHARD, w - x)), np.uint8)
                for ty in range(y, y + core.shape[0], TILE):
                    for tx in range(x, x + core.shape[1], TILE):
                        a, b = max(top, ty - HALO), max(left, tx - HALO)
                        c, d = min(bottom, ty + TILE + HALO), min(right, tx + TILE + HALO)
                        part = np.ascontiguousarray(block[:, a - top : c - top, b - left : d - left])
                        labels = run_model(net, part).max(0).indices.numpy()
                        hh, ww = min(TILE, y + core.shape[0] - ty), min(TILE, x + core.shape[1] - tx)
                        core[ty - y :][:hh, tx - x :][:, :ww] = labels[ty - a :][:hh, tx - b :][:, :ww]
                array[y : y + core.shape[0], x : x + core.shape[1]] = core


class ConvSegmenter:
    """The same convolution behind the engine's contract; a crop's halo has no weight."""

    class_count = channels = CLASSES

    def __init__(self, threads: int) -> None:
        from ovrs.engine.tiling import TileGeometry

        self.geometry = TileGeometry(crop=TILE + 2 * HALO, stride=TILE, crops_per_tile=1)
        self.net = model(threads)

    def evidence(self, rgb, valid, crops):
        values, weight = run_model(self.net, rgb).numpy(), np.ones(valid.shape, np.float32)
        for edge in (slice(0, HALO // 2), slice(-HALO // 2, None)):  # at the scene's border nothing else covers it
            for array in (values, weight):
                array[..., edge, :] *= 1e-6
                array[..., edge] *= 1e-6
        return values, weight

    def finish(self, evidence):
        from ovrs.engine.contract import TileScores

        return TileScores(evidence)

    def segment(self, rgb, valid, crops):
        values, weight = self.evidence(rgb, valid, crops)
        return self.finish(values / weight)

    def describe(self):
        return {"model": "convolution", "weights": "none", "method": "none"}


def ours(source: Path, out: Path, executor: str = "serial") -> None:
    from ovrs import options, pipeline
    from ovrs.run import segmenters
    from ovrs.words import vocabulary

    segmenter = ConvSegmenter(threads=2 if executor == "serial" else 1)
    segmenters.build = lambda _: segmenter
    words = vocabulary.from_names([f"class {i}" for i in range(CLASSES)])
    run = {"block_pitches": 4, "pyramid": False, "executor": executor}
    pipeline.map_scene(source, words, out, options.build(model={"model": "trivial"}, run=run))


WAYS = {
    "bare rasterio loop, no overlap": (bare_rasterio, "out.tif"),
    "bare Zarr loop, halo 32": (bare_zarr, "out_bare.zarr"),
    "ovrs, serial": (ours, "out_ovrs.zarr"),
    "ovrs, 2 threads": (lambda s, o: ours(s, o, "threads"), "out_threads.zarr"),
}


def one(name: str, folder: Path) -> None:
    if name.startswith("ovrs"):
        from ovrs.engine import allocator

        allocator.keep_freed_memory()  # as the command line does
    import rasterio  # noqa: F401
    import torch  # noqa: F401
    import zarr  # noqa: F401

    import ovrs.run.job  # noqa: F401

    print(json.dumps(measured(WAYS[name][0], folder, folder / WAYS[name][1])))
    if name.startswith("ovrs"):
        gc.freeze()  # as the command line does


def measured(work: Callable[[Path, Path], None], folder: Path, out: Path) -> dict[str, float | str]:
    """Seconds, peak memory of this process so far, how much of the map equals the untiled answer, and seconds of finding that."""
    for leftover in (out, out.with_suffix(".run")):
        shutil.rmtree(leftover, ignore_errors=True)
    out.unlink(missing_ok=True)
    started = time.perf_counter()
    work(folder / "scene.tif", out)
    seconds = time.perf_counter() - started
    done = time.perf_counter()
    lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would remember the parent's
    peak = next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
    if out.suffix == ".tif":
        import rasterio

        with rasterio.open(out) as source:
            labels = source.read(1)
    else:
        import zarr

        found = zarr.open(out, mode="r")
        labels = (found["label"] if isinstance(found, zarr.Group) else found)[:]
    agree = float((labels == np.load(folder / "answer.npy")).mean())
    return {"seconds": seconds, "peak_mb": peak, "agree": agree, "checking": time.perf_counter() - done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/engine"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.work)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    make(args.work, args.size)
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.repeats):  # in turns, so that a busy moment hits all
        for name in WAYS:
            command = [sys.executable, "-m", "benchmarks.engine", "--one", name, "--work", str(args.work)]
            started = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            whole, found = time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])
            found["whole"] = whole - found.pop("checking")
            if name not in best or found["seconds"] < best[name]["seconds"]:
                best[name] = found
    if args.out is not None:
        keep(args.out, best, bundled=False)
    base, raster = best["bare Zarr loop, halo 32"], best["bare rasterio loop, no overlap"]
    print(
        "| way | s | over bare Zarr | whole process, s | over bare rasterio | peak MB | agree |\n|---|---|---|---|---|---|---|"
    )
    for name, f in best.items():
        ratios = f"{f['seconds'] / base['seconds']:.2f} | {f['whole']:.1f} | {f['whole'] / raster['whole']:.2f}"
        print(f"| {name} | {f['seconds']:.1f} | {ratios} | {f['peak_mb']:.0f} | {f['agree']:.6f} |")


if __name__ == "__main__":
    main()
