"""The main path: a GeoTIFF and words in, a georeferenced class map out."""

from __future__ import annotations

import logging
import os
import shlex
import threading
from contextlib import closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs import files
from ovrs.engine import execute
from ovrs.errors import DamagedBlocksError, OutputError
from ovrs.provenance import require_same
from ovrs.redact import redacted
from ovrs.run import begin, finish, publish, work
from ovrs.run.rundir import Lock, RunDir

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ovrs.options import MapOptions
    from ovrs.run.job import Job
    from ovrs.run.rundir import BlockRecord
    from ovrs.words.vocabulary import Vocabulary

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
    if options.run.executor == "dask" and options.run.scheduler is not None:
        execute.reach(options.run.scheduler)
    with _told_what_is_kept(out):
        return run(begin.prepare(uri, vocabulary, out, options, overwrite=overwrite), progress=progress)


@contextmanager
def _told_what_is_kept(out: Path) -> Iterator[None]:
    """Add to an interruption, or to a disk that refuses, what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(_going_on(out))
        raise
    except OutputError as error:
        if not _is_begun(out):
            raise
        raise OutputError(f"{error}; {_going_on(out)}") from error


def _is_begun(out: Path) -> bool:
    return files.exists(RunDir(out).path / "run.json")


def _going_on(out: Path) -> str:
    if _is_begun(out):
        return f"finished blocks are kept; `ovrs resume {shlex.quote(str(out))}` or the same command goes on"
    return "nothing was begun; the same command begins again"


def map_to(
    uri: str | Path,
    vocabulary: Vocabulary,
    target: str | Path,
    options: MapOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    staging: Path | None = None,
) -> dict[str, Any]:
    """`map_scene`, to a path or to a URL: a map for a URL is made in `staging`, published, and taken away there.

    Args:
        uri: See `map_scene`, as for `vocabulary`, `options`, `overwrite` and `progress`.
        target: `NAME.zarr` or `s3://bucket/NAME.zarr`.
        staging: Folder for unpublished maps; all workers must see it. Default: `$OVRS_STAGING`, else `ovrs-staging`.

    Raises:
        OvrsError: See `map_scene` and `ovrs.run.publish.publish`. What is computed stays in `staging`.
    """
    if not publish.is_remote(target):
        return map_scene(uri, vocabulary, Path(target), options, overwrite=overwrite, progress=progress)
    url = str(target)
    local = publish.staging_path(url, staging or Path(os.environ.get("OVRS_STAGING", "ovrs-staging")))
    there = None if overwrite else publish.published_facts(url)
    if there is not None:
        _, description = begin.build_job(uri, vocabulary, local, options)
        require_same(there["digest"], description["digest"], url)
        log.info("%s is complete already", redacted(url))
        return there
    local.parent.mkdir(parents=True, exist_ok=True)
    facts = map_scene(uri, vocabulary, local, options, overwrite=overwrite, progress=progress)
    publish.publish(local, url, overwrite=overwrite)
    begin.discard(local)
    return facts


def resume(out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Go on with the run of `out`, with the options it was begun with (arguments and errors as `map_scene`)."""
    with _told_what_is_kept(out):
        return run(begin.resume(out), progress=progress)


def run(this: Job, *, progress: Progress | None = None) -> dict[str, Any]:
    """Compute the missing blocks of a prepared job and commit the store."""
    if this.out.exists():
        log.info("%s is complete already", this.out)
        return finish.finish(this)
    with Lock(this.run_dir):
        for folder in (this.run_dir.path, this.run_dir.blocks):
            files.sweep_folder(folder)
        compute(this, this.missing(), progress=progress)
        with files.writing(this.out):
            try:
                return finish.finish(this)
            except DamagedBlocksError as error:
                damaged = error.names
        compute(this, damaged, progress=progress)
        with files.writing(this.out):
            return finish.finish(this)


def compute(this: Job, names: list[str], *, progress: Progress | None = None) -> list[BlockRecord]:
    """Run the named blocks with the job's executor; failures are recorded, not raised."""
    total = this.plan.block_count
    done = total - len(names)
    records = []
    with closing(_records(this, names)) as found:
        for record in found:
            records.append(record)
            done += record.finished
            if progress is not None:
                progress(record, done, total)
    return records


def _records(this: Job, names: list[str]) -> Generator[BlockRecord]:
    """Block records as they come, from whichever executor; closing it ends the work."""
    run = this.options.run
    if run.executor == "serial":
        yield from work.run_blocks(this, names)
        return
    size = run.batch if run.scheduler else min(run.batch, max(1, len(names) // run.workers))  # nobody stays idle
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    if run.executor == "threads":
        stop = threading.Event()
        with closing(execute.run(run, partial(work.run_in_turn, this, stop), groups, stop=stop)) as found:
            for records in found:
                yield from records
        return
    worker = work.Worker(this)
    with closing(execute.run(run, worker, groups, warm=worker.warm, parts=worker.parts, lost=worker.lost)) as found:
        for records in found:
            yield from records


def batches(names: list[str], count: int) -> list[list[str]]:
    """Split block names into at most `count` consecutive lists of nearly equal length: one Prefect task run each."""
    count = max(1, min(count, len(names)))
    size, extra = divmod(len(names), count)
    bounds = [i * size + min(i, extra) for i in range(count + 1)]
    return [names[a:b] for a, b in pairwise(bounds) if b > a]
