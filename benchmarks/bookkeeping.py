"""What is done for a block besides computing it: markers, the way through a Dask scheduler, and sums at the end.

    python -m benchmarks.bookkeeping [--pieces 2000] [--blocks 20000]

Prints milliseconds of the processor per piece or block: waiting for disks and networks is left out, and overlaps with
other blocks. One thread of a client and scheduler carries as many pieces a second as the last line says.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write, read = marker(Path(folder), args.blocks)
    piece = dask_piece(args.pieces)
    print("| what | ms of one core |\n|---|---|")
    print(f"| marker written, per block | {1e3 * write:.2f} |")
    print(f"| marker read at start and end, per block | {1e3 * read:.2f} |")
    print(f"| through the scheduler, per piece of work | {1e3 * piece:.2f} |")
    print(f"\none client and scheduler carry {1 / piece:.0f} pieces a second")


if __name__ == "__main__":
    main()
