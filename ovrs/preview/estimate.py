"""What the whole map would take: time, memory and disk, from what a few windows took."""

from __future__ import annotations

import resource
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovrs.engine.block import BlockMap
    from ovrs.engine.tiling import Plan

_PYRAMID = 4 / 3
"""A map with its overviews, of one without."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The whole map with the settings as they are, by one worker on this machine."""

    tiles: int
    """Tiles to compute; those that two rows of blocks share count twice."""
    seconds: float
    memory: int
    """Bytes of the process at its largest."""
    disk: int
    """Bytes of the store."""

    @property
    def text(self) -> str:
        """One line for people."""
        minutes = self.seconds / 60
        time = (
            f"{self.seconds:.0f} s"
            if minutes < 2
            else f"{minutes:.0f} min"
            if minutes < 120
            else f"{minutes / 60:.1f} h"
        )
        return (
            f"the whole: about {time} with one worker, {self.memory / 2**30:.1f} GiB of memory, "
            f"{max(self.disk / 2**20, 0.1):.1f} MiB on disk ({self.tiles} tiles)"
        )


def estimate(plan: Plan, classes: int, maps: Sequence[BlockMap], seconds_per_tile: float, before: float) -> Estimate:
    """Estimate the whole from windows of it.

    Args:
        plan: Of the whole.
        classes: Number of classes.
        maps: Windows that were mapped.
        seconds_per_tile: What a tile took.
        before: Seconds that are spent once, such as for adapting to the scene.
    """
    rows, cols = plan.tile_shape
    again = plan.block_shape[0] - 1  # a row of tiles across each border between rows of blocks
    tiles = (rows + (again if plan.geometry.crop > plan.geometry.stride else 0)) * cols
    side = min(plan.block_size, max(plan.height, plan.width)) + 2 * plan.geometry.tile
    scores = 4 * classes * min(side, plan.width + 1) * plan.geometry.tile
    return Estimate(
        tiles=tiles,
        seconds=before + tiles * seconds_per_tile,
        memory=_resident() + scores + 3 * 4 * side * min(side, plan.width),
        disk=round(_PYRAMID * plan.height * plan.width * _bytes_per_pixel(maps)),
    )


def _bytes_per_pixel(maps: Sequence[BlockMap]) -> float:
    """Label and confidence as a common compressor leaves them."""
    pixels = sum(m.label.size for m in maps)
    packed = sum(
        len(zlib.compress(np.ascontiguousarray(a).tobytes(), 4)) for m in maps for a in (m.label, m.confidence)
    )
    return packed / max(pixels, 1)


def _resident() -> int:
    """Bytes of this process at its largest so far: the network and a tile's work are in it."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
