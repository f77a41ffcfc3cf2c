"""Map one scene as a Prefect flow: `python -m flows.map_scene SCENE.tif OUT.zarr --vocabulary landcover`.

The same work as `ovrs map`, cut into batches of blocks that Prefect shows, retries and reports. No standing server is
needed; with `PREFECT_API_URL` set, the run appears there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows._tasks import export, finish, map_blocks, publish
from ovrs import job, pipeline, vocabulary
from ovrs.options import MapOptions
from ovrs.rundir import Lock

BATCHES = 16
"""Task runs per scene: bookkeeping stays at seconds however large the scene is."""


@flow(name="map-scene", task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
def map_scene(
    scene: str,
    out: Path,
    classes: str = "",
    vocabulary_name: str = "",
    options: MapOptions | None = None,
    batches: int = BATCHES,
    products: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Map a scene into a Zarr store and export it.

    Args:
        scene: Anything GDAL can open.
        out: The store to write, NAME.zarr.
        classes: Class names separated by commas; or
        vocabulary_name: a shipped vocabulary or a YAML file.
        options: See `ovrs.options.MapOptions`.
        batches: Number of task runs the blocks are split into.
        products: Also write COG and picture beside the store.
        overwrite: Discard what is at `out` and begin anew.
    """
    words = vocabulary.load(vocabulary_name) if vocabulary_name else vocabulary.from_names(classes.split(","))
    this = job.prepare(scene, words, out, options or MapOptions(), overwrite=overwrite)
    with Lock(this.run_dir):
        runs = [map_blocks.submit(this, names) for names in pipeline.batches(this.missing(), batches)]
        wait(runs)
        facts: dict[str, Any] = finish(this)  # refuses while a block is missing, whatever Prefect believes
    paths = export(out) if products else []
    publish(facts, paths[-1] if paths else None)
    return facts


def main() -> None:
    """Command line of the flow."""
    parser = argparse.ArgumentParser(description="Map one scene as a Prefect flow.")
    parser.add_argument("scene")
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", default="")
    parser.add_argument("--vocabulary", default="")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    map_scene(args.scene, args.out, args.classes, args.vocabulary, overwrite=args.overwrite)


if __name__ == "__main__":
    main()
