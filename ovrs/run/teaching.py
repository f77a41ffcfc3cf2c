"""Examples of a run: read on the grid of the map, shown to the model, kept beside what it learned from the scene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.errors import OptionError
from ovrs.run.adaptation import sample_tiles
from ovrs.scene.examples import read_examples
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.engine.contract import Learned, Segmenter
    from ovrs.engine.tiling import Plan
    from ovrs.model.adapt.teaching import Shown
    from ovrs.run.job import Job
    from ovrs.run.segmenters import SegmenterSpec
    from ovrs.scene.examples import Places
    from ovrs.scene.raster import RasterScene, SceneSource

SAMPLE = 32
"""Tiles of the scene that the metric and the class shares come from."""


def places_of(spec: SegmenterSpec, scene: RasterScene) -> Places | None:
    """Return the examples that a run was given.

    Raises:
        OptionError: They cannot be used, or the model cannot be taught.
    """
    source = spec.method.examples
    if source is None:
        return None
    if spec.model.family != "clip":
        raise OptionError(f"--examples: only methods on CLIP can be taught, and --model is {spec.model.model}")
    return read_examples(scene.geobox, source, spec.vocabulary.class_names)


def learn(segmenter: Segmenter, job: Job, places: Places) -> Learned:
    """Learn what the examples teach, as plain arrays; `segmenter` already has what it learned from the scene."""
    from ovrs.model.adapt.teaching import frozen_of, taught_state

    frozen = frozen_of(segmenter)
    if frozen is None:
        raise OptionError(f"--examples: method {job.spec.method.method} cannot be taught")
    shown = _shown(job.scene, job.plan, places)
    return taught_state(frozen, shown, sample_tiles(job.scene, job.plan, SAMPLE))


def _shown(scene: SceneSource, plan: Plan, places: Places) -> Iterator[Shown]:
    """Each tile that holds examples, with those in it."""
    from ovrs.model.adapt.teaching import Shown

    crop, across = plan.geometry.crop, plan.width // plan.geometry.crop + 1
    cells = places.rows // crop * across + places.cols // crop
    first = {int(f): int(c) for f, c in zip(places.features[::-1], cells[::-1], strict=True)}
    regions = np.array([first[int(f)] for f in places.features])  # a polygon is one region
    left = np.ones(len(places.rows), bool)
    while left.any():
        start = int(np.flatnonzero(left)[0])
        tile = plan.tiles_of(Window(int(places.rows[start]), int(places.cols[start]), 1, 1))[0]
        window = tile.window
        inside = left & (places.rows >= window.row_off) & (places.rows < window.row_end)
        inside &= (places.cols >= window.col_off) & (places.cols < window.col_end)
        left &= ~inside
        pixels = scene.read(window)
        rows, cols = places.rows - window.row_off, places.cols - window.col_off
        seen = np.flatnonzero(inside)
        seen = seen[pixels.valid[rows[seen], cols[seen]]]  # of a place without data nothing is learned
        crops = tuple(c.relative_to(window) for c in tile.crops)
        sample = np.ascontiguousarray(pixels.rgb), np.ascontiguousarray(pixels.valid), crops
        if len(seen):
            yield Shown(sample, rows[seen], cols[seen], places.labels[seen], regions[seen])
