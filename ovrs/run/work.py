"""Compute blocks: read, map, write, mark. What executors call, in this process or in a worker's."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import zarr

from ovrs.encoding import CONFIDENCE_NODATA
from ovrs.engine import allocator, workers
from ovrs.engine.block import BlockMap, Overhang, map_block
from ovrs.errors import OutputError, SceneChangedError, StoreError, StoreLockedError, told
from ovrs.redact import guard_logs, redacted
from ovrs.run import meter, network, place, segmenters, verify
from ovrs.run.rundir import BlockRecord
from ovrs.scene import identity
from ovrs.scene.grid import row_areas_m2
from ovrs.store import layout as store
from ovrs.store import pyramid
from ovrs.telemetry import log_as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ovrs.engine.tiling import Block
    from ovrs.run.job import Job
    from ovrs.scene.raster import Pixels

log = logging.getLogger(__name__)

BESIDE_DEVICE = 2
"""Threads that read, and threads that write, beside a GPU: it maps faster than one thread unpacks."""


@dataclass(frozen=True)
class Worker(workers.Work[list[str], list[BlockRecord]]):
    """A job as Dask calls it. Picklable."""

    job: Job
    begun: str = ""
    """When the run began, as `run.json` has it."""

    @classmethod
    def of(cls, job: Job) -> Worker:
        """Make the worker of a run that was begun."""
        return cls(job, job.run_dir.description().begun)

    def __repr__(self) -> str:
        return f"Worker({self.job!r})"

    def __call__(self, names: list[str]) -> list[BlockRecord]:
        """Map the blocks of one piece; what a worker that died had finished is not computed again."""
        identity.refuse_changed(self.job.scene.origin)  # before any work: Dask tries a failed piece again
        found = {name: self.job.run_dir.record_of(name) for name in names}  # of a worker that died within the piece
        done = [record for record in found.values() if record is not None and record.finished]
        left = [name for name, record in found.items() if record not in done]
        return [*done, *run_blocks(self.job, left, workers.is_cancelled)]

    def label(self, names: list[str]) -> tuple[str, str]:
        """Name of the map without blanks or hyphens, and the first block."""
        return re.sub(r"[^\w.]+", "_", self.job.out.name.removesuffix(".zarr"))[:60], names[0]

    def parts(self, names: list[str]) -> list[list[str]]:
        """Each block by itself: one of them kills the workers, and the others are to be computed."""
        return [[name] for name in names]

    def prepare(self) -> dict[str, str]:
        """Make this process, a worker, ready: no secret in its logs, freed memory kept, scene and output seen, the model loaded."""
        guard_logs()
        allocator.keep_freed_memory()
        log_as_json()
        place.require_seen(self.job, self.begun)
        return place.facts_here(self.job)

    def check_here(self) -> None:
        """Require that this process sees scene and output."""
        place.require_seen(self.job, self.begun)

    def wanted(self) -> dict[str, str]:
        """Return the answers that every worker must give."""
        return place.wanted(self.job)

    def admitted(self, facts: dict[str, str]) -> None:
        """Write the kind of processors into the run directory."""
        place.note_kind(self.job.run_dir, facts)

    def doubts(self, records: list[BlockRecord]) -> bool:
        """Return whether a block of a piece failed for a reason that another process may not have."""
        return place.is_of_the_place(records)

    def lost(self, names: list[str], error: Exception) -> list[BlockRecord]:
        """Record blocks that killed every worker they were given to, or that ended with an error outside any block.

        Raises:
            StoreError: The error is one of the run, such as a scene that changed or a lock that was lost.
        """
        if isinstance(error, StoreError) and not isinstance(error, OutputError):
            raise error
        found = []
        for name in names:
            before = self.job.run_dir.record_of(name)
            if before is not None and before.finished:
                found.append(before)
                continue
            attempt = before.attempt + 1 if before else 1
            died = isinstance(error, workers.Died) or type(error).__name__ == "KilledWorker"
            kind = "KilledWorker" if died else type(error).__name__
            what = f"the workers that computed it died ({str(error).splitlines()[0]})" if died else told(error)
            reason = redacted(f"{kind}: {what}")
            record = BlockRecord(name=name, status="failed", error=kind, reason=reason, attempt=attempt)
            log.warning("block %s failed: %s", name, reason)
            found.append(self.job.run_dir.record(record))
        return found


def run_blocks(job: Job, names: list[str], is_over: Callable[[], bool] = lambda: False) -> Iterator[BlockRecord]:
    """Compute blocks one after another; meanwhile other threads read the next blocks' pixels and write those of the last.

    One thread reads and one writes where a processor computes, two and two beside a GPU. As many blocks as threads are
    read ahead, and as many wait to be written. A failure of any stage becomes a marker of its block with the reason,
    never a hole. Ends before the next block once `is_over` says so.
    """
    overhang, beside = Overhang(), 1 if job.facts.get("device", "cpu") == "cpu" else BESIDE_DEVICE
    with ThreadPoolExecutor(beside, "ovrs-read") as reader, ThreadPoolExecutor(beside, "ovrs-write") as writer:
        coming: deque[Future[tuple[Pixels, float]]] = deque()
        leaving: deque[Future[BlockRecord]] = deque()
        try:
            for index, name in enumerate(names):
                if is_over():
                    break
                for ahead in names[index + len(coming) : index + 1 + beside]:
                    coming.append(reader.submit(_read, job, ahead))
                pixels, started = coming.popleft(), time.perf_counter()
                result = _computed(job, name, overhang, pixels.result)
                leaving.append(writer.submit(_commit, job, name, result, started))
                if len(leaving) > beside:
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
    job: Job, name: str, overhang: Overhang, pixels: Callable[[], tuple[Pixels, float]] | None = None
) -> BlockMap | Exception:
    """Return the map of a block, or why there is none. `pixels` waits for them and for the seconds that reading took."""
    try:
        network.require_same(job)
        segmenter, block = segmenters.build(job.spec), job.block(name)
        keep = job.options.run.store_scores
        ready, spent = pixels() if pixels else _read(job, name)
        found = map_block(
            job.scene,
            segmenter,
            job.plan,
            block,
            job.rule,
            keep_scores=keep,
            pixels=ready,
            overhang=overhang,
            tick=meter.tick,
        )
        return replace(found, seconds={**found.seconds, "read": spent})
    except Exception as error:
        log.debug("block %s", name, exc_info=True)
        return error


def _read(job: Job, name: str) -> tuple[Pixels, float]:
    """Pixels of a block, and the seconds that reading them took."""
    started = time.perf_counter()
    return job.scene.read(job.block(name).read), time.perf_counter() - started


def _commit(job: Job, name: str, result: BlockMap | Exception, started: float) -> BlockRecord:
    """Write a block's pixels, then its marker, or a marker with the reason of failure."""
    job.run_dir.guard()
    before = job.run_dir.record_of(name)
    attempt = before.attempt + 1 if before else 1
    try:
        job.scene.require_unchanged()  # also where reading failed: a scene cut short is another one
        if isinstance(result, Exception):
            raise result
        block = job.block(name)
        writing = time.perf_counter()
        overviews = _write(job, block, result)
        stages = {**result.seconds, "write": time.perf_counter() - writing}
        record = replace(
            _record(job, block, result), overviews=overviews, stages={k: round(v, 3) for k, v in stages.items()}
        )
    except (SceneChangedError, StoreLockedError):
        raise
    except Exception as error:
        kind = type(error).__name__
        record = BlockRecord(name=name, status="failed", error=kind, reason=redacted(f"{kind}: {told(error)}"))
        log.warning("block %s failed: %s", name, record.reason)
        log.debug("block %s", name, exc_info=True)
    seconds = round(time.perf_counter() - started, 3)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return job.run_dir.record(replace(record, attempt=attempt, seconds=seconds, worker=worker))


def _write(job: Job, block: Block, result: BlockMap) -> str:
    """Write a block's pixels and its part of the overviews; returns CRC-32 of the latter."""
    place = job.target.unfinished()
    store.write_block(place, block.core, job.shard or job.plan.chunk, result.label, result.confidence, result.score)
    if not job.levels.by_block:
        return ""
    root = zarr.open_group(place, mode="r+", use_consolidated=False)
    return pyramid.write_block(root, job.levels, block.core, (result.label, result.confidence))


def _record(job: Job, block: Block, result: BlockMap) -> BlockRecord:
    classes = len(job.spec.vocabulary.classes)
    known = np.minimum(result.label, classes)  # "no data" is a large number
    counts = np.stack([np.bincount(row, minlength=classes)[:classes] for row in known])
    areas = row_areas_m2(job.scene.geobox, block.core) @ counts
    unknown = int(np.count_nonzero(result.confidence == CONFIDENCE_NODATA))
    histogram = {str(i): int(n) for i, n in enumerate(counts.sum(axis=0)) if n}
    return BlockRecord(
        name=block.name,
        status="done" if histogram else "empty",
        tiles=result.tiles,
        histogram=histogram,
        areas_m2={k: float(areas[int(k)]) for k in histogram},
        confidence_sum=int(result.confidence.sum(dtype=np.int64)) - CONFIDENCE_NODATA * unknown,
        crc=verify.block_crc(result.label, result.confidence, result.score),
        events=result.events,
        ties=result.ties,
    )
