"""Map one scene as a Prefect flow: `python -m ovrs.flows.map_scene SCENE.tif OUT.zarr --vocabulary landcover`.

The same work as `ovrs map`, cut into batches of blocks that Prefect shows, retries and reports. No standing server is
needed; with `PREFECT_API_URL` set, the run appears there. A cancelled run leaves a store that the same flow, or `ovrs
resume`, continues.
"""

from __future__ import annotations

import argparse
import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from prefect import flow, tags
from prefect.artifacts import create_progress_artifact
from prefect.concurrency.sync import concurrency
from prefect.exceptions import CancelledRun
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from ovrs import pipeline
from ovrs.engine.allocator import keep_freed_memory
from ovrs.objects.address import place_of
from ovrs.options import MapOptions
from ovrs.redact import guard_logs, redacted
from ovrs.request import Request
from ovrs.run.job import Job
from ovrs.store.record import RunRecord
from ovrs.telemetry import log_as_json
from ovrs.words.prompts import LanguageModel

from ._runs import asset, ends_blocks, mark, scene_name, scene_run_name, stopping
from ._tasks import export, map_blocks, prompts, publish, report

log = logging.getLogger(__name__)

SUBMISSIONS = 3
"""How often a task run is submitted that its server did not let begin: one that answers 503 is soon there again."""
BATCHES = 16
"""Task runs per scene: bookkeeping stays at seconds however large the scene is."""


@flow(name="map-scene", flow_run_name=scene_run_name, task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
def map_scene(
    scene: str,
    out: str,
    classes: str = "",
    vocabulary_name: str = "",
    options: MapOptions | None = None,
    batches: int = BATCHES,
    products: bool = True,
    overwrite: bool = False,
    allow_holes: bool = False,
    llm: LanguageModel | None = None,
    scene_context: str = "",
    allow_composed_prompts: bool = False,
    gpu_pool: str | None = None,
) -> dict[str, object]:
    """Map a scene into a Zarr store and export it.

    Args:
        scene: Anything GDAL can open.
        out: The store to write: NAME.zarr, or a URL such as s3://bucket/NAME.zarr.
        classes: Class names separated by commas; or
        vocabulary_name: a shipped vocabulary or a YAML file.
        options: See `ovrs.options.MapOptions`.
        batches: Number of task runs the blocks are split into.
        products: Also write COG and picture (beside the store; not for URLs).
        overwrite: Discard what is at `out` and begin anew.
        allow_holes: Finish although blocks failed; they are no data, and the map says so.
        llm: Language model that describes classes without prompts.
        scene_context: Told to it: sensor, resolution, region, season.
        allow_composed_prompts: Use descriptions composed from the name where it fails; the map says so.
        gpu_pool: Name of a Prefect concurrency limit: so many scenes at a time use the GPUs.
    """
    guard_logs()
    keep_freed_memory()
    log_as_json()
    name = scene_name(scene)
    mark(f"scene:{name}")
    if allow_holes:
        options = options or MapOptions()
        options = options.model_copy(update={"run": options.run.model_copy(update={"allow_holes": True})})
    request = Request.from_names(
        scene, out, classes=classes or None, vocabulary=vocabulary_name or None, options=options
    )
    request = replace(request, words=prompts(request.words, llm, scene_context, allow_composed_prompts))
    with concurrency(gpu_pool, occupy=1) if gpu_pool else nullcontext():
        facts = pipeline.map(request, overwrite=overwrite, around=partial(in_task_runs, batches, redacted(out)))
    where = place_of(out)
    paths = export(where) if products and isinstance(where, Path) else []
    shown = publish.with_options(assets=[asset(out, name)])
    shown(RunRecord.read(facts, redacted(out)), paths[-1] if paths else None, [redacted(out), *paths])
    return facts


def in_task_runs(count: int, out: str, job: Job, names: list[str]) -> None:
    """Compute the named blocks of the job for `out` in at most `count` task runs. Markers say which ones are done."""
    progress = report(create_progress_artifact, progress=0.0, key="blocks", description=f"Blocks of {out}")
    parts, name = pipeline.batches(names, count), scene_name(str(job.scene.source["name"]))
    called = {f"{name} batch {i} of {len(parts)}, {p[0]} to {p[-1]}": p for i, p in enumerate(parts, 1)}
    with tags(f"scene:{name}"), ends_blocks():
        for _ in range(SUBMISSIONS):
            runs = {n: map_blocks.with_options(task_run_name=n).submit(job, p, progress) for n, p in called.items()}
            wait(list(runs.values()))
            called = {n: p for n, p in called.items() if not runs[n].state.is_final()}
            if stopping.is_set() or not called:
                break
            log.warning("task runs that Prefect's server did not let begin: %s", "; ".join(called))
    if stopping.is_set():
        raise CancelledRun("stopped; finished blocks are kept")


def main() -> None:
    """Command line of the flow."""
    parser = argparse.ArgumentParser(description="Map one scene as a Prefect flow.")
    parser.add_argument("scene")
    parser.add_argument("out")
    parser.add_argument("--classes", default="")
    parser.add_argument("--vocabulary", default="")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--allow-holes", action="store_true")
    parser.add_argument("--llm-base-url")
    parser.add_argument("--llm-model")
    parser.add_argument("--scene-context", default="")
    parser.add_argument("--allow-composed-prompts", action="store_true")
    args = parser.parse_args()
    map_scene(
        args.scene,
        args.out,
        args.classes,
        args.vocabulary,
        overwrite=args.overwrite,
        allow_holes=args.allow_holes,
        llm=LanguageModel(base_url=args.llm_base_url, name=args.llm_model) if args.llm_model else None,
        scene_context=args.scene_context,
        allow_composed_prompts=args.allow_composed_prompts,
    )


if __name__ == "__main__":
    main()
