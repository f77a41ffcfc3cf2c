"""Finish a run: compare blocks, complete overviews, sum the markers, and give the store its final name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import zarr

from ovrs.errors import IncompleteRunError
from ovrs.run import closing, verify
from ovrs.run.begin import put_back_schema
from ovrs.run.record import settled, summarise
from ovrs.scene import identity
from ovrs.store import layout as store
from ovrs.store import pyramid
from ovrs.store.refresh import schema_files
from ovrs.store.target import FolderTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.objects.interface import Objects
    from ovrs.run.job import Job
    from ovrs.run.rundir import BlockRecord

log = logging.getLogger(__name__)


def reopen(job: Job) -> None:
    """Give a finished map its unfinished name where it has holes to fill; call with the run's lock held."""
    holes = job.holes_to_fill()
    if holes:
        log.warning("%s was finished without %d of its blocks; they are tried again", job.out, len(holes))
        job.target.reopen()


def finish(job: Job) -> dict[str, object]:
    """Compare blocks with their markers, complete overviews, and give the store its final name.

    Returns:
        The `ovrs` attribute of the store: provenance and results.

    Raises:
        IncompleteRunError: Blocks are missing or failed and holes were not allowed.
        DamagedBlocksError: Blocks no longer hold what was written.
    """
    target, run = job.target, job.run_dir
    if target.is_finished:
        if holes := job.holes_to_fill():
            raise IncompleteRunError(_hole_message(job, holes, job.run_dir.records()))
        return store.facts(store.open_complete(job.out))
    identity.refuse_changed(job.scene.origin)
    put_back_schema(job)
    unfinished = target.unfinished()
    records, holes = run.records(), job.missing()
    if holes and not job.options.run.allow_holes:
        failed = [records[name] for name in holes if name in records]
        raise IncompleteRunError(_hole_message(job, holes, records), failed)
    for name in holes:
        log.warning("block %s stays no data: %s", name, records[name].reason if name in records else "never computed")
    group = zarr.open_group(unfinished, mode="r+", use_consolidated=False)
    for name in holes:  # a block that failed while it was written may have some of its arrays
        store.clear_block(unfinished, job.block(name).core)
        pyramid.clear_block(group, job.levels, job.block(name).core)
    if isinstance(target, FolderTarget):
        store.sweep(target.partial)
    files, parts = closing.close(job, records)
    _complete_overviews(job, group)
    attributes = settled(summarise(job, records, holes), verify.read_manifest(run).facts)
    plain: Any = attributes  # JSON, which Zarr has a narrower name for
    group.attrs["ovrs"] = plain
    if job.options.run.zarr_format == 2:
        zarr.consolidate_metadata(unfinished, zarr_format=2)
    below = target.objects(finished=False)
    verify.write_manifest(run, attributes, {**files, **verify.checksums(below, _shared(job, below))}, parts)
    target.commit()
    run.complete(job.digest)
    return attributes


def _complete_overviews(job: Job, group: zarr.Group) -> None:
    """Write the few coarsest levels and name all levels in the map's metadata; remove levels that nobody wants now."""
    if not job.levels.wanted:
        pyramid.remove(group)
    pyramid.write_rest(group, job.levels)
    pyramid.describe(group, job.levels, job.scene.geobox)


def _shared(job: Job, below: Objects) -> Iterator[str]:
    """Files of a map that no block and no group of blocks writes: metadata, coordinates, the coarsest levels."""
    yield from schema_files(job.scene.geobox, job.schema)
    if job.options.run.zarr_format == 2:
        yield ".zmetadata"
    for factor in job.levels.rest:
        for name in ("label", "confidence"):
            yield from (entry.key for entry in below.list(f"{factor}/{name}/"))


def _hole_message(job: Job, holes: list[str], records: dict[str, BlockRecord]) -> str:
    reasons = [f"  {name}: {records[name].reason if name in records else 'not computed yet'}" for name in holes[:10]]
    more = f"\n  … and {len(holes) - 10} more" if len(holes) > 10 else ""
    return (
        f"{len(holes)} of {job.plan.block_count} blocks of {job.out} are missing:\n"
        + "\n".join(reasons)
        + more
        + f"\n`ovrs resume {job.out}` tries them again; --set run.allow_holes=true finishes with no data there"
    )
