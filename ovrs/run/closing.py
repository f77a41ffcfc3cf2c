"""The last look at the blocks of a run, group by group: pixels compared, overviews finished, checksums taken.

With a standing Dask scheduler its workers do this, else threads of this process: the client of a large run reads markers,
not pixels.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import zarr

from ovrs.engine import execute, workers
from ovrs.errors import DamagedBlocksError, OvrsError, SchedulerLostError, told
from ovrs.redact import guard_logs
from ovrs.run import place, verify
from ovrs.store import layout as store
from ovrs.store import pyramid
from ovrs.store.levels import GROUP, part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ovrs.run.job import Job
    from ovrs.run.rundir import BlockRecord
    from ovrs.run.verify import Checksum
    from ovrs.scene.grid import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Blocks that lie together."""

    row: int
    col: int
    blocks: tuple[BlockRecord, ...]
    """Markers of its finished blocks."""

    @property
    def name(self) -> str:
        """As the part of the manifest is called."""
        return f"{self.row:05d}_{self.col:05d}"


@dataclass(frozen=True, kw_only=True)
class Closed:
    """What came of a group."""

    group: str
    damaged: Mapping[str, str] = field(default_factory=dict)
    """What is wrong, by name of the block."""
    files: Mapping[str, Checksum] = field(default_factory=dict)
    """Of the files of the group; empty where there are none, or in a part of the manifest."""
    part: str = ""
    """What `verify.write_part` gave."""


@dataclass(frozen=True)
class Closer(workers.Work[Group, Closed]):
    """Closes groups of one run. Picklable."""

    job: Job
    begun: str
    """When the run began, as `run.json` has it."""
    in_parts: bool
    """Whether checksums are written group by group."""

    def __call__(self, item: Group) -> Closed:
        """Compare, complete and hash the blocks of a group."""
        job, root, damaged = self.job, self.root, {}
        window, blocks = job.levels.group(item.row, item.col), (1, *job.levels.by_block)
        stored = [r for r in item.blocks if not (r.status == "empty" and self._is_bare(job.block(r.name).core, blocks))]
        if not stored and self._is_bare(window, job.levels.by_group):
            return Closed(group=item.name)
        for record in stored:
            block = job.block(record.name)
            found = verify.read_block(self.layers[1], block, record.crc)
            if isinstance(found, verify.Problem):
                damaged[record.name] = str(found)
            elif job.levels.by_block and pyramid.block_crc(root, job.levels, block.core) != record.overviews:
                pyramid.write_block(root, job.levels, block.core, (found[0], found[1]))
        if damaged:
            return Closed(group=item.name, damaged=damaged)
        pyramid.write_group(root, job.levels, item.row, item.col)
        files = verify.checksums(
            job.target.objects(finished=False), self._files((*blocks, *job.levels.by_group), window)
        )
        if not self.in_parts:
            return Closed(group=item.name, files=files)
        return Closed(group=item.name, part=verify.write_part(job.run_dir, item.name, files))

    @cached_property
    def root(self) -> zarr.Group:
        """The unfinished map."""
        return zarr.open_group(self.job.target.unfinished(), mode="r+", use_consolidated=False)

    @cached_property
    def layers(self) -> dict[int, list[store.Layer]]:
        """Arrays that blocks and groups write, by the factor of their level; 1 is the map itself."""
        levels, names = self.job.levels, ("label", "confidence")
        coarse = {f: [store.array(self.root, f"{f}/{n}") for n in names] for f in (*levels.by_block, *levels.by_group)}
        return {1: verify.layers_of(self.root), **coarse}

    def __reduce__(self) -> tuple[type[Closer], tuple[Job, str, bool]]:
        return Closer, (self.job, self.begun, self.in_parts)

    def _files(self, factors: Iterable[int], window: Window) -> Iterator[str]:
        """Files of a window of the map in some levels, by their paths in the map; some may not exist."""
        for factor in factors:
            for layer in self.layers[factor]:
                yield from (name for name, _ in verify.chunk_files(layer, part(window, factor)))

    def _is_bare(self, window: Window, factors: Iterable[int]) -> bool:
        """Whether a window is no data in some levels because nothing of it is stored."""
        below = self.job.target.objects(finished=False)
        return all(below.head(name) is None for name in self._files(factors, window))

    def label(self, item: Group) -> tuple[str, str]:
        """Name a group for people."""
        return "close", item.name

    def prepare(self) -> dict[str, str]:
        """Make this process, a worker, ready: it needs no model."""
        guard_logs()
        place.require_seen(self.job, self.begun)
        return {}

    def lost(self, item: Group, error: Exception) -> Closed:
        """End the run where no worker could close a group; what is done is kept.

        Raises:
            SchedulerLostError: The workers died; other errors are raised as they are.
        """
        if isinstance(error, (OvrsError, OSError)):
            raise error
        raise SchedulerLostError(
            f"the workers that compared blocks {item.name} of {self.job.out} ended ({told(error)}); finished blocks are "
            "kept, `ovrs resume` goes on"
        ) from error

    def check_here(self) -> None:
        """Refuse to go on where this process does not see the output either."""
        place.require_seen(self.job, self.begun)


def groups(job: Job, records: Mapping[str, BlockRecord]) -> Iterator[Group]:
    """Every group of a run with its finished blocks."""
    rows, cols = job.levels.group_shape
    for row in range(rows):
        for col in range(cols):
            names = job.plan.names_in(row * GROUP, col * GROUP, GROUP)
            found = (records[n] for n in names if n in records and records[n].finished)
            yield Group(row=row, col=col, blocks=tuple(found))


def close(job: Job, records: Mapping[str, BlockRecord]) -> tuple[dict[str, Checksum], dict[str, str]]:
    """Compare every finished block with its marker, and complete the overviews that blocks and groups write.

    Args:
        job: The run; blocks that are to stay holes are cleared.
        records: Markers by name of the block.

    Returns:
        Checksums of the files of all groups, and the parts of the manifest that hold them instead, for a map of several groups.

    Raises:
        DamagedBlocksError: Names the blocks that no longer hold what was written; they then count as not computed.
    """
    run, options = job.run_dir, job.options.run
    work = Closer(job, run.description().begun, job.levels.group_shape != (1, 1))
    if not execute.is_elsewhere(options) and options.executor == "dask":
        options = options.model_copy(update={"executor": "threads"})  # no cluster is started for this
    files: dict[str, Checksum] = {}
    parts: dict[str, str] = {}
    damaged: dict[str, str] = {}
    with closing(execute.run(options, work, groups(job, records))) as found:
        for closed in found:
            damaged |= closed.damaged
            files |= closed.files
            if closed.part:
                parts[closed.group] = closed.part
    for name, fault in sorted(damaged.items()):
        log.warning("block %s is computed again: %s", name, fault)
        run.forget(name)
    if damaged:
        names = sorted(damaged)
        raise DamagedBlocksError(
            f"{len(names)} finished blocks of {job.out} no longer hold what was written "
            f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''}); `ovrs resume {job.out}` computes them again",
            names,
        )
    return files, dict(sorted(parts.items()))
