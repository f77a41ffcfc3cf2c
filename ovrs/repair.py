"""Heal a damaged store: what differs from its manifest is computed, built or written again.

While a store is repaired it has its unfinished name, so an interrupted repair is a run to be resumed.
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from ovrs import files, pipeline
from ovrs.errors import StoreError
from ovrs.run import adaptation, begin, job, verify
from ovrs.run.rundir import Lock, RunDir, write_sealed
from ovrs.store import layout as store
from ovrs.store.record import RESULTS, RunDescription

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovrs.pipeline import Progress
    from ovrs.run.verify import Problem

log = logging.getLogger(__name__)


def repair(out: Path, *, progress: Progress | None = None) -> tuple[Problem, ...]:
    """Restore a finished store to what its run wrote; go on with an unfinished one or an earlier repair.

    Needs the scene and the model of the run. Files that the run did not write are moved to `NAME.run/foreign`.

    Args:
        out: `NAME.zarr`.
        progress: See `ovrs.pipeline.map_scene`.

    Returns:
        What was wrong; empty when nothing was, or when the store was unfinished.

    Raises:
        OvrsError: As `ovrs.run.begin.resume` and `ovrs.pipeline.run`.
    """
    out = files.named(out)
    _restore_description(out)
    found: tuple[Problem, ...] = ()
    wanted: Mapping[str, verify.Checksum] = {}
    learned = _forget_damaged_state(out)
    this = begin.resume(out)
    if learned and adaptation.digest_of(RunDir(out).path / adaptation.STATE_FILE) != learned:
        raise StoreError(
            f"{out}: what was learned from the scene cannot be learned again alike; begin anew with --overwrite"
        )
    if out.exists():
        found = verify.check(out).problems
        if not found:
            return ()
        with Lock(this.run_dir):
            wanted = _manifest(this)
            _take_apart(this, found)
            if verify.read_manifest(this.run_dir).holes:
                this = this.allowing_holes()
    try:
        pipeline.run(this, progress=progress)
    finally:
        if not out.exists():
            log.warning("%s is not finished; `ovrs resume %s` goes on with the repair", out, out)
    left = list(verify.differences(out, wanted)) if wanted else []
    if left:
        log.warning("computed again, but not the same bytes as before: %s", "; ".join(map(str, left)))
    return found


def _manifest(this: job.Job) -> Mapping[str, verify.Checksum]:
    """Checksums to come back to. Where they are lost, the map's own facts are kept for the next manifest."""
    manifest = verify.read_manifest(this.run_dir)
    if not (manifest.files or manifest.facts) and (facts := _facts(this.out)):
        write_sealed(this.run_dir.path / verify.MANIFEST, {"facts": facts, "files": {}})
    return manifest.files


def _take_apart(this: job.Job, found: tuple[Problem, ...]) -> None:
    """Give the store its unfinished name and remove from it what is damaged."""
    partial = store.partial_path(this.out)
    this.out.rename(partial)
    aside = this.run_dir.path / "foreign"
    for problem in found:
        file = partial / problem.path
        if problem.fault == verify.FOREIGN:
            target = aside / problem.path
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
            log.warning("%s was moved to %s", problem.path, target)
        elif file.is_dir() and problem.fault == verify.FOLDER:
            shutil.rmtree(file)
        elif file.is_file():
            file.unlink()
    _demote(this)


def _demote(this: job.Job) -> None:
    """Remove the markers of blocks whose pixels are not whole."""
    begin.put_back_schema(this)
    records = {name: r for name, r in this.run_dir.records().items() if r.finished}
    for name, problem in verify.damaged_blocks(store.partial_path(this.out), this.plan, records):
        log.info("block %s is computed again: %s", name, problem)
        this.run_dir.forget(name)


def _restore_description(out: Path) -> None:
    """Write a lost or damaged `run.json` anew from what the manifest, or the finished map, knows of it."""
    run = RunDir(out)
    try:
        run.description()
    except StoreError:
        facts = verify.read_manifest(run).facts or _facts(out)
        if not facts or (run.path / "run.json").is_dir():
            raise
        known = {k: v for k, v in facts.items() if k not in RESULTS}
        run.begin(RunDescription.read(known, out))
        log.warning("%s was lost or damaged and is restored from the finished map", run.path / "run.json")


def _forget_damaged_state(out: Path) -> str:
    """Put a lost or damaged adaptation to the scene aside, to be learned again; its digest, else nothing."""
    learned = verify.learned_of(verify.read_manifest(RunDir(out)).facts or _facts(out))
    file = RunDir(out).path / adaptation.STATE_FILE
    if not learned:
        return ""
    try:
        if adaptation.digest_of(file) == learned:
            return ""
    except StoreError:
        log.warning("%s is lost or damaged and learned again", file)
    if file.exists():
        file.rename(file.with_name(f".{file.name}.damaged"))
    return learned


def _facts(out: Path) -> Mapping[str, object]:
    """What a finished map says of itself; empty where it cannot be read."""
    try:
        return store.facts(store.open_complete(out))
    except StoreError:
        return {}
