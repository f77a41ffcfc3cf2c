"""A run as a value: everything a worker needs to compute any block of it, and the steps around that.

`prepare` begins or continues a run, `run_blocks` is what executors call, `finish` commits. The truth about progress is
in the run directory; nothing here remembers anything.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr
from pydantic import ValidationError

from ovrs import adaptation, allocator, files, identity, pyramid, segmenters, store, verify
from ovrs import overwrite as clearing
from ovrs.block import BlockMap, Overhang, map_block
from ovrs.contract import SceneAdaptive
from ovrs.decide import CONFIDENCE_NODATA, DecisionRule
from ovrs.errors import IncompleteRunError, OptionError, SceneChangedError, StoreError, told
from ovrs.grid import nominal_size_m, row_areas_m2
from ovrs.limits import check_blocks
from ovrs.opening import open_scene, require_whole
from ovrs.options import MapOptions
from ovrs.provenance import require_same
from ovrs.record import describe, settled, summarise
from ovrs.redact import guard_logs, redacted
from ovrs.rundir import BlockRecord, Lock, RunDir
from ovrs.segmenters import SegmenterSpec
from ovrs.tiling import Plan
from ovrs.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ovrs.scene import Pixels, RasterScene
    from ovrs.tiling import Block

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run. Picklable: scene and segmenter are opened where the work happens."""

    scene: RasterScene
    spec: SegmenterSpec
    plan: Plan
    rule: DecisionRule
    out: Path
    options: MapOptions

    def __repr__(self) -> str:
        return f"Job({self.out.name!r})"

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.out)

    @property
    def schema(self) -> dict[str, Any]:
        """Keywords of `store.create` and `store.refresh`."""
        vocabulary, run = self.spec.vocabulary, self.options.run
        return {
            "classes": vocabulary.class_names,
            "colours": vocabulary.colours,
            "chunk": self.plan.chunk,
            "zarr_format": run.zarr_format,
            "keep_scores": run.store_scores,
        }

    def block(self, name: str) -> Block:
        """The block of a name made by `Block.name`."""
        row, col = map(int, name.split("_"))
        return self.plan.block(row, col)

    def missing(self) -> list[str]:
        """Names of the blocks without a finished marker, in plan order."""
        for name in self.run_dir.damaged():
            log.warning("the marker of block %s is damaged; the block is computed again", name)
        records = self.run_dir.records()
        return [name for name in self.plan.block_names() if name not in records or not records[name].finished]

    def __call__(self, names: list[str]) -> list[BlockRecord]:
        identity.refuse_changed(self.scene.origin)  # before any work: Dask tries a failed piece again
        return list(run_blocks(self, names))

    def warm(self) -> None:
        """Make this process, a worker, ready: no secret in its logs, the model loaded."""
        guard_logs()
        segmenters.build(self.spec)

    def lost(self, names: list[str], error: Exception) -> list[BlockRecord]:
        """Record blocks that killed every worker they were given to."""
        found = []
        for name in names:
            before = self.run_dir.record_of(name)
            if before is not None and before.finished:
                found.append(before)
                continue
            attempt = before.attempt + 1 if before else 1
            reason = f"KilledWorker: the workers that computed it died ({str(error).splitlines()[0]})"
            record = BlockRecord(name=name, status="failed", reason=reason, attempt=attempt)
            log.warning("block %s failed: %s", name, reason)
            self.run_dir.record(record)
            found.append(record)
        return found


def build_job(uri: str | Path, vocabulary: Vocabulary, out: Path, options: MapOptions) -> tuple[Job, dict[str, Any]]:
    """Open scene and model, plan, and describe the run; writes nothing.

    Returns:
        The job and the content of its `run.json`.
    """
    if out.suffix != ".zarr":
        raise OptionError(f"the output must be named *.zarr, got {str(out)!r}")
    out = out.absolute()  # workers may stand in another folder
    files.require_possible(out)
    if files.exists(uri):
        uri = Path(uri).absolute()  # for `ovrs resume` from any directory; links stay, as files may lie beside them
    scene = open_scene(uri, options.scene)
    known = None if scene.geobox.crs is None else max(nominal_size_m(scene.geobox))
    spec = SegmenterSpec(options.model.told(known), options.method, vocabulary)
    segmenter = segmenters.build(spec)
    if options.adapts_to_scene and not isinstance(segmenter, SceneAdaptive):
        raise OptionError(f"method {options.method.method} does not adapt to a whole scene; use --adaptation tile")
    plan = Plan(
        height=scene.geobox.height,
        width=scene.geobox.width,
        geometry=segmenter.geometry,
        block_pitches=options.run.block_pitches,
    )
    check_blocks(plan)
    job = Job(scene, spec, plan, _rule(options, vocabulary), out, options)
    return job, describe(job, uri, segmenter.describe())


def prepare(uri: str | Path, vocabulary: Vocabulary, out: Path, options: MapOptions, *, overwrite: bool = False) -> Job:
    """Begin a run, or continue the same one.

    Raises:
        DigestMismatchError: `out` holds a run with other inputs or options.
        StoreError: `out` exists and no run of ours made it.
    """
    if options.run.executor != "dask":
        allocator.keep_freed_memory()  # first of all: threads that exist already keep heaps of their own
    clearing.require_apart(uri, out)
    job, description = build_job(uri, vocabulary, out, options)
    run, out = job.run_dir, job.out
    partial = store.partial_path(out)
    if overwrite and clearing.found(out):
        clearing.require_ours(out)
        with Lock(run):  # refuses while another process writes there
            discard(out)
    if run.exists:
        require_same(run.description()["digest"], description["digest"], str(out))
        identity.warn_if_sampled(run.description()["scene"], description["scene"])
    elif out.exists():
        clearing.require_ours(out)
        raise StoreError(
            f"{out} exists and has no run directory {run.path.name} beside it; "
            f"remove it, choose another output, or pass --overwrite"
        )
    if not (run.exists and (out.exists() or partial.exists())):
        clearing.require_ours(out)
        with files.folder_kept_on_success(run.path), Lock(run):
            _begin(job, description)
    elif not out.exists():
        with Lock(run):
            put_back_schema(job)
    return _adapted_to_scene(job) if options.adapts_to_scene else job


def _adapted_to_scene(job: Job) -> Job:
    """The job with what its segmenter learns from the scene as a whole; learned once per run."""
    file = job.run_dir.path / adaptation.STATE_FILE
    segmenter = cast("SceneAdaptive", segmenters.build(job.spec))  # build_job has looked
    if not file.exists():
        with Lock(job.run_dir):
            count = job.options.method.scene_tiles
            adaptation.learn(segmenter, job.scene, job.plan, count, file, job.scene.require_unchanged)
    return replace(job, spec=replace(job.spec, state=file))


def _begin(job: Job, description: dict[str, Any]) -> None:
    """Create store and run directory; `run.json` comes last, so a beginning that is cut off is begun anew."""
    partial = store.partial_path(job.out)
    for leftover in (partial, job.run_dir.blocks):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in (adaptation.STATE_FILE, verify.MANIFEST):
        (job.run_dir.path / name).unlink(missing_ok=True)
    with files.atomic_folder(partial) as temporary:
        store.create(temporary, job.scene.geobox, **job.schema)
    try:
        job.run_dir.begin(description)
    except BaseException:
        discard(job.out)
        raise


def put_back_schema(job: Job) -> None:
    """Put the schema of an unfinished store back to what it is at the beginning."""
    partial = store.partial_path(job.out)
    for name in store.refresh(partial, job.scene.geobox, **job.schema):
        if name not in store.ROOT_FILES:  # those differ, too, after a finish that was cut off
            log.warning("%s: %s is damaged and written anew", partial, name)


def resume(out: Path) -> Job:
    """The job of a run begun earlier, from its `run.json`.

    Raises:
        DigestMismatchError: Scene, weights or code are no longer what they were.
    """
    description = RunDir(out).description()
    try:
        options = MapOptions.model_validate(description["options"])
        vocabulary = Vocabulary.model_validate(description["vocabulary"])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise StoreError(
            f"{RunDir(out).path / 'run.json'} is damaged ({where}: {error.errors()[0]['msg']}); "
            "put back a copy of it, or begin anew with --overwrite"
        ) from error
    require_whole(description["uri"], options.run.scheduler)
    return prepare(description["uri"], vocabulary, out, options)


def discard(out: Path) -> None:
    """Remove a store and its run directory.

    Raises:
        StoreError: Something of it cannot be removed.
    """
    for path in (out, store.partial_path(out), RunDir(out).path):
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise StoreError(f"{path} cannot be removed; remove it by hand")


def run_blocks(job: Job, names: list[str]) -> Iterator[BlockRecord]:
    """Compute blocks one after another; meanwhile one thread reads the next one's pixels, another writes the last one's.

    A failure becomes a marker with the reason, never a hole.
    """
    overhang = Overhang()
    with ThreadPoolExecutor(1, "ovrs-read") as reader, ThreadPoolExecutor(1, "ovrs-write") as writer:
        coming: deque[Future[Pixels]] = deque()
        leaving: deque[Future[BlockRecord]] = deque()
        try:
            for index, name in enumerate(names):
                for ahead in names[index + len(coming) : index + 2]:
                    coming.append(reader.submit(job.scene.read, job.block(ahead).read))
                pixels, started = coming.popleft(), time.perf_counter()
                result = _computed(job, name, overhang, pixels.result)
                leaving.append(writer.submit(_commit, job, name, result, started))
                if len(leaving) > 1:  # at most one block waits to be written
                    yield leaving.popleft().result()
            yield from (record.result() for record in leaving)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


def run_in_turn(job: Job, stop: threading.Event, names: list[str]) -> list[BlockRecord]:
    """`run_blocks` without its two helpers, for one of several threads: half the blocks in memory.

    Ends before the next block once `stop` is set.
    """
    overhang, records = Overhang(), []
    for name in names:
        if stop.is_set():
            break
        started = time.perf_counter()
        records.append(_commit(job, name, _computed(job, name, overhang), started))
    return records


def _computed(
    job: Job, name: str, overhang: Overhang, pixels: Callable[[], Pixels] | None = None
) -> BlockMap | Exception:
    """The block's map, or why there is none."""
    try:
        segmenter, block = segmenters.build(job.spec), job.block(name)
        keep = job.options.run.store_scores
        ready = pixels() if pixels else None
        return map_block(
            job.scene, segmenter, job.plan, block, job.rule, keep_scores=keep, pixels=ready, overhang=overhang
        )
    except Exception as error:
        log.debug("block %s", name, exc_info=True)
        return error


def _commit(job: Job, name: str, result: BlockMap | Exception, started: float) -> BlockRecord:
    """Write a block's pixels, then its marker, or a marker with the reason of failure."""
    before = job.run_dir.record_of(name)
    attempt = before.attempt + 1 if before else 1
    try:
        job.scene.require_unchanged()  # also where reading failed: a scene cut short is another one
        if isinstance(result, Exception):
            raise result
        block, partial = job.block(name), store.partial_path(job.out)
        store.write_block(partial, block.core, job.plan.chunk, result.label, result.confidence, result.score)
        record = _record(job, block, result)
    except SceneChangedError:
        raise
    except Exception as error:
        record = BlockRecord(name=name, status="failed", reason=redacted(f"{type(error).__name__}: {told(error)}"))
        log.warning("block %s failed: %s", name, record.reason)
        log.debug("block %s", name, exc_info=True)
    record = replace(record, attempt=attempt, seconds=round(time.perf_counter() - started, 3))
    job.run_dir.record(record)
    return record


def _record(job: Job, block: Block, result: BlockMap) -> BlockRecord:
    classes = len(job.spec.vocabulary.classes)
    known = np.minimum(result.label, classes)  # "no data" is a large number
    counts = np.stack([np.bincount(row, minlength=classes)[:classes] for row in known])
    areas = row_areas_m2(job.scene.geobox, block.core) @ counts
    histogram = {str(i): int(n) for i, n in enumerate(counts.sum(axis=0)) if n}
    return BlockRecord(
        name=block.name,
        status="done" if histogram else "empty",
        tiles=result.tiles,
        histogram=histogram,
        areas_m2={k: float(areas[int(k)]) for k in histogram},
        confidence_sum=int(result.confidence.sum(dtype=np.int64, where=result.confidence != CONFIDENCE_NODATA)),
        crc=verify.block_crc(result.label, result.confidence, result.score),
        events=result.events,
    )


def finish(job: Job) -> dict[str, Any]:
    """Sum the markers, build overviews, and give the store its final name.

    Returns:
        The `ovrs` attribute of the store: provenance and results.

    Raises:
        IncompleteRunError: Blocks are missing or failed and holes were not allowed.
    """
    if job.out.exists():
        return store.facts(store.open_complete(job.out))
    identity.refuse_changed(job.scene.origin)
    partial, run = store.partial_path(job.out), job.run_dir
    put_back_schema(job)
    verify.require_whole(job.out, run, job.plan)
    records, holes = run.records(), job.missing()
    if holes and not job.options.run.allow_holes:
        raise IncompleteRunError(_hole_message(job, holes, records))
    for name in holes:
        log.warning("block %s stays no data: %s", name, records[name].reason if name in records else "never computed")
    vocabulary = job.spec.vocabulary
    for name in holes:  # a block that failed while it was written may have some of its arrays
        store.clear_block(partial, job.block(name).core)
    store.sweep(partial)
    if job.options.run.pyramid:
        pyramid.build(
            partial, job.scene.geobox, classes=vocabulary.class_names, colours=vocabulary.colours, chunk=job.plan.chunk
        )
    attributes = settled(summarise(job, records, holes), verify.read_manifest(run).get("facts", {}))
    group = zarr.open_group(partial, mode="r+", use_consolidated=False)
    group.attrs["ovrs"] = attributes
    if job.options.run.zarr_format == 2:
        zarr.consolidate_metadata(partial, zarr_format=2)
    verify.write_manifest(run, partial, attributes)
    partial.rename(job.out)
    return attributes


def _hole_message(job: Job, holes: list[str], records: dict[str, BlockRecord]) -> str:
    reasons = [f"  {name}: {records[name].reason if name in records else 'not computed yet'}" for name in holes[:10]]
    more = f"\n  … and {len(holes) - 10} more" if len(holes) > 10 else ""
    return (
        f"{len(holes)} of {job.plan.block_count} blocks of {job.out} are missing:\n"
        + "\n".join(reasons)
        + more
        + f"\n`ovrs resume {job.out}` tries them again; --allow-holes finishes with no data there"
    )


def _rule(options: MapOptions, vocabulary: Vocabulary) -> DecisionRule:
    background = vocabulary.background_index
    own = vocabulary.background.threshold if vocabulary.background else 0.0
    threshold = own if options.method.threshold is None else options.method.threshold
    if options.method.threshold is not None and background is None:
        raise OptionError(
            "--threshold needs a vocabulary with a background rule: which class should uncertain pixels get?"
        )
    return DecisionRule(background, threshold)
