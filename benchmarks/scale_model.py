"""From measured costs per tile to time and money: one scene on a laptop, up to Germany at 20 cm on 64 GPUs.

    python -m benchmarks.scale_model --measure [--side 2560]   measures here; predictions beside 1, 2 and 4 local workers
    python -m benchmarks.scale_model                           uses the figures of the last measurement (scale_costs.json)

Model. A worker is a process with one computing thread, one that reads ahead and one that writes. Where each worker has
spare cores for the last two, a tile costs the largest of reading, computing and writing, else their sum. Workers share
the tiles, up to the cores or GPUs there are; the scheduler serves a batch in `schedule` seconds; storage has a
bandwidth. The slowest of these sets the time and is named. A GPU's computing is this machine's divided by a speed-up
that is an assumption, not a measurement; so are bandwidths and prices.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovrs.run.job import Job

KEPT = Path(__file__).parent / "scale_costs.json"
RUN = {"block_pitches": 2, "batch": 2, "pyramid": False}


@dataclass(frozen=True)
class Costs:
    """Seconds per tile on one core, except where said."""

    read: float
    encode: float
    adapt: float
    blend: float
    """Blending and deciding."""
    write: float
    """Pixels and marker."""
    schedule: float
    """Per batch, at the scheduler."""
    start: float
    """Per run: workers start, import, load the model, and stop again."""
    pitch: int
    """Pixels from tile to tile."""


@dataclass(frozen=True)
class Site:
    name: str
    tiles: float
    """With those that two blocks compute both."""
    batches: float
    workers: int
    parallel: int
    """Cores or GPUs that compute at the same time."""
    spare: bool
    """Whether each worker has cores left for reading and writing."""
    speed_up: float = 1.0
    bandwidth: float = 500.0
    """Storage, MB per second for all workers together."""
    price: float = 0.0
    """Per worker and hour."""


def predict(costs: Costs, site: Site) -> dict[str, Any]:
    """Seconds that each resource needs; the largest is the time."""
    lanes = max(1, min(site.workers, site.parallel, site.batches))
    compute = (costs.encode + costs.adapt + costs.blend) / site.speed_up
    parts = {"reading": costs.read, "computing": compute, "writing": costs.write}
    shared = parts if site.spare else {"computing": sum(parts.values())}
    needs = {k: v * site.tiles / lanes for k, v in shared.items()}
    needs["the scheduler"] = site.batches * costs.schedule
    megabytes = site.tiles * costs.pitch**2 * (3 + 2) / 1e6  # three bands in, label and confidence out
    needs["storage"] = megabytes / site.bandwidth
    bottleneck = max(needs, key=lambda k: needs[k])
    seconds = costs.start * max(1.0, site.workers / site.parallel) + needs[bottleneck]
    return {"seconds": seconds, "bottleneck": bottleneck, "cost": site.price * site.workers * seconds / 3600}


def site(name: str, megapixels: float, costs: Costs, workers: int, parallel: int, **more: Any) -> Site:
    """A site with the default block of 8 x 8 pitches and batches of four blocks."""
    pitches = megapixels * 1e6 / costs.pitch**2
    return Site(name, pitches * (9 / 8) ** 2, pitches / 64 / 4, workers, parallel, **more)


def sites(costs: Costs) -> list[Site]:
    germany = 357_600e6 / 0.2**2 / 1e6
    gpu = {"spare": True, "speed_up": 40.0, "price": 2.5}
    return [
        site("1 scene of 10,000², laptop, 2 cores", 100, costs, 2, 2, spare=False),
        site("100 such scenes, laptop, 2 cores", 10_000, costs, 2, 2, spare=False),
        site("100 such scenes, server, 32 cores", 10_000, costs, 32, 32, spare=False, price=0.05),
        site("20,000 km² at 20 cm, 4 GPUs", 20_000e6 / 0.04 / 1e6, costs, 4, 4, bandwidth=1000, **gpu),
        site("Germany at 20 cm, 64 GPUs", germany, costs, 64, 64, bandwidth=5000, **gpu),
        site("the same, storage of 500 MB/s", germany, costs, 64, 64, bandwidth=500, **gpu),
        site("10,000 scenes of 10,000², 4 GPUs", 1e6, costs, 4, 4, bandwidth=1000, **gpu),
        site("1 scene of 1,000,000², 16 GPUs", 1e6, costs, 16, 16, bandwidth=2000, **gpu),
        site("1 scene of 1,000,000², 64 GPUs", 1e6, costs, 64, 64, bandwidth=5000, **gpu),
    ]


class Stopwatch:
    """A segmenter that knows how long it has been asked."""

    def __init__(self, segmenter: Any) -> None:
        self.segmenter, self.seconds = segmenter, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.segmenter, name)
        return self._timed(found) if name in ("segment", "evidence", "finish") else found

    def _timed(self, ask: Any) -> Any:
        def asked(*given: Any) -> Any:
            started = time.perf_counter()
            found = ask(*given)
            self.seconds += time.perf_counter() - started
            return found

        return asked


def per_tile(this: Job, blocks: int = 3) -> tuple[dict[str, float], float]:
    """Seconds per tile of the steps of some blocks in the middle, and of the segmenter's part of computing."""
    from ovrs.engine.block import map_block
    from ovrs.run import segmenters, work

    watch = Stopwatch(segmenters.build(this.spec))
    names = this.plan.block_names()
    chosen = names[len(names) // 2 :][:blocks]
    spent, tiles = {"read": 0.0, "compute": 0.0, "write": 0.0}, 0
    for name in [chosen[0], *chosen]:  # the first one warms up
        if name == chosen[0]:
            spent, tiles, watch.seconds = dict.fromkeys(spent, 0.0), 0, 0.0
        block, clock = this.block(name), time.perf_counter()
        pixels = this.scene.read(block.read)
        read, clock = time.perf_counter() - clock, time.perf_counter()
        result = map_block(this.scene, watch, this.plan, block, this.rule, pixels=pixels)
        compute, clock = time.perf_counter() - clock, time.perf_counter()
        work._commit(this, name, result, clock)
        for key, value in {"read": read, "compute": compute, "write": time.perf_counter() - clock}.items():
            spent[key] += value
        tiles += result.tiles
    return {k: v / tiles for k, v in spent.items()}, watch.seconds / tiles


def measure(side: int, work: Path) -> tuple[Costs, list[tuple[int, float, float]]]:
    """Costs of one worker; then (workers, predicted, measured) seconds of runs with local Dask workers of one thread."""
    import torch

    from ovrs import options, pipeline
    from ovrs.demo.synth import World, write_scene
    from ovrs.engine.execute import run
    from ovrs.options import RunOptions
    from ovrs.run import begin
    from ovrs.words import vocabulary

    torch.set_num_threads(1)  # as Dask's workers have
    work.mkdir(parents=True, exist_ok=True)
    scene, small, words = work / "scene.tif", work / "small.tif", vocabulary.load("demo")
    write_scene(scene, height=side, width=side, world=World(seed=3))
    write_scene(small, height=64, width=64, world=World(seed=3))

    def prepared(method: str) -> Job:
        given = options.build(method={"method": method}, run=RUN)
        return begin.prepare(scene, words, work / f"{method}.zarr", given, overwrite=True)

    def timed(source: Path, workers: int) -> float:
        given = options.build(run={**RUN, "executor": "dask", "workers": workers})
        clock = time.perf_counter()
        pipeline.map_scene(source, words, work / f"w{workers}.zarr", given, overwrite=True)
        return time.perf_counter() - clock

    adapted, full = per_tile(prepared("tmpa"))
    _, encode = per_tile(prepared("none"))
    clock, count = time.perf_counter(), 1000
    for _ in run(RunOptions(executor="dask", workers=1), _nothing, range(count)):
        pass
    schedule = (time.perf_counter() - clock) / count
    start = timed(small, 1)
    plan = prepared("none").plan
    steps = {"read": adapted["read"], "encode": encode, "adapt": full - encode, "blend": adapted["compute"] - full}
    costs = Costs(**steps, write=adapted["write"], schedule=schedule, start=start, pitch=plan.geometry.pitch)
    tiles, batches = sum(len(plan.tiles_of(b.core)) for b in plan.blocks()), plan.block_count / RUN["batch"]
    cores, checks = os.cpu_count() or 1, []
    for workers in (1, 2, 4):
        here = Site("here", tiles, batches, workers, cores, spare=workers < cores)
        checks.append((workers, predict(costs, here)["seconds"], timed(scene, workers)))
    return costs, checks


def _nothing(item: int) -> int:
    return item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--side", type=int, default=2560)
    parser.add_argument("--work", type=Path, default=Path("build/scale"))
    args = parser.parse_args()
    if args.measure:
        costs, checks = measure(args.side, args.work)
        KEPT.write_text(json.dumps(asdict(costs), indent=1) + "\n", "utf-8")
        print("| local workers | predicted, s | measured, s | measured / predicted | speed-up without the start |")
        print("|---|---|---|---|---|")
        alone = checks[0][2] - costs.start
        for workers, predicted, seconds in checks:
            begun = costs.start * max(1.0, workers / (os.cpu_count() or 1))
            faster = alone / max(seconds - begun, 1e-9)
            print(f"| {workers} | {predicted:.1f} | {seconds:.1f} | {seconds / predicted:.2f} | {faster:.2f} |")
        print()
    if not KEPT.exists():
        raise SystemExit("no measured costs yet: run `python -m benchmarks.scale_model --measure` first (some minutes)")
    costs = Costs(**json.loads(KEPT.read_text("utf-8")))
    print(
        "ms per tile: "
        + ", ".join(f"{k} {1e3 * v:.1f}" for k, v in asdict(costs).items() if k not in ("start", "pitch"))
    )
    print(f"start {costs.start:.1f} s\n\n| case | time | bottleneck | cost |\n|---|---|---|---|")
    for given in sites(costs):
        found = predict(costs, given)
        hours = found["seconds"] / 3600
        shown = f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 100 else f"{hours / 24:.0f} days"
        cost = f"{found['cost']:,.0f}" if given.price else "–"
        print(f"| {given.name} | {shown} | {found['bottleneck']} | {cost} |")


if __name__ == "__main__":
    main()
