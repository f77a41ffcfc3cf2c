"""Which crops make a tile, which tiles a block needs, and how tiles are weighted. Integer arithmetic, no reading.

All positions come from one scene-wide grid of crops (`docs/methods.md#windows-and-scores`): crop i starts at i · stride and the last
one is moved back to end at the border. A tile is a group of consecutive crops, so tiles, too, are scene-wide: every
block that touches a tile computes exactly the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.errors import OptionError
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BLOCKS = 1 << 21
"""Blocks of a run; each has a marker file of its own."""


@dataclass(frozen=True, kw_only=True)
class TileGeometry:
    """What a segmenter says about its own windows, in pixels."""

    crop: int
    """Side of the model's input window."""
    stride: int
    """Distance between neighbouring crops."""
    crops_per_tile: int = 4
    """Crops along one side of a tile."""

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.crop:
            raise OptionError(f"stride must lie in 1..crop ({self.crop}), got {self.stride}")
        if self.crops_per_tile < 1:
            raise OptionError(f"a tile needs at least one crop, got {self.crops_per_tile}")

    @property
    def pitch(self) -> int:
        """Distance between neighbouring tiles."""
        return self.crops_per_tile * self.stride

    @property
    def tile(self) -> int:
        """Side of a full tile."""
        return self.crop + (self.crops_per_tile - 1) * self.stride


def crop_count(length: int, crop: int, stride: int) -> int:
    """Crops along one axis."""
    return max(length - crop + stride - 1, 0) // stride + 1


def crop_starts(length: int, crop: int, stride: int) -> list[int]:
    """Start of every crop along one axis; a scene shorter than a crop has a single, shorter one."""
    return [max(0, min(i * stride, length - crop)) for i in range(crop_count(length, crop, stride))]


@dataclass(frozen=True)
class Tile:
    """One unit of adaptation."""

    row: int
    col: int
    window: Window
    """Footprint on the grid: the bounding box of its crops."""
    crops: tuple[Window, ...]
    """Crops in grid coordinates, row by row."""


@dataclass(frozen=True)
class Block:
    """One unit of ownership: what a worker reads, computes and writes."""

    row: int
    col: int
    core: Window
    """The pixels that this block, and no other, writes."""
    read: Window
    """Bounding box of all its tiles; never overhangs the grid."""

    @property
    def name(self) -> str:
        """Return the name by which files and records know the block."""
        return block_name(self.row, self.col)


def block_name(row: int, col: int) -> str:
    """`00003_00012`: sorts in plan order."""
    return f"{row:05d}_{col:05d}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The partition of a grid into tiles and blocks: a pure function of four numbers and a shape."""

    height: int
    width: int
    geometry: TileGeometry
    block_pitches: int = 8

    def __post_init__(self) -> None:
        if self.block_pitches < 1:
            raise OptionError(f"a block needs at least one pitch, got {self.block_pitches}")

    @property
    def block_size(self) -> int:
        """Return the side of a block in pixels."""
        return self.block_pitches * self.geometry.pitch

    @property
    def chunk(self) -> int:
        """Side of a stored chunk: one pitch, so a block is whole chunks."""
        return self.geometry.pitch

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return the rows and columns of blocks."""
        size = self.block_size
        return -(-self.height // size), -(-self.width // size)

    @property
    def block_count(self) -> int:
        """Return the number of blocks."""
        rows, cols = self.block_shape
        return rows * cols

    def block_names(self) -> list[str]:
        """Names of all blocks, row by row; cheap also for scenes of many thousands."""
        return self.names_in(0, 0, max(self.block_shape))

    def names_in(self, row: int, col: int, count: int) -> list[str]:
        """Names of at most `count` × `count` blocks from a row and column on, row by row."""
        rows, cols = self.block_shape
        return [
            block_name(r, c) for r in range(row, min(row + count, rows)) for c in range(col, min(col + count, cols))
        ]

    def has(self, name: str) -> bool:
        """Whether a name is that of a block."""
        row, _, col = name.partition("_")
        rows, cols = self.block_shape
        if not (row.isdecimal() and col.isdecimal() and int(row) < rows and int(col) < cols):
            return False
        return name == block_name(int(row), int(col))

    def blocks(self) -> list[Block]:
        """Return all blocks, row by row."""
        rows, cols = self.block_shape
        return [self.block(r, c) for r in range(rows) for c in range(cols)]

    def block(self, row: int, col: int) -> Block:
        """Return the block at a row and column of blocks."""
        size = self.block_size
        core = Window(row * size, col * size, min(size, self.height - row * size), min(size, self.width - col * size))
        (top, bottom), (left, right) = (
            self._reach(length, begin, end)
            for length, begin, end in (
                (self.height, core.row_off, core.row_end),
                (self.width, core.col_off, core.col_end),
            )
        )
        return Block(row, col, core, core.union(Window(top, left, bottom - top, right - left)))

    def tiles_of(self, core: Window) -> list[Tile]:
        """Every tile that touches `core`, row by row."""
        row_groups = self._groups(self.height, core.row_off, core.row_end)
        col_groups = self._groups(self.width, core.col_off, core.col_end)
        return [self._tile(i, rows, j, cols) for i, rows in row_groups for j, cols in col_groups]

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self._count(self.height), self._count(self.width)

    def tile(self, row: int, col: int) -> Tile:
        """One tile by its place."""
        return self._tile(row, self._group(self.height, row), col, self._group(self.width, col))

    def tile_lines(self, axis_length: int) -> list[int]:
        """First row (or column) of every tile but the first along an axis."""
        return [self._group(axis_length, index)[0] for index in range(1, self._count(axis_length))]

    def _count(self, length: int) -> int:
        """Tiles along an axis."""
        return -(-crop_count(length, self.geometry.crop, self.geometry.stride) // self.geometry.crops_per_tile)

    def _group(self, length: int, index: int) -> list[int]:
        """Return starts of the crops of one tile along an axis; costs the same wherever it lies."""
        g = self.geometry
        first = index * g.crops_per_tile
        end = min(first + g.crops_per_tile, crop_count(length, g.crop, g.stride))
        return [max(0, min(i * g.stride, length - g.crop)) for i in range(first, end)]

    def _reach(self, length: int, begin: int, end: int) -> tuple[int, int]:
        """First pixel, and one after the last, of the tiles along an axis that touch begin to end."""
        groups = self._groups(length, begin, end)
        return groups[0][1][0], groups[-1][1][-1] + min(self.geometry.crop, length)

    def _groups(self, length: int, begin: int, end: int) -> list[tuple[int, list[int]]]:
        """Return the tiles along an axis that touch begin to end, with the starts of their crops."""
        size = min(self.geometry.crop, length)
        # a tile reaches less than two pitches beyond its regular start, so none before this one touches
        index = max(0, min(begin, length) // self.geometry.pitch - 1 - -(-size // self.geometry.pitch))
        found = []
        for number in range(index, self._count(length)):
            starts = self._group(length, number)
            if starts[0] >= end:
                break
            if starts[-1] + size > begin:
                found.append((number, starts))
        return found

    def _tile(self, row: int, row_starts: list[int], col: int, col_starts: list[int]) -> Tile:
        height, width = min(self.geometry.crop, self.height), min(self.geometry.crop, self.width)
        crops = tuple(Window(r, c, height, width) for r in row_starts for c in col_starts)
        box = Window(
            row_starts[0],
            col_starts[0],
            row_starts[-1] - row_starts[0] + height,
            col_starts[-1] - col_starts[0] + width,
        )
        return Tile(row, col, box, crops)


def taper(window: Window, ramp: int) -> NDArray[np.float32]:
    """Blending weight of one tile: a cosine ramp over `ramp` pixels on each side, one in the middle, never zero.

    Returns:
        float32 `(height, width)` in (0, 1].
    """
    return np.outer(ramp_weights(window.height, ramp), ramp_weights(window.width, ramp)).astype(np.float32)


def plateau(window: Window, ramp: int) -> Window | None:
    """Return the part of a tile's window where `taper` is one; None if there is none."""
    top, left = (max(1, min(ramp, length // 2)) for length in window.shape)
    height, width = window.height - 2 * top, window.width - 2 * left
    return Window(window.row_off + top, window.col_off + left, height, width) if height > 0 and width > 0 else None


def ramp_weights(length: int, ramp: int) -> NDArray[np.float64]:
    """Return the blending weight along one side, float64 `(length,)`: `taper` is the outer product of two."""
    ramp = max(1, min(ramp, length // 2))
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp) + 0.5) / ramp)
    weight = np.ones(length)
    weight[:ramp] = rise
    weight[length - ramp :] = rise[::-1]
    return np.maximum(weight, 1e-3)


def check_blocks(plan: Plan) -> None:
    """Refuse a run of more blocks than files can be kept for.

    Raises:
        OptionError: Too many blocks.
    """
    if plan.block_count > MOST_BLOCKS:
        raise OptionError(
            f"{plan.width} x {plan.height} pixels are {plan.block_count} blocks, more than {MOST_BLOCKS}; map a part with "
            "--bbox, a coarser grid with --gsd, or larger blocks with --set run.block_pitches=…"
        )
