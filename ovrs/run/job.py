"""A run as a value: everything a worker needs to compute any block of it. The truth about progress is in the run directory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.layout import Schema
from ovrs.store.levels import Levels
from ovrs.store.target import Target, target_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovrs.engine.decide import DecisionRule
    from ovrs.engine.tiling import Block, Plan
    from ovrs.objects.address import Place
    from ovrs.objects.claim import Fence
    from ovrs.options import MapOptions
    from ovrs.run.segmenters import SegmenterSpec
    from ovrs.scene.examples import Places
    from ovrs.scene.raster import RasterScene

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run. Picklable: scene and segmenter are opened where the work happens."""

    scene: RasterScene
    spec: SegmenterSpec
    plan: Plan
    rule: DecisionRule
    out: Place
    options: MapOptions
    facts: Mapping[str, object]
    """What `ovrs.run.network` says of the network that the run was begun with."""
    digest: dict[str, str] = field(default_factory=dict)
    """Of the run's description: compared again once the run is locked, where it is known."""
    fence: Fence | None = None
    """The claim under which the job is worked on; every write checks it."""
    places: Places | None = None
    """Examples by which the run is taught."""

    def __repr__(self) -> str:
        return f"Job({self.out.name!r})"

    @property
    def run_dir(self) -> RunDir:
        """Return the run directory, guarded by the claim."""
        return RunDir(self.out, self.fence)

    @property
    def target(self) -> Target:
        """Where the map is made."""
        return target_of(self.out, self.fence)

    @property
    def shard(self) -> int | None:
        """Side of a shard in pixels, that of a block; None where every chunk is a file."""
        run = self.options.run
        wanted = not isinstance(self.out, Path) if run.shards is None else run.shards
        return self.plan.chunk * self.plan.block_pitches if wanted and run.zarr_format == 3 else None

    @property
    def levels(self) -> Levels:
        """The overviews of the job's map."""
        return Levels(
            shape=(self.plan.height, self.plan.width),
            chunk=self.plan.chunk,
            pitches=self.plan.block_pitches,
            sharded=self.shard is not None,
            wanted=self.options.run.pyramid,
        )

    @property
    def schema(self) -> Schema:
        """The arrays of the job's store."""
        vocabulary, run = self.spec.vocabulary, self.options.run
        return Schema(
            classes=vocabulary.class_names,
            colours=vocabulary.colours,
            chunk=self.plan.chunk,
            shard=self.shard,
            zarr_format=run.zarr_format,
            keep_scores=run.store_scores,
            levels=self.levels,
        )

    def allowing_holes(self) -> Job:
        """Return the same job, finished although blocks fail."""
        run = self.options.run.model_copy(update={"allow_holes": True})
        return replace(self, options=self.options.model_copy(update={"run": run}))

    def block(self, name: str) -> Block:
        """Return the block of a name made by `Block.name`."""
        row, col = map(int, name.split("_"))
        return self.plan.block(row, col)

    def holes_to_fill(self) -> list[str]:
        """Names of the blocks without which the map was finished, where this run allows none to be missing."""
        if not self.target.is_finished or self.options.run.allow_holes:
            return []
        found: Any = store.facts(store.open_complete(self.out)).get("holes")
        return list(found or ())

    def missing(self) -> list[str]:
        """Names of the blocks without a finished marker, in plan order. Reads each marker once."""
        records = self.run_dir.markers()
        for name in (n for n, record in records.items() if record is None):
            log.warning("the marker of block %s is damaged; the block is computed again", name)
        finished = {name for name, record in records.items() if record is not None and record.finished}
        return [name for name in self.plan.block_names() if name not in finished]
