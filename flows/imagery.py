"""Many scenes: map a whole collection once, or look again and again for imagery that is not mapped yet.

    python -m flows.imagery map incoming --catalog data_catalog.yaml
    python -m flows.imagery watch incoming --catalog data_catalog.yaml

What is mapped stands in a ledger beside the maps, so a restarted or a second watcher maps nothing twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.map_scene import map_scene
from ovrs.collection import catalog as room
from ovrs.collection.imagery import images
from ovrs.collection.ledger import Image, Ledger
from ovrs.errors import IncompleteRunError
from ovrs.options import RunOptions
from ovrs.run.publish import short

AT_ONCE = 2
"""Scenes under way at a time in one flow run; `gpu_pool` limits them over all flow runs."""


@task(name="map-image", cache_policy=NO_CACHE)
def map_image(
    catalog: Path, collection: str, image: Image, run: RunOptions, gpu_pool: str | None, allow_composed_prompts: bool
) -> str:
    """Map one image unless somebody has or does; returns what became of it."""
    known = room.load(catalog)
    entry, ledger = known.collection(collection), Ledger(known.resolve(known.outputs.root))
    if not ledger.claim(image):
        return "taken"
    out = known.output(f"{collection}/{image.name}")
    words = known.vocabularies.get(entry.vocabulary)
    with ledger.working_on(image):
        facts = map_scene(
            image.uri,
            out,
            vocabulary_name=str(known.base / words) if words else entry.vocabulary,
            options=known.options(entry, run),
            gpu_pool=gpu_pool,
            allow_composed_prompts=allow_composed_prompts,
        )
    ledger.done(image, map=out, digest=short(facts["digest"]))
    return "mapped"


@flow(name="map-collection", task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE))  # type: ignore[arg-type]
def map_collection(
    collection: str,
    catalog: Path = Path("data_catalog.yaml"),
    run: RunOptions | None = None,
    gpu_pool: str | None = None,
    allow_composed_prompts: bool = False,
) -> dict[str, str]:
    """Map every image of a collection that is not mapped yet.

    Args:
        collection: A name in the catalog.
        catalog: The catalog file, as the worker sees it.
        run: Executor, scheduler, block size.
        gpu_pool: Name of a Prefect concurrency limit.
        allow_composed_prompts: See `map_scene`.

    Returns:
        What became of each image: `mapped`, `taken` (before, or by somebody else), or `failed`.
    """
    found = images(room.load(catalog), collection)
    log = get_run_logger()
    log.info("collection %s holds %d images", collection, len(found))
    runs = {
        i.name: map_image.submit(catalog, collection, i, run or RunOptions(), gpu_pool, allow_composed_prompts)
        for i in found
    }
    wait(list(runs.values()))
    outcome = {n: str(r.result()) if r.state.is_completed() else "failed" for n, r in runs.items()}
    if any(o != "taken" for o in outcome.values()):
        create_table_artifact(key="collection", table=[{"image": n, "outcome": o} for n, o in outcome.items()])
    failed = [n for n, o in outcome.items() if o == "failed"]
    if failed:
        raise IncompleteRunError(
            f"{len(failed)} of {len(found)} images failed: {', '.join(failed)}; the next run tries them again"
        )
    return outcome


@flow(name="watch-collection")
def watch_collection(
    collection: str,
    catalog: Path = Path("data_catalog.yaml"),
    run: RunOptions | None = None,
    gpu_pool: str | None = None,
    allow_composed_prompts: bool = False,
) -> dict[str, str]:
    """One look for new imagery; a schedule repeats it. Cheap when there is none (arguments as `map_collection`)."""
    known = room.load(catalog)
    ledger = Ledger(known.resolve(known.outputs.root))
    states = {i: ledger.entry(i) for i in images(known, collection)}
    fresh = [i for i, e in states.items() if e is None or e["status"] != "done"]
    if not fresh:
        get_run_logger().info("nothing new in %s (%d images are mapped)", collection, len(states))
        return {}
    outcome: dict[str, str] = map_collection(collection, catalog, run, gpu_pool, allow_composed_prompts)
    return outcome


def main() -> None:
    """Command line of the flows."""
    parser = argparse.ArgumentParser(description="Map or watch a collection of the catalog.")
    parser.add_argument("what", choices=["map", "watch"])
    parser.add_argument("collection")
    parser.add_argument("--catalog", type=Path, default=Path("data_catalog.yaml"))
    parser.add_argument("--scheduler")
    args = parser.parse_args()
    run = RunOptions(executor="dask", scheduler=args.scheduler) if args.scheduler else RunOptions()
    work: Any = map_collection if args.what == "map" else watch_collection
    for name, outcome in work(args.collection, args.catalog, run).items():
        print(f"{name}: {outcome}")


if __name__ == "__main__":
    main()
