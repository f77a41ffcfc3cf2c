"""The main path: a GeoTIFF and words in, a georeferenced class map out."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ovrs import execute, job
from ovrs.rundir import Lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ovrs.job import Job
    from ovrs.options import MapOptions
    from ovrs.rundir import BlockRecord
    from ovrs.vocabulary import Vocabulary

    Progress = Callable[[BlockRecord, int, int], None]

log = logging.getLogger(__name__)


def map_scene(
    uri: str | Path,
    vocabulary: Vocabulary,
    out: Path,
    options: MapOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Map one scene into a Zarr store.

    Opens the scene, plans its blocks, builds the segmenter, creates the store, runs the missing blocks with the chosen
    executor and commits. Called again after an interruption, it goes on where the markers say.

    Args:
        uri: Anything GDAL can open.
        vocabulary: The classes and their prompts.
        out: `NAME.zarr`; the run directory `NAME.run` is kept beside it.
        options: See `ovrs.options`.
        overwrite: Discard what is at `out` and begin anew.
        progress: Called after each block with its record, the blocks done so far and the number of all.

    Returns:
        The store's `ovrs` attribute: provenance, class areas, events.

    Raises:
        OvrsError: Any of its leaves; the message says what to do. Blocks that are already done are kept.
    """
    return run(job.prepare(uri, vocabulary, out, options, overwrite=overwrite), progress=progress)


def resume(out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Go on with the run of `out`, with the options it was begun with (arguments and errors as `map_scene`)."""
    return run(job.resume(out), progress=progress)


def run(this: Job, *, progress: Progress | None = None) -> dict[str, Any]:
    """Compute the missing blocks of a prepared job and commit the store."""
    if this.out.exists():
        log.info("%s is complete already", this.out)
        return job.finish(this)
    with Lock(this.run_dir):
        compute(this, this.missing(), progress=progress)
        return job.finish(this)


def compute(this: Job, names: list[str], *, progress: Progress | None = None) -> list[BlockRecord]:
    """Run the named blocks with the job's executor; failures are recorded, not raised."""
    total = this.plan.block_count
    done = total - len(names)
    records = []
    for record in execute.run(this.options.run, this, names):
        records.append(record)
        done += record.finished
        if progress is not None:
            progress(record, done, total)
    return records


def batches(names: list[str], count: int) -> list[list[str]]:
    """Split block names into at most `count` consecutive lists of nearly equal length: one Prefect task run each."""
    count = max(1, min(count, len(names)))
    size, extra = divmod(len(names), count)
    bounds = [i * size + min(i, extra) for i in range(count + 1)]
    return [names[a:b] for a, b in pairwise(bounds) if b > a]
