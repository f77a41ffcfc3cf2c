"""Overview levels: which there are, how they are stored, and who writes them.

Each level halves the one before. Its chunks have as many pixels as those of the map. A block writes the levels of which
it covers whole chunks, a group of 8 × 8 blocks the next ones, one process the few coarsest. No two write one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from odc.geo.geobox import GeoBox

PYRAMID_FLOOR = 256
"""Levels are added until both sides are at most this many pixels."""
GROUP = 8
"""Blocks along a side of a group."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The overview levels of one map. A level's factor is the side of its pixel in pixels of the map."""

    shape: tuple[int, int]
    """Height and width of the map in pixels."""
    chunk: int
    """Side of a chunk in pixels of its level."""
    pitches: int
    """Chunks along a side of a block of the map."""
    sharded: bool = False
    """Whether a writer's chunks lie in one file."""
    wanted: bool = True
    """Whether there are any."""

    @property
    def factors(self) -> tuple[int, ...]:
        """2, 4, … from fine to coarse."""
        found, factor = [], 2
        while self.wanted and max(self.shape_of(factor // 2)) > PYRAMID_FLOOR:
            found.append(factor)
            factor *= 2
        return tuple(found)

    @property
    def by_block(self) -> tuple[int, ...]:
        """Factors of the levels that each block writes its own part of."""
        return tuple(f for f in self.factors if self.pitches % f == 0)

    @property
    def by_group(self) -> tuple[int, ...]:
        """Factors of the levels that each group of blocks writes its own part of."""
        return tuple(f for f in self.factors if self.pitches % f and GROUP * self.pitches % f == 0)

    @property
    def rest(self) -> tuple[int, ...]:
        """Factors of the levels that one process writes at the end."""
        return tuple(f for f in self.factors if GROUP * self.pitches % f)

    def shape_of(self, factor: int) -> tuple[int, int]:
        """Height and width of a level in its pixels."""
        return -(-self.shape[0] // factor), -(-self.shape[1] // factor)

    def geobox_of(self, factor: int, geobox: GeoBox) -> GeoBox:
        """Return the grid of a level, from that of the map."""
        from odc.geo.geobox import GeoBox as Box

        return Box(self.shape_of(factor), geobox.affine @ geobox.affine.scale(factor), geobox.crs)

    def shard_of(self, factor: int) -> int | None:
        """Side of a shard of a level in its pixels: what one writer covers; None where every chunk is a file."""
        if not self.sharded:
            return None
        chunks = self.pitches if factor in self.by_block else GROUP * self.pitches
        return self.chunk * (self.pitches if factor in self.rest else chunks // factor)

    @property
    def group_shape(self) -> tuple[int, int]:
        """Rows and columns of groups."""
        side = GROUP * self.pitches * self.chunk
        return -(-self.shape[0] // side), -(-self.shape[1] // side)

    def group(self, row: int, col: int) -> Window:
        """Return the window of the map under a group."""
        side = GROUP * self.pitches * self.chunk
        top, left = row * side, col * side
        return Window(top, left, min(side, self.shape[0] - top), min(side, self.shape[1] - left))

    def windows(self, factor: int) -> Iterator[Window]:
        """Windows of a level that cover whole chunks, for whoever writes all of it."""
        side = self.shard_of(factor) or 4 * self.chunk
        yield from strips(self.shape_of(factor), side)


def part(window: Window, factor: int) -> Window:
    """Pixels of a level over a window of the map that starts on pixels of that level."""
    top, left = window.row_off // factor, window.col_off // factor
    return Window(top, left, -(-window.row_end // factor) - top, -(-window.col_end // factor) - left)


def strips(shape: tuple[int, ...], size: int) -> Iterator[Window]:
    """Windows of `size` pixels a side that cover an array, row by row."""
    for row in range(0, shape[0], size):
        for col in range(0, shape[1], size):
            yield Window(row, col, min(size, shape[0] - row), min(size, shape[1] - col))
