"""Map one scene as a Prefect flow: `python -m flows.map_scene SCENE.tif OUT.zarr --vocabulary landcover`.

The same work as `ovrs map`, cut into batches of blocks that Prefect shows, retries and reports. No standing server is
needed; with `PREFECT_API_URL` set, the run appears there. A cancelled run leaves a store that the same flow, or `ovrs
resume`, continues.
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_progress_artifact
from prefect.concurrency.sync import concurrency
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows._tasks import export, finish, map_blocks, prompts, publish, report
from ovrs import pipeline
from ovrs.options import MapOptions
from ovrs.redact import guard_logs, redacted
from ovrs.run import begin
from ovrs.run import finish as finishing
from ovrs.run import publish as publishing
from ovrs.run.rundir import Lock
from ovrs.words import vocabulary
from ovrs.words.prompts import LanguageModel

BATCHES = 16
"""Task runs per scene: bookkeeping stays at seconds however large the scene is."""


@flow(name="map-scene", task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
def map_scene(
    scene: str,
    out: str,
    classes: str = "",
    vocabulary_name: str = "",
    options: MapOptions | None = None,
    batches: int = BATCHES,
    products: bool = True,
    overwrite: bool = False,
    llm: LanguageModel | None = None,
    scene_context: str = "",
    allow_composed_prompts: bool = False,
    gpu_pool: str | None = None,
) -> dict[str, Any]:
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
        llm: Language model that describes classes without prompts.
        scene_context: Told to it: sensor, resolution, region, season.
        allow_composed_prompts: Use descriptions composed from the name where it fails; the map says so.
        gpu_pool: Name of a Prefect concurrency limit: so many scenes at a time use the GPUs.
    """
    guard_logs()
    words = vocabulary.load(vocabulary_name) if vocabulary_name else vocabulary.from_names(classes.split(","))
    words = prompts(words, llm, scene_context, allow_composed_prompts)
    remote = publishing.is_remote(out)
    staging = Path(os.environ.get("OVRS_STAGING", "ovrs-staging"))
    store = publishing.staging_path(out, staging) if remote else Path(out)
    store.parent.mkdir(parents=True, exist_ok=True)
    with concurrency(gpu_pool, occupy=1) if gpu_pool else nullcontext():
        this = begin.prepare(scene, words, store, options or MapOptions(), overwrite=overwrite)
        with Lock(this.run_dir):
            finishing.reopen(this)
            progress = report(
                create_progress_artifact, progress=0.0, key="blocks", description=f"Blocks of {redacted(out)}"
            )
            runs = [map_blocks.submit(this, names, progress) for names in pipeline.batches(this.missing(), batches)]
            wait(runs)
            facts: dict[str, Any] = finish(this)  # refuses while a block is missing, whatever Prefect believes
    if remote:
        publishing.publish(store, out, overwrite=overwrite)
        begin.discard(store)
        publish(facts, None, [redacted(out)])
        return facts
    paths = export(store) if products else []
    publish(facts, paths[-1] if paths else None, [out, *paths])
    return facts


def main() -> None:
    """Command line of the flow."""
    parser = argparse.ArgumentParser(description="Map one scene as a Prefect flow.")
    parser.add_argument("scene")
    parser.add_argument("out")
    parser.add_argument("--classes", default="")
    parser.add_argument("--vocabulary", default="")
    parser.add_argument("--overwrite", action="store_true")
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
        llm=LanguageModel(base_url=args.llm_base_url, name=args.llm_model) if args.llm_model else None,
        scene_context=args.scene_context,
        allow_composed_prompts=args.allow_composed_prompts,
    )


if __name__ == "__main__":
    main()
