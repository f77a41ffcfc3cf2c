"""What is done for a block besides computing it: planning, markers, the way through a Dask scheduler, the end of a run.

    python -m benchmarks.bookkeeping [--pieces 2000] [--side 1000000] [--blocks 20000] [--out benchmarks/results/bookkeeping.json]

The first table is the processor's time per piece or block: waiting for disks and networks is left out, and overlaps with
other blocks. One thread of a client and scheduler carries as many pieces a second as the line below says. The second
table simulates a whole scene of `--side` pixels in both directions: a VRT of two sparse files, crops of 224 pixels at
half stride, a marker for every block, sharded arrays. It tells what one process, the parent, spends on each step of a
run in seconds of the clock, and its memory after the step. A handful of blocks is computed, the others have no valid pixel.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.record import keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovrs.run.job import Job


def dask_piece(count: int) -> float:
    """Processor seconds of client and scheduler per piece of work that does nothing, with two worker processes."""
    from ovrs.engine.execute import run
    from ovrs.options import RunOptions

    options = RunOptions(executor="dask", workers=2)
    clock = 0.0
    for seen, _ in enumerate(run(options, len, [[i] for i in range(count + 20)])):
        clock = clock or (time.process_time() if seen == 20 else 0.0)
    return (time.process_time() - clock) / count


def marker(folder: Path, count: int) -> tuple[float, float]:
    """Seconds per block to write its marker, and to read all of them."""
    from ovrs.run.rundir import BlockRecord, RunDir

    run = RunDir(folder / "m.zarr")
    started = time.process_time()
    for number in range(count):
        name = f"{number // 1000:05d}_{number % 1000:05d}"
        run.record(BlockRecord(name=name, status="done", histogram={"0": 1, "3": 9}, areas_m2={"0": 1.0, "3": 9.0}))
    written = time.process_time()
    assert len(run.records()) == count
    return (written - started) / count, (time.process_time() - written) / count


def sparse_scene(folder: Path, side: int) -> Path:
    """A VRT of `side` pixels a side with an image of 4,000 pixels at two corners."""
    import rasterio
    from rasterio.transform import from_origin

    shape = {"driver": "GTiff", "height": 4000, "width": 4000, "count": 3, "dtype": "uint8", "nodata": 0}
    pixels = np.random.default_rng(0).integers(1, 255, (3, 125, 125), np.uint8).repeat(32, 1).repeat(32, 2)
    bands = ["" for _ in range(3)]
    for name, start in (("a.tif", 0), ("b.tif", side - 4000)):
        place = from_origin(3e5 + 0.3 * start, 6e6 - 0.3 * start, 0.3, 0.3)
        with rasterio.open(
            folder / name, "w", **shape, tiled=True, blockxsize=512, blockysize=512, crs="EPSG:32633", transform=place
        ) as target:
            target.write(pixels)
        for band in range(3):
            bands[band] += (
                f'<ComplexSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>{band + 1}</SourceBand>'
                '<SrcRect xOff="0" yOff="0" xSize="4000" ySize="4000"/>'
                f'<DstRect xOff="{start}" yOff="{start}" xSize="4000" ySize="4000"/><NODATA>0</NODATA></ComplexSource>'
            )
    told = "".join(
        f'<VRTRasterBand dataType="Byte" band="{i + 1}"><NoDataValue>0</NoDataValue>{b}</VRTRasterBand>'
        for i, b in enumerate(bands)
    )
    (folder / "scene.vrt").write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>300000, 0.3, 0, 6000000, 0, -0.3</GeoTransform>{told}</VRTDataset>"
    )
    return folder / "scene.vrt"


def fake_markers(job: Job, names: list[str]) -> None:
    """Markers of blocks without a valid pixel, as workers would write them."""
    from dataclasses import asdict

    from ovrs.run.rundir import BlockRecord, _check

    for name in names:
        stages = {"read": 0.1, "compute": 0.001, "write": 0.1}
        told = asdict(BlockRecord(name=name, status="empty", stages=stages, worker="host:1", crc="0" * 8))
        plain = json.loads(json.dumps(told))
        (Path(str(job.run_dir.blocks)) / f"{name}.json").write_text(json.dumps({**plain, "check": _check(plain)}))
        time.sleep(0)


def scene(side: int, folder: Path) -> dict[str, Any]:
    """Number of blocks, and seconds of the clock and resident megabytes of the parent by step; each is printed."""
    from ovrs import options
    from ovrs.run import begin, finish, meter, work
    from ovrs.run.report import status_of
    from ovrs.words import vocabulary

    steps: dict[str, dict[str, float]] = {}

    def step(name: str, do: Callable[[], object]) -> None:
        started = time.perf_counter()
        do()
        told = steps[name] = {"seconds": time.perf_counter() - started, "mb": resident()}
        print(f"| {name} | {told['seconds']:.2f} | {told['mb']:.0f} |", flush=True)

    path, out, words = sparse_scene(folder, side), folder / "map.zarr", vocabulary.load("demo")
    chosen = options.build(model={"model": "trivial", "crop": 224}, run={"shards": True})
    prepared: list[Job] = []
    step("plan and begin", lambda: prepared.append(begin.prepare(path, words, out, chosen)))
    (job,) = prepared
    names = job.plan.block_names()
    real = [names[0], names[-1]]
    step("every block of the plan, once", lambda: [job.block(name) for name in names])
    step("missing blocks, none done", job.missing)
    step("counting tiles for the bar", lambda: meter.tiles_by_block(job.plan, names))
    step("two blocks with pixels", lambda: list(work.run_blocks(job, real)))
    fake_markers(job, names[1:-1])
    time.sleep(2.5)
    step("missing blocks, all done: markers read", job.missing)
    step("missing blocks, again", job.missing)
    step("status", lambda: status_of(out))
    step("finish: compare, overviews, checksums, record", lambda: finish.finish(job))
    return {"side": side, "blocks": len(names), "steps": steps}


def resident() -> float:
    """Memory of this process in megabytes."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if status.exists() else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=2000, help="0 leaves the first table out.")
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=1_000_000, help="0 leaves the second table out.")
    parser.add_argument("--out", type=Path, help="JSON to write: the second table")
    args = parser.parse_args()
    if args.pieces:
        with tempfile.TemporaryDirectory() as folder:
            write, read = marker(Path(folder), args.blocks)
        piece = dask_piece(args.pieces)
        print("| what | ms of one core |\n|---|---|")
        print(f"| marker written, per block | {1e3 * write:.2f} |")
        print(f"| marker read at start and end, per block | {1e3 * read:.2f} |")
        print(f"| through the scheduler, per piece of work | {1e3 * piece:.2f} |")
        print(f"\none client and scheduler carry {1 / piece:.0f} pieces a second\n")
    if args.side:
        with tempfile.TemporaryDirectory() as folder:
            print("| step of the parent | s | MB after it |\n|---|---|---|", flush=True)
            found = scene(args.side, Path(folder))
        print(f"\n{args.side} x {args.side} pixels, {found['blocks']} blocks")
        if args.out is not None:
            keep(args.out, found, bundled=False)


if __name__ == "__main__":
    main()
