"""What Prefect adds to a scene, with a standing server and 40 batches: the flow against the library on the same scene.

    python -m benchmarks.prefect_overhead [--side 4096]

Starts `prefect server start` on loopback for the time of the measurement; the trivial segmenter costs next to nothing.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        os.environ |= {"PREFECT_HOME": folder, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
        program = Path(sys.executable).parent / "prefect"
        server = subprocess.Popen(
            [program, "server", "start", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait(f"http://127.0.0.1:{port}/api/health")
            measure(Path(folder), args.side)
        finally:
            server.terminate()
            server.wait()


def wait(url: str) -> None:
    for _ in range(180):
        try:
            if urllib.request.urlopen(url, timeout=2).status == 200:
                return
        except OSError:
            time.sleep(1)
    raise SystemExit("the Prefect server did not start")


def measure(folder: Path, side: int) -> None:
    from ovrs import options, pipeline
    from ovrs.demo.synth import World, write_scene
    from ovrs.flows.map_scene import map_scene
    from ovrs.words import vocabulary

    write_scene(folder / "s.tif", height=side, width=side, world=World(seed=3))
    chosen = options.build(model={"model": "trivial"}, run={"block_pitches": 1})
    started = time.perf_counter()
    pipeline.map_scene(folder / "s.tif", vocabulary.load("demo"), folder / "library.zarr", chosen)
    library = time.perf_counter() - started
    started = time.perf_counter()
    map_scene(str(folder / "s.tif"), str(folder / "flow.zarr"), "", "demo", chosen, 40, products=False)
    flow = time.perf_counter() - started
    print(f"library {library:.1f} s, flow with 40 batches {flow:.1f} s, added {flow - library:.1f} s")


if __name__ == "__main__":
    main()
