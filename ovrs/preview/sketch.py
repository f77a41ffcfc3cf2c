"""Map a few windows of a scene with one setting or several. The pixels are those that the whole map would have."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.engine.block import map_block
from ovrs.errors import OptionError
from ovrs.preview import windows as choosing
from ovrs.preview.estimate import Estimate, estimate
from ovrs.run import begin, mosaic, segmenters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from ovrs.engine.block import BlockMap
    from ovrs.request import Request
    from ovrs.run.job import Job
    from ovrs.scene.grid import Window
    from ovrs.words.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False, kw_only=True)
class Sketch:
    """The windows under one setting."""

    name: str
    words: Vocabulary
    maps: list[BlockMap]
    """One for each window."""
    estimate: Estimate
    tiles: int
    """Of the whole scene."""

    @property
    def shares(self) -> list[float]:
        """Share of each class among the valid pixels of all windows, 0 to 1."""
        count = len(self.words.classes)
        found = np.concatenate([m.label.ravel() for m in self.maps])
        numbers = np.bincount(found[found < count], minlength=count)
        return [float(share) for share in numbers / max(int(numbers.sum()), 1)]

    @property
    def mean_confidence(self) -> float:
        """Over the valid pixels of all windows, 0 to 1."""
        values = np.concatenate([m.confidence.ravel() for m in self.maps])
        values = values[values != CONFIDENCE_NODATA]
        return float(values.mean() / CONFIDENCE_SCALE) if values.size else 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Preview:
    """What was looked at."""

    windows: list[Window]
    """On the grid of the scene, in pixels."""
    pictures: list[NDArray[np.uint8]]
    """The scene in each window, RGB `(y, x, 3)`."""
    sketches: list[Sketch]


def preview(
    settings: Mapping[str, Request],
    *,
    parts: int = 6,
    seed: int = 0,
    at: tuple[float, float] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Preview:
    """Map a few windows of one scene; nothing is kept.

    Args:
        settings: Requests for the same scene by a short name; their targets are not written.
        parts: Number of windows, spread over the scene's colours.
        seed: Which windows, among those that would do.
        at: x, y in the CRS of the scene: one window around it, in place of `parts`.
        bbox: left, bottom, right, top in the CRS of the scene: this window, in place of `parts`.
        progress: Called with the name of each setting before it is computed.

    Raises:
        OptionError: No setting, or a place outside of the scene.
        OvrsError: As `ovrs.pipeline.map`.
    """
    if not settings:
        raise OptionError("a preview needs at least one setting")
    with tempfile.TemporaryDirectory(prefix="ovrs-preview-") as folder:
        place = Path(folder)
        windows: list[Window] = []
        sketches, pictures = [], []
        for number, (name, request) in enumerate(settings.items()):
            if progress is not None:
                progress(name)
            scene = mosaic.as_one([request.uri, *request.others], place / "scene.zarr")
            job, _ = begin.build_job(scene, request.words, place / f"{number}.zarr", request.options)
            if not windows:
                windows = _windows(job, parts, seed, at, bbox)
                pictures = [np.moveaxis(job.scene.read(window).rgb, 0, -1) for window in windows]
            sketches.append(_sketched(name, job, windows))
    return Preview(windows=windows, pictures=pictures, sketches=sketches)


def _windows(
    job: Job,
    parts: int,
    seed: int,
    at: tuple[float, float] | None,
    bbox: tuple[float, float, float, float] | None,
) -> list[Window]:
    if at is not None and bbox is not None:
        raise OptionError("--at and --bbox name one window each; give one of them")
    if at is not None:
        return [choosing.around(job.scene, job.plan, at)]
    if bbox is not None:
        return [choosing.within(job.scene, bbox)]
    return choosing.spread(job.scene, job.plan, parts, seed)


def _sketched(name: str, job: Job, windows: list[Window]) -> Sketch:
    begun = time.perf_counter()
    if job.spec.adapts_to_scene or job.places is not None:
        job = begin.adapted_to_scene(job)
    segmenter = segmenters.build(job.spec)
    learned = time.perf_counter() - begun
    maps = [
        map_block(job.scene, segmenter, job.plan, choosing.block_of(job.plan, window), job.rule) for window in windows
    ]
    each = [m.seconds["compute"] / m.tiles for m in maps if m.tiles]
    typical = float(np.median(each)) if each else 0.0
    words = job.spec.vocabulary
    rows, cols = job.plan.tile_shape
    return Sketch(
        name=name,
        words=words,
        maps=maps,
        estimate=estimate(job.plan, len(words.classes), maps, typical, learned),
        tiles=rows * cols,
    )
