"""From measured costs per tile to time and money: one scene on a laptop, up to Germany at 20 cm on 64 GPUs.

    python -m benchmarks.scale_model --measure [--side 2048]     measures here, compares predictions with 1, 2 and 4 workers
    python -m benchmarks.scale_model                             uses the figures of the last measurement

Model: a worker reads ahead while it computes, so a tile costs max(read, compute) + write; tiles are shared by `workers`
up to the cores or GPUs there are; the scheduler serves `1 / schedule` batches a second; storage has a bandwidth. The
slowest of these is the bottleneck and sets the time. GPU compute is this machine's figure divided by a speed-up that is
given, not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

KEPT = Path(__file__).parent / "scale_costs.json"


@dataclass(frozen=True)
class Costs:
    """Seconds per megapixel of one worker on one core, except where said."""

    read: float
    compute: float
    write: float
    schedule: float
    """Seconds per batch at the scheduler."""
    start: float
    """Seconds until a worker has loaded its model."""
    megapixels_per_batch: float
    bytes_per_pixel: float = 3.0


@dataclass(frozen=True)
class Site:
    name: str
    megapixels: float
    workers: int
    parallel: int
    """Cores or GPUs that compute at the same time."""
    speed_up: float = 1.0
    """Of computing, over one core here: an assumption for GPUs."""
    bandwidth: float = 500.0
    """Storage, MB per second for all workers together."""
    price: float = 0.0
    """Per worker and hour."""


def predict(costs: Costs, site: Site) -> dict[str, float | str]:
    """Seconds of each resource, the largest being the time."""
    lanes = min(site.workers, site.parallel)
    compute = costs.compute / site.speed_up
    worker = max(costs.read, compute) + costs.write
    batches = site.megapixels / costs.megapixels_per_batch
    lanes = min(lanes, max(1, batches))
    needs = {
        "reading" if costs.read > compute else "computing": site.megapixels * worker / lanes,
        "scheduler": batches * costs.schedule,
        "storage": site.megapixels * (costs.bytes_per_pixel + 2) / site.bandwidth,
    }
    bottleneck = max(needs, key=lambda k: needs[k])
    seconds = costs.start + needs[bottleneck]
    return {"seconds": seconds, "bottleneck": bottleneck, "cost": site.price * site.workers * seconds / 3600}


GERMANY = 357_600e6 / 0.2**2 / 1e6
SITES = (
    Site("1 scene of 10,000 px, laptop, 2 cores", 100, 2, 2),
    Site("100 scenes, laptop, 2 cores", 10_000, 2, 2),
    Site("100 scenes, server, 32 cores", 10_000, 32, 32, price=0.05),
    Site("a state of 20,000 km² at 20 cm, 4 GPUs", 20_000e6 / 0.04 / 1e6, 4, 4, 40, 1000, 2.5),
    Site("Germany at 20 cm, 64 GPUs", GERMANY, 64, 64, 40, 5000, 2.5),
    Site("Germany at 20 cm, 64 GPUs, storage of 500 MB/s", GERMANY, 64, 64, 40, 500, 2.5),
)


def measure(side: int, work: Path) -> tuple[Costs, list[tuple[int, float]]]:
    """Costs of one worker, and wall seconds with 1, 2 and 4 local Dask workers of one thread each."""
    import numpy as np
    import torch

    from ovrs import job, options, pipeline, segmenters, store, vocabulary
    from ovrs.block import map_block
    from ovrs.execute import run
    from ovrs.options import RunOptions
    from ovrs.synth import World, write_scene

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    scene, words = work / "scene.tif", vocabulary.load("demo")
    write_scene(scene, height=side, width=side, world=World(seed=3))
    chosen = options.build(run={"block_pitches": 1, "batch": 1, "pyramid": False})
    started = time.perf_counter()
    this = job.prepare(scene, words, work / "measure.zarr", chosen, overwrite=True)
    segmenter = segmenters.build(this.spec)
    start = time.perf_counter() - started
    names = list(this.plan.block_names())
    name = names[len(names) // 2]
    block = this.block(name)
    megapixels = block.core.height * block.core.width / 1e6
    spent = {"read": 0.0, "compute": 0.0, "write": 0.0}
    for _ in range(3):
        clock = time.perf_counter()
        pixels = this.scene.read(block.read)
        spent["read"] += time.perf_counter() - clock
        clock = time.perf_counter()
        result = map_block(this.scene, segmenter, this.plan, block, this.rule, pixels=pixels)
        spent["compute"] += time.perf_counter() - clock
        clock = time.perf_counter()
        store.write_block(
            store.partial_path(this.out), block.core, this.plan.chunk, result.label, result.confidence, None
        )
        spent["write"] += time.perf_counter() - clock
    per = {k: v / 3 / megapixels for k, v in spent.items()}
    clock = time.perf_counter()
    count = sum(1 for _ in run(RunOptions(executor="dask", workers=1), _nothing, range(2000)))
    schedule = (time.perf_counter() - clock) / count
    costs = Costs(**per, schedule=schedule, start=start, megapixels_per_batch=megapixels)
    times = []
    for workers in (1, 2, 4):
        out = work / f"w{workers}.zarr"
        given = options.build(
            run={"block_pitches": 1, "batch": 1, "pyramid": False, "executor": "dask", "workers": workers}
        )
        clock = time.perf_counter()
        pipeline.map_scene(scene, words, out, given, overwrite=True)
        times.append((workers, time.perf_counter() - clock))
    assert np.isfinite(costs.compute)
    return costs, times


def _nothing(item: int) -> int:
    return item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--work", type=Path, default=Path("build/scale"))
    args = parser.parse_args()
    if args.measure:
        costs, times = measure(args.side, args.work)
        KEPT.write_text(json.dumps(asdict(costs), indent=1) + "\n", "utf-8")
        cores = os.cpu_count() or 1
        print(f"measured: {costs}\n\n| local workers | predicted, s | measured, s |\n|---|---|---|")
        for workers, seconds in times:
            site = Site("here", args.side**2 / 1e6, workers, cores)
            # each process imports and loads once more; they do so side by side on the cores
            starts = costs.start * max(1.0, workers / cores) * 2
            print(f"| {workers} | {float(predict(costs, site)['seconds']) + starts:.1f} | {seconds:.1f} |")
        print()
    if not KEPT.exists():
        raise SystemExit("no measured costs yet: run `python -m benchmarks.scale_model --measure` first (some minutes)")
    costs = Costs(**json.loads(KEPT.read_text("utf-8")))
    print("| case | time | bottleneck | cost |\n|---|---|---|---|")
    for site in SITES:
        found = predict(costs, site)
        hours = float(found["seconds"]) / 3600
        shown = f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 100 else f"{hours / 24:.0f} days"
        cost = f"{float(found['cost']):,.0f}" if site.price else "–"
        print(f"| {site.name} | {shown} | {found['bottleneck']} | {cost} |")


if __name__ == "__main__":
    main()
