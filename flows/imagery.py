"""Many scenes: map a whole collection once, or look again and again for imagery that is not mapped yet.

    python -m ovrs.flows.imagery map incoming --catalog data_catalog.yaml
    python -m ovrs.flows.imagery watch incoming --catalog data_catalog.yaml

What is mapped stands in a ledger beside the maps, so a restarted or a second watcher maps nothing twice.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, tags, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import CancelledRun
from prefect.futures import wait
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from ovrs.collection import catalog as catalogs
from ovrs.collection.deliveries import Delivery, look
from ovrs.collection.ledger import NO_ATTEMPT, Image, Ledger, release_held
from ovrs.errors import DigestMismatchError, IncompleteRunError
from ovrs.options import RunOptions
from ovrs.run import versions
from ovrs.run.publish import short

from ._runs import collection_run_name, ends_blocks, mark
from ._tasks import report
from .map_scene import map_scene

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 2
"""Scenes under way at a time in one flow run; `gpu_pool` limits them over all flow runs."""
LISTED = 20
"""Names that a message lists."""


@task(name="map-image", task_run_name="{image.name}", cache_policy=NO_CACHE)
def map_image(
    catalog: Path,
    collection: str,
    image: Image,
    run: RunOptions,
    gpu_pool: str | None,
    allow_composed_prompts: bool,
    overwrite: bool = False,
) -> str:
    """Map one image unless somebody has or does; returns what became of it."""
    known = catalogs.load(catalog)
    entry, ledger = known.collection(collection), Ledger(known.resolve(known.outputs.root))
    if not ledger.claim(image):
        return "taken"
    newest = known.output(f"{collection}/{image.name}")

    def work(out: str, *, overwrite: bool = False) -> dict[str, Any]:
        ledger.note(image, out=out)
        facts: dict[str, Any] = map_scene(
            image.uri,
            out,
            vocabulary_name=known.words_of(entry),
            options=known.options(entry, run),
            gpu_pool=gpu_pool,
            allow_composed_prompts=allow_composed_prompts,
            overwrite=overwrite,
        )
        return facts

    with ledger.working_on(image, (*NO_ATTEMPT, CancelledRun)):
        out = _out(ledger, image, newest)
        try:
            facts = work(out, overwrite=overwrite)
        except DigestMismatchError as error:
            if not image.content:
                raise
            out = versions.place(newest, image.content)  # of this content alone, so it may be begun anew
            logging.getLogger(__name__).warning("%s is begun anew: %s", image.name, error)
            facts = work(out, overwrite=True)
        ledger.require_held(image)
        _make_newest(ledger, image, out, newest)
        ledger.done(image, map=newest, out=newest, digest=short(facts["digest"]))
    return "mapped"


def _out(ledger: Ledger, image: Image, newest: str) -> str:
    """Where an image is mapped: its name if nothing has it, else a place of its own until it is finished."""
    entry = ledger.entry(image)
    begun = None if entry is None else entry.get("out")
    if begun and begun != newest and versions.holds(newest, image.content) and not versions.holds(begun, image.content):
        versions.promote(begun, newest, newest)  # its change of names was cut off
        return newest
    if begun:
        return str(begun)
    taken = any(e.get("out") == newest and e["key"] != image.key for e in ledger.entries())
    return (
        versions.place(newest, image.content) if image.content and (taken or not versions.is_free(newest)) else newest
    )


def _make_newest(ledger: Ledger, image: Image, made: str, newest: str) -> None:
    """Give a finished map the image's name; the one that has it becomes an older version, which the ledger knows."""
    before = [e for e in ledger.entries() if e.get("map") == newest and e["key"] != image.key]
    content = before[0].get("content", "") if before else versions.content_at(newest)
    older = versions.place(newest, content or f"before-{image.content}")
    if made != newest:
        versions.promote(made, newest, older)
    for entry in before:
        ledger.update(entry, map=older, out=older)


def _outcome(delivery: Delivery) -> str:
    """What stands in results for an image that this pass does not map."""
    return "taken" if delivery.state in ("done", "busy") or delivery.same_as else delivery.state


@flow(name="map-collection", flow_run_name=collection_run_name, task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE))  # type: ignore[arg-type]
def map_collection(
    collection: str,
    catalog: Path = Path("data_catalog.yaml"),
    run: RunOptions | None = None,
    gpu_pool: str | None = None,
    allow_composed_prompts: bool = False,
    overwrite: bool = False,
    allow_holes: bool = False,
) -> dict[str, str]:
    """Map every image of a collection that is not mapped yet; the same content is mapped once.

    Args:
        collection: A name in the catalog.
        catalog: The catalog file, as the worker sees it.
        run: Executor, scheduler, block size.
        gpu_pool: Name of a Prefect concurrency limit.
        allow_composed_prompts: See `map_scene`.
        overwrite: Begin the images that are to be mapped anew, whatever is begun of them; finished maps stay.
        allow_holes: Finish maps although blocks failed; they are no data, and the map says so.

    Returns:
        What became of each image: `mapped`, `taken` (before, or by somebody else, or as another one of equal bytes),
        `waiting` (not whole yet), or `forgotten` (`ovrs collection forget`).

    Raises:
        IncompleteRunError: Images failed, or have no attempt left; every pass says so until somebody acts.
    """
    mark(f"collection:{collection}")
    known = catalogs.load(catalog)
    found = look(known, collection, Ledger(known.resolve(known.outputs.root)))
    log, run = get_run_logger(), run or RunOptions()
    if allow_holes:
        run = run.model_copy(update={"allow_holes": True})
    log.info("collection %s holds %d images", collection, len(found))
    with tags(f"collection:{collection}"):
        runs = {
            d.image.name: map_image.submit(
                catalog, collection, d.image, run, gpu_pool, allow_composed_prompts, overwrite
            )
            for d in _taken_up(known, found)
        }
    try:
        with ends_blocks():
            wait(list(runs.values()))
    except BaseException:  # cancelled, or the worker is being restarted
        release_held()
        raise
    outcome = {d.image.name: _outcome(d) for d in found}
    outcome |= {n: str(r.result()) if r.state.is_completed() else "failed" for n, r in runs.items()}
    reasons = {d.image.name: d.reason for d in found if d.reason}
    if set(outcome.values()) - {"taken", "forgotten"}:
        table = [{"image": n, "outcome": o, "reason": reasons.get(n, "")} for n, o in outcome.items()]
        report(create_table_artifact, key="collection", table=table, description=f"Images of {collection}")
    return _finished(collection, outcome, reasons)


def _taken_up(known: catalogs.Catalog, found: list[Delivery]) -> Iterator[Delivery]:
    """The images that a pass submits; contents that came back are given free first."""
    ledger = Ledger(known.resolve(known.outputs.root))
    for delivery in found:
        if delivery.to_do:
            entry = ledger.entry(delivery.image)
            if delivery.state == "returned" and entry is not None:
                ledger.decide(entry, "released")
            yield delivery


def _finished(collection: str, outcome: dict[str, str], reasons: dict[str, str]) -> dict[str, str]:
    """The outcome with a message; an error while an image is not mapped that nobody will map by himself."""
    named = {o: sorted(n for n, found in outcome.items() if found == o) for o in set(outcome.values())}
    parts = []
    if failed := named.get("failed"):
        again = "the next run tries them again"
        parts.append(f"{len(failed)} of {len(outcome)} images failed: {_listed(failed)}; {again}")
    if hopeless := named.get("hopeless"):
        why = "; ".join(f"{n} ({reasons[n][:200]})" for n in hopeless[:LISTED])
        act = "`ovrs collection retry NAME` or `ovrs collection forget NAME`"
        parts.append(f"{len(hopeless)} of {len(outcome)} images have no attempt left: {why}; {act}")
    if waiting := named.get("waiting"):
        parts.append(f"{len(waiting)} are not whole yet: {_listed(waiting)}")
    message = ". ".join([f"{collection}: {len(named.get('mapped', []))} mapped", *parts])
    if failed or hopeless:
        raise IncompleteRunError(message)
    return Completed(message=message, data=outcome)  # type: ignore[return-value]  # Prefect gives callers the data


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


@flow(name="watch-collection", flow_run_name=collection_run_name)
def watch_collection(
    collection: str,
    catalog: Path = Path("data_catalog.yaml"),
    run: RunOptions | None = None,
    gpu_pool: str | None = None,
    allow_composed_prompts: bool = False,
    allow_holes: bool = False,
) -> dict[str, str]:
    """One look for new imagery; a schedule repeats it. Cheap when there is none.

    Args:
        collection: A name in the catalog.
        catalog: The catalog file, as the worker sees it.
        run: Executor, scheduler, block size.
        gpu_pool: Name of a Prefect concurrency limit.
        allow_composed_prompts: See `map_scene`.
        allow_holes: Finish maps although blocks failed; they are no data, and the map says so.
    """
    mark(f"collection:{collection}")
    known = catalogs.load(catalog)
    found = look(known, collection, Ledger(known.resolve(known.outputs.root)))
    if all(d.state in ("done", "busy", "forgotten") for d in found):
        message = f"nothing new in {collection} ({len(found)} images)"
        get_run_logger().info(message)
        return Completed(message=message, data={})  # type: ignore[return-value]
    outcome: dict[str, str] = map_collection(
        collection, catalog, run, gpu_pool, allow_composed_prompts, allow_holes=allow_holes
    )
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
