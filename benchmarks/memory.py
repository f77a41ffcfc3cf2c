"""Peak memory against scene size, each run in a process of its own.

    python -m benchmarks.memory                 # the trivial segmenter: 5,000² and 20,000², map and export
    python -m benchmarks.memory --model bundled # the bundled model: 2,048², 4,096², 8,192²
    python -m benchmarks.memory --sizes 4096 60000 --vrt [--no-export] [--block 4] [--out benchmarks/results/memory.json]

Prints peak resident memory, and the same above the import baseline (a map of a 64 px scene). The scene is one
generated tile mirrored over the raster, so that writing it does not dominate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from benchmarks.record import keep
from ovrs.demo.synth import World, windows

RUNNER = """
import sys
from ovrs.cli.app import app
app(sys.argv[1:], standalone_mode=False)
line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))  # getrusage would count the parent before exec
print("PEAK", int(line.split()[1]) / 1024)
"""


def mirrored_scene(path: Path, side: int) -> Path:
    """A tiled RGB GeoTIFF of `side` pixels from one mirrored 1,024 px tile."""
    rgb, _ = World(seed=2).render(0, 0, 1024, 1024)
    profile = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "compress": "deflate",
        "zlevel": 1,
    }
    with rasterio.open(path, "w", crs="EPSG:32633", transform=from_origin(5e5, 5.6e6, 0.5, 0.5), **profile) as target:
        for row, col, height, width in windows(side, side):
            tile = rgb[:, :: 1 if row // 1024 % 2 == 0 else -1, :: 1 if col // 1024 % 2 == 0 else -1]
            target.write(np.ascontiguousarray(tile[:, :height, :width]), window=Window(col, row, width, height))
    return path


def repeated_scene(path: Path, side: int) -> Path:
    """The same tile over and over, as a VRT of VRTs: a scene of any size in a few kilobytes."""
    tile = mirrored_scene(path.with_name("tile.tif"), 1024)
    part = _repeated(path.with_name("part.vrt"), tile, 1024, 8192)
    return _repeated(path, part, 8192, side)


def _repeated(path: Path, source: Path, step: int, side: int) -> Path:
    origin = f"<SRS>EPSG:32633</SRS><GeoTransform>{5e5}, 0.5, 0, {5.6e6}, 0, -0.5</GeoTransform>"
    bands = []
    for band, colour in enumerate(("Red", "Green", "Blue"), 1):
        sources = [
            f'<SimpleSource><SourceFilename relativeToVRT="1">{source.name}</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
            f'<DstRect xOff="{col}" yOff="{row}" xSize="{width}" ySize="{height}"/></SimpleSource>'
            for row, col, height, width in windows(side, side, step)
        ]
        bands.append(
            f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{colour}</ColorInterp>{"".join(sources)}</VRTRasterBand>'
        )
    path.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{origin}{"".join(bands)}</VRTDataset>')
    return path


def peak(arguments: list[str]) -> tuple[float, float]:
    """Peak resident memory in MB and seconds of one `ovrs` command in a fresh process."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUNNER, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout.rsplit("PEAK", 1)[1]), time.perf_counter() - begun


def main() -> None:
    """Print one line per size and command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="trivial")
    parser.add_argument("--method", default="tmpa")
    parser.add_argument("--sizes", type=int, nargs="*")
    parser.add_argument("--vocabulary", default="demo")
    parser.add_argument("--vrt", action="store_true", help="one small tile repeated by a VRT: no large file is written")
    parser.add_argument("--no-export", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--block", type=int, default=8, help="pitches per block")
    args = parser.parse_args()
    sizes = args.sizes or ([5000, 20000] if args.model == "trivial" else [2048, 4096, 8192])
    stride = (
        ["--set", "model.stride=160"] if args.model == "trivial" else []
    )  # windows side by side: the engine is measured, not numpy
    print(f"model {args.model}, method {args.method}, serial executor: one block in flight")
    with tempfile.TemporaryDirectory() as folder:
        base: dict[str, float] = {}
        kept: dict[str, dict[str, dict[str, float]]] = {}
        print(f"{'pixels':>8} {'command':8} {'peak MB':>9} {'above base':>11} {'seconds':>8} {'Mpx/s':>7}")
        for size in [64, *sizes]:
            make, ending = (repeated_scene, "vrt") if args.vrt else (mirrored_scene, "tif")
            scene, store = make(Path(folder) / f"{size}.{ending}", size), Path(folder) / f"{size}.zarr"
            commands = {
                "map": [
                    "map",
                    str(scene),
                    "--vocabulary",
                    args.vocabulary,
                    "--model",
                    args.model,
                    "--method",
                    args.method,
                    *stride,
                    "--set",
                    f"run.block_pitches={args.block}",
                    "-o",
                    str(store),
                ],
                "export": [
                    "export",
                    str(store),
                    "--cog",
                    str(store.with_suffix(".cog.tif")),
                    "--png",
                    str(store.with_suffix(".png")),
                ],
            }
            if args.no_export:
                del commands["export"]
            for name, command in commands.items():
                megabytes, seconds = peak(command)
                base.setdefault(name, megabytes)
                kept.setdefault(name, {})[str(size)] = {"peak_mb": megabytes, "seconds": seconds}
                speed = size * size / 1e6 / seconds
                print(
                    f"{size:8} {name:8} {megabytes:9.0f} {megabytes - base[name]:11.0f} {seconds:8.1f} {speed:7.2f}",
                    flush=True,
                )
            scene.unlink()
    if args.out is not None:
        keep(args.out, kept, bundled=args.model == "bundled")


if __name__ == "__main__":
    main()
