"""What the allocator's settings cost a network on the CPU: glibc's own, Dask's default, and those that local clusters get.

    python -m benchmarks.allocator [--seconds 8] [--out benchmarks/results/allocator.json]

Prints batches of 16 crops per second of the bundled model's vision tower, a process each, in a thread that is not the
first, as Dask's workers compute; then two processes at once, which tells what the machine itself allows two workers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.record import keep
from ovrs.engine.allocator import ENVIRONMENT

SETTINGS: dict[str, dict[str, str]] = {
    "glibc's own": {},
    "Dask's default": {"MALLOC_TRIM_THRESHOLD_": "65536"},
    "ours": ENVIRONMENT,
}


def rate(seconds: float) -> float:
    import torch

    from ovrs.model.clip.dense import dense_tokens
    from ovrs.model.clip.loading import load
    from ovrs.options import ModelOptions

    torch.set_num_threads(1)
    visual, crops = load(ModelOptions(device="cpu")).clip.visual, torch.randn(16, 3, 160, 160)
    with torch.inference_mode():
        dense_tokens(visual, crops)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            dense_tokens(visual, crops)
            count += 1
        return count / (time.perf_counter() - started)


def measure(extra: dict[str, str], seconds: float, processes: int = 1) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.allocator", "--one", "--seconds", str(seconds)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=clean | extra, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return [float(process.communicate()[0]) for process in running]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with ThreadPoolExecutor(1) as pool:
            print(pool.submit(rate, args.seconds).result())
        return
    kept: dict[str, list[float]] = {}
    for name, extra in SETTINGS.items():
        kept[name] = measure(extra, args.seconds)
        print(f"{name:20} {kept[name][0]:.2f}", flush=True)
    kept["two at once"] = measure(ENVIRONMENT, args.seconds, 2)
    print(f"{'two at once':20} {' + '.join(f'{r:.2f}' for r in kept['two at once'])}")
    if args.out is not None:
        keep(args.out, kept)


if __name__ == "__main__":
    main()
