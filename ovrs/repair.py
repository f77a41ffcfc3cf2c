"""Heal a damaged store: what differs from its manifest is computed, built or written again.

While a store is repaired it has its unfinished name, so an interrupted repair is a run to be resumed.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs import files, pipeline
from ovrs.errors import StoreError
from ovrs.objects.address import Place, place_of
from ovrs.run import adaptation, begin, job, verify
from ovrs.run.lock import Lock
from ovrs.run.rundir import DESCRIPTION, RunDir
from ovrs.store import layout as store
from ovrs.store.record import RESULTS, RunDescription
from ovrs.store.target import FolderTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovrs.pipeline import Progress
    from ovrs.run.verify import Problem

log = logging.getLogger(__name__)


def repair(out: str | Path, *, progress: Progress | None = None) -> tuple[Problem, ...]:
    """Restore a finished store to what its run wrote; go on with an unfinished one or an earlier repair.

    Needs the scene and the model of the run. Files that the run did not write are moved to `NAME.run/foreign`.

    Args:
        out: `NAME.zarr`, or its address in object storage.
        progress: See `ovrs.pipeline.map_scene`.

    Returns:
        What was wrong; empty when nothing was, or when the store was unfinished.

    Raises:
        OvrsError: As `ovrs.run.begin.held_again` and `ovrs.pipeline.run`.
    """
    place = place_of(out)
    place = files.named(place) if isinstance(place, Path) else place
    with Lock(RunDir(place)) as lock:
        run = RunDir(place, lock.fence)
        _restore_description(run)
        learned = _forget_damaged_state(run)
        with begin.held_again(place, lock) as this:
            if learned and adaptation.digest_of(run.path / adaptation.STATE_FILE) != learned:
                raise StoreError(
                    f"{out}: what was learned from the scene cannot be learned again alike; begin anew with --overwrite"
                )
            return _repaired(this, progress)


def _repaired(this: job.Job, progress: Progress | None) -> tuple[Problem, ...]:
    found: tuple[Problem, ...] = ()
    wanted: Mapping[str, verify.Checksum] = {}
    if this.target.is_finished:
        found = verify.check(this.out).problems
        if not found:
            return ()
        wanted = _manifest(this)
        _take_apart(this, found)
        if verify.read_manifest(this.run_dir).holes:
            this = this.allowing_holes()
    try:
        pipeline.work_on(this, progress=progress)
    finally:
        if not this.target.is_finished:
            log.warning("%s is not finished; `ovrs resume %s` goes on with the repair", this.out, this.out)
    left = list(verify.differences(this.out, wanted)) if wanted else []
    if left:
        log.warning("computed again, but not the same bytes as before: %s", "; ".join(map(str, left)))
    return found


def _manifest(this: job.Job) -> Mapping[str, verify.Checksum]:
    """Checksums to come back to. Where they are lost, the map's own facts are kept for the next manifest."""
    manifest = verify.read_manifest(this.run_dir)
    if not (manifest.files or manifest.facts) and (facts := _facts(this.out)):
        this.run_dir.write(verify.MANIFEST, {"facts": facts, "files": {}})
    return manifest.files


def _take_apart(this: job.Job, found: tuple[Problem, ...]) -> None:
    """Make the map an unfinished one and remove from it what is damaged."""
    this.target.reopen()
    below = this.target.objects(finished=False)
    for problem in found:
        if problem.fault == verify.FOLDER and isinstance(this.target, FolderTarget):
            shutil.rmtree(this.target.partial / problem.path)
            continue
        if problem.fault == verify.FOREIGN:
            content = below.get(problem.path)
            aside = f"foreign/{problem.path}"
            this.run_dir.objects.put(aside, b"" if content is None else content.content)
            log.warning("%s was moved to %s", problem.path, this.run_dir.path / aside)
        below.delete(problem.path)
    _demote(this)


def _demote(this: job.Job) -> None:
    """Remove the markers of blocks whose pixels are not whole."""
    begin.put_back_schema(this)
    records = {name: r for name, r in this.run_dir.records().items() if r.finished}
    for name, problem in verify.damaged_blocks(this.target.unfinished(), this.plan, records):
        log.info("block %s is computed again: %s", name, problem)
        this.run_dir.forget(name)


def _restore_description(run: RunDir) -> None:
    """Write a lost or damaged `run.json` anew from what the manifest, or the finished map, knows of it."""
    try:
        run.description()
    except StoreError:
        file = run.path / DESCRIPTION
        facts = verify.read_manifest(run).facts or _facts(run.store)
        if not facts or (isinstance(file, Path) and file.is_dir()):
            raise
        known = {k: v for k, v in facts.items() if k not in RESULTS}
        run.begin(RunDescription.read(known, run.store))
        log.warning("%s was lost or damaged and is restored from the finished map", file)


def _forget_damaged_state(run: RunDir) -> str:
    """Put a lost or damaged adaptation to the scene aside, to be learned again; its digest, else nothing."""
    learned = verify.learned_of(verify.read_manifest(run).facts or _facts(run.store))
    file = run.path / adaptation.STATE_FILE
    if not learned:
        return ""
    try:
        if adaptation.digest_of(file) == learned:
            return ""
    except StoreError:
        log.warning("%s is lost or damaged and learned again", file)
    if isinstance(file, Path) and file.exists():
        file.rename(file.with_name(f".{file.name}.damaged"))
    run.objects.delete(adaptation.STATE_FILE)
    return learned


def _facts(out: Place) -> Mapping[str, object]:
    """Return what a finished map says of itself; empty where it cannot be read."""
    try:
        return store.facts(store.open_complete(out))
    except StoreError:
        return {}
