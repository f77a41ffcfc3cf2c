"""The story: a scene and words in, a georeferenced class map out.

Command line, catalog and flow make a `Request`; `map` does the rest.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs import files
from ovrs.engine import execute, scheduler
from ovrs.errors import DamagedBlocksError, OutputError, StoreError
from ovrs.objects.address import Place, place_of
from ovrs.provenance import require_same
from ovrs.redact import redacted
from ovrs.request import Request
from ovrs.run import begin, finish, mosaic, publish, work
from ovrs.run.lock import Lock
from ovrs.run.meter import Meter
from ovrs.run.rundir import RunDir
from ovrs.store.record import RunRecord
from ovrs.store.target import FolderTarget
from ovrs.telemetry import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ovrs.options import MapOptions
    from ovrs.run.job import Job
    from ovrs.run.rundir import BlockRecord
    from ovrs.words.vocabulary import Vocabulary

    Progress = Callable[[BlockRecord, int, int], None]
    Around = Callable[[Job, list[str]], object]

log = logging.getLogger(__name__)

MOSAICS = Path("ovrs-staging")
"""Where the mosaic of several files lies whose map is made in object storage."""


def map(  # noqa: A001  (the verb of this package)
    request: Request,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    staging: Path | None = None,
    around: Around | None = None,
) -> dict[str, object]:
    """Make the map that a request asks for.

    Opens the scene, plans its blocks, creates the store, computes the missing blocks and commits. With a Dask scheduler the
    workers describe and load the network, and this process needs neither weights nor GPU.
    Called again after an interruption, it goes on where the markers say; a map that is there is not computed again.
    A map for object storage is made there, block by block, and is there for readers when it is whole. With `staging` it
    is made in that folder, published, and removed from there.

    Args:
        request: Scene, classes, options and target.
        overwrite: Discard what is at the target and begin anew.
        progress: Called after each block with its record, the blocks done so far and the number of all. Not with `around`.
        staging: Folder for unpublished maps, for storage without conditional writes; all workers must see it.
            Default: `$OVRS_STAGING`, else none.
        around: Computes the named blocks of a job by calling `compute` itself, such as in task runs of Prefect.
            Markers, and not what it returns, say what is done. The list of names may be empty.

    Returns:
        The store's `ovrs` attribute: provenance, class areas, events.

    Raises:
        OvrsError: Any of its leaves; the message says what to do. Blocks that are done are kept.
    """
    around = around or partial(compute, progress=progress)
    target, named = place_of(request.target), os.environ.get("OVRS_STAGING")
    staging = staging or (Path(named) if named else None)
    request = _of_one_scene(request, target, staging, overwrite=overwrite)
    if isinstance(target, Path) or staging is None:
        return _made(request, target, overwrite=overwrite, around=around)
    url, staging = target.url, staging.absolute()  # workers may stand in another folder
    local = publish.staging_path(url, staging)
    there = None if overwrite else publish.published_facts(url)
    fill_holes = there is not None and bool(there.get("holes")) and not request.options.run.allow_holes
    if there is not None:
        _, description = begin.build_job(request.uri, request.words, local, request.options)
        require_same(RunRecord.read(there, redacted(url)).digest, description.digest, url)
        if not fill_holes:
            log.info("%s is complete already", redacted(url))
            return there
    local.parent.mkdir(parents=True, exist_ok=True)
    facts = _made(request, local, overwrite=overwrite, around=around)
    publish.publish(local, url, overwrite=overwrite or fill_holes)
    begin.discard(local)
    return facts


def map_scene(
    uri: str | Path,
    vocabulary: Vocabulary,
    out: str | Path,
    options: MapOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, object]:
    """`map` for a request that is given by its parts: scene, classes, target and options."""
    request = Request(uri=uri, words=vocabulary, options=options, target=out)
    return map(request, overwrite=overwrite, progress=progress)


def resume(out: str | Path, *, progress: Progress | None = None) -> dict[str, object]:
    """Go on with the run of `out`, with the options it was begun with (arguments and errors as `map`)."""
    place = place_of(out)
    with _told_what_is_kept(place), begin.held_again(place) as job:
        return work_on(job, progress=progress)


def _of_one_scene(request: Request, target: Place, staging: Path | None, *, overwrite: bool) -> Request:
    """Return the request with a mosaic in place of several files; that of a map for a URL lies with the unpublished maps."""
    begin.require_store_name(target)
    local = target if isinstance(target, Path) else publish.staging_path(target.url, staging or MOSAICS)
    scene = mosaic.as_one([request.uri, *request.others], local, overwrite=overwrite)
    return replace(request, uri=scene, others=())


def _made(request: Request, out: Place, *, overwrite: bool, around: Around) -> dict[str, object]:
    """Make the map of a request where it is to lie."""
    options = request.options.run
    if execute.is_elsewhere(options):
        scheduler.reach(options)
    with (
        _told_what_is_kept(out),
        begin.held(request.uri, request.words, out, request.options, overwrite=overwrite) as job,
    ):
        return _worked(job, around)


@contextmanager
def _told_what_is_kept(out: Place) -> Iterator[None]:
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


def _is_begun(out: Place) -> bool:
    try:
        return RunDir(out).exists
    except StoreError:  # a place that does not answer
        return False


def _going_on(out: Place) -> str:
    if _is_begun(out):
        return f"finished blocks are kept; `ovrs resume {shlex.quote(str(out))}` or the same command goes on"
    return "nothing was begun; the same command begins again"


def run(job: Job, *, progress: Progress | None = None, around: Around | None = None) -> dict[str, object]:
    """Compute the missing blocks of a prepared job and commit the store (arguments as `map`)."""
    around = around or partial(compute, progress=progress)
    if job.target.is_finished and not job.holes_to_fill():
        return _worked(job, around)
    with Lock(job.run_dir) as lock:
        job = replace(job, fence=lock.fence)
        if job.digest:  # another run may have begun here
            require_same(job.run_dir.description().digest, job.digest, str(job.out))
        return _worked(job, around)


def work_on(job: Job, *, progress: Progress | None = None) -> dict[str, object]:
    """`run` for a job whose lock is held by the caller."""
    return _worked(job, partial(compute, progress=progress))


def _worked(job: Job, around: Around) -> dict[str, object]:
    """Compute what is missing and commit; call with the run's lock held, or with a finished map."""
    if job.target.is_finished and not job.holes_to_fill():
        log.info("%s is complete already", job.out)
        return finish.finish(job)
    finish.reopen(job)
    if isinstance(job.target, FolderTarget):
        for folder in (job.run_dir.path, job.run_dir.blocks):
            files.sweep_folder(Path(str(folder)))
    around(job, job.missing())
    with files.writing(job.out):
        try:
            return finish.finish(job)
        except DamagedBlocksError as error:
            damaged = error.names
    around(job, damaged)
    with files.writing(job.out):
        return finish.finish(job)


def compute(
    job: Job, names: list[str], *, progress: Progress | None = None, stop: threading.Event | None = None
) -> list[BlockRecord]:
    """Run the named blocks with the job's executor; failures are recorded, not raised.

    Once `stop` is set, the work ends before the next block.
    """
    total = job.plan.block_count
    done = total - len(names)
    records = []
    counters = Counters(str(job.out), total, done)
    if isinstance(progress, Meter):
        progress.begin(job.plan, names)
    with closing(_records(job, names, stop or threading.Event())) as found:
        for record in found:
            records.append(record)
            done += record.finished
            _tell(job, record, counters)
            if progress is not None:
                progress(record, done, total)
    counters.write()
    return records


def _tell(job: Job, record: BlockRecord, counters: Counters) -> None:
    """Log a block and count it."""
    pixels = sum(record.histogram.values())
    facts = {
        "scene": job.scene.source["name"],
        "map": job.out.name,
        "block": record.name,
        "status": record.status,
        "attempt": record.attempt,
        "seconds": record.seconds,
        "worker": record.worker or None,
        "pixels": pixels,
        "error": record.error or None,
    }
    log.info("block %s %s", record.name, record.status, extra=facts)
    counters.count(status=record.status, pixels=pixels, stages=record.stages)


def _records(job: Job, names: list[str], stop: threading.Event) -> Generator[BlockRecord]:
    """Block records as they come, from whichever executor; closing it ends the work."""
    run = job.options.run
    if run.executor == "serial":
        yield from work.run_blocks(job, names, stop.is_set)
        return
    size = run.batch if run.scheduler else min(run.batch, max(1, len(names) // run.workers))  # nobody stays idle
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    if not groups:
        return
    task = work.Worker.of(job) if run.executor == "dask" else partial(work.run_in_turn, job, stop)
    with closing(execute.run(run, task, groups, stop=stop)) as found:
        for records in found:
            yield from records


def batches(names: list[str], count: int) -> list[list[str]]:
    """Split block names into at most `count` consecutive lists of nearly equal length: one Prefect task run each."""
    count = max(1, min(count, len(names)))
    size, extra = divmod(len(names), count)
    bounds = [i * size + min(i, extra) for i in range(count + 1)]
    return [names[a:b] for a, b in pairwise(bounds) if b > a]
