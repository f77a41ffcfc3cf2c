"""A run as a value: everything a worker needs to compute any block of it. The truth about progress is in the run directory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs.run.rundir import RunDir
from ovrs.store.layout import Schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovrs.engine.decide import DecisionRule
    from ovrs.engine.tiling import Block, Plan
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
    out: Path
    options: MapOptions
    facts: Mapping[str, object]
    """What `ovrs.run.network` says of the network that the run was begun with."""
    places: Places | None = None
    """Examples by which the run is taught."""

    def __repr__(self) -> str:
        return f"Job({self.out.name!r})"

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.out)

    @property
    def schema(self) -> Schema:
        """The arrays of the job's store."""
        vocabulary, run = self.spec.vocabulary, self.options.run
        return Schema(
            classes=vocabulary.class_names,
            colours=vocabulary.colours,
            chunk=self.plan.chunk,
            zarr_format=run.zarr_format,
            keep_scores=run.store_scores,
        )

    def allowing_holes(self) -> Job:
        """The same job, finished although blocks fail."""
        run = self.options.run.model_copy(update={"allow_holes": True})
        return replace(self, options=self.options.model_copy(update={"run": run}))

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
