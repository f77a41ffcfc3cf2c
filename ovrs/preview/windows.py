"""Which windows of a scene to look at: a few, spread over its colours, always the same for a scene and a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.engine.tiling import Block, crop_starts
from ovrs.errors import OptionError
from ovrs.scene.grid import Window, crop_to_bounds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.engine.tiling import Plan, TileGeometry
    from ovrs.scene.raster import RasterScene

MOST_PIXELS = 1 << 22
"""Pixels of a window that is named by a box."""
_SIDE = 1024
"""Longest side of the small picture that windows are chosen by."""
_CANDIDATES = 4096
_ROUNDS = 12
_DATA = 0.5
"""Share of a window that must be data, where enough windows have so much."""


def spread(scene: RasterScene, plan: Plan, parts: int, seed: int) -> list[Window]:
    """At most `parts` windows, one from each group of windows with like colours; each is inside of one tile.

    Raises:
        OptionError: The scene has no valid pixel that could be shown.
    """
    down, across = (_spans(length, plan.geometry) for length in (plan.height, plan.width))
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(down) * len(across))[:_CANDIDATES])
    windows = [_window(down[k // len(across)], across[k % len(across)]) for k in map(int, chosen)]
    small = scene.decimated(_SIDE)
    seen = [_look(small.rgb, small.valid, window, (plan.height, plan.width)) for window in windows]
    best = max((look[0] for look in seen), default=0.0)
    largest = max(w.height * w.width for w in windows)
    kept = [k for k, look in enumerate(seen) if look[0] >= min(_DATA, best) and look[0] > 0]
    whole = [k for k in kept if windows[k].height * windows[k].width >= _DATA * largest]  # not a strip at the border
    kept = whole if len(whole) >= parts else kept
    if not kept:
        raise OptionError("the scene has no valid pixel to show; check its nodata value and masks")
    looks = np.array([seen[k][1:] for k in kept])
    looks = (looks - looks.mean(0)) / np.maximum(looks.std(0), 1e-6)
    picked = _medoids(looks, min(parts, len(kept)), random)
    return [windows[kept[k]] for k in sorted(picked)]


def around(scene: RasterScene, plan: Plan, xy: tuple[float, float]) -> Window:
    """Return a window of one tile's pitch around a point in the CRS of the scene.

    Raises:
        OptionError: The point lies outside of the scene.
    """
    height, width = scene.geobox.shape
    col, row = (~scene.geobox.affine) @ xy
    if not (0 <= col < width and 0 <= row < height):
        raise OptionError(
            f"--at {xy[0]:g},{xy[1]:g} lies outside of the scene, whose bounds are {tuple(scene.geobox.boundingbox)} in its CRS"
        )
    side = plan.geometry.pitch
    top = max(0, min(int(row) - side // 2, height - side))
    left = max(0, min(int(col) - side // 2, width - side))
    return Window(top, left, min(side, height), min(side, width))


def within(scene: RasterScene, bounds: tuple[float, float, float, float]) -> Window:
    """Return the window of left, bottom, right, top in the CRS of the scene.

    Raises:
        OptionError: The box lies outside, or is too large for a preview.
    """
    cut = crop_to_bounds(scene.geobox, bounds)
    col, row = (~scene.geobox.affine) @ (cut.affine.c, cut.affine.f)
    if cut.height * cut.width > MOST_PIXELS:
        raise OptionError(
            f"--bbox holds {cut.width} x {cut.height} pixels, more than a preview shows ({MOST_PIXELS}); name a smaller one, "
            "or map it with `ovrs map --bbox`"
        )
    return Window(round(row), round(col), cut.height, cut.width)


def block_of(plan: Plan, core: Window) -> Block:
    """Return a block that owns `core` alone; `map_block` gives the pixels that the whole map has there."""
    read = core
    for tile in plan.tiles_of(core):
        read = read.union(tile.window)
    return Block(0, 0, core, read)


def _spans(length: int, geometry: TileGeometry) -> list[tuple[int, int]]:
    """First and end of the part of each tile along an axis that no other tile touches.

    Of a tile whose own part is less than half of it: all of it.
    """
    starts, crop, count = crop_starts(length, geometry.crop, geometry.stride), geometry.crop, geometry.crops_per_tile
    tiles = [
        (group[0], group[-1] + min(crop, length))
        for group in (starts[i : i + count] for i in range(0, len(starts), count))
    ]
    found = []
    for k, (first, end) in enumerate(tiles):
        own = max([first, *(e for _, e in tiles[max(0, k - 1) : k])]), min([end, *(f for f, _ in tiles[k + 1 : k + 2])])
        found.append(own if 2 * (own[1] - own[0]) >= end - first else (first, end))
    return found


def _window(rows: tuple[int, int], cols: tuple[int, int]) -> Window:
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0])


def _look(
    rgb: NDArray[np.uint8], valid: NDArray[np.bool_], window: Window, shape: tuple[int, int]
) -> tuple[float, ...]:
    """Share of data, then mean and spread of each colour of a window in a small picture `(3, y, x)` of a scene."""
    down, across = valid.shape[0] / shape[0], valid.shape[1] / shape[1]
    top, left = int(window.row_off * down), int(window.col_off * across)
    bottom, right = max(top + 1, int(window.row_end * down)), max(left + 1, int(window.col_end * across))
    inside = valid[top:bottom, left:right]
    if not inside.any():
        return (0.0,) * 7
    values = rgb[:, top:bottom, left:right][:, inside].astype(float)
    return (float(inside.mean()), *values.mean(1).tolist(), *values.std(1).tolist())


def _medoids(points: NDArray[np.float64], count: int, random: np.random.Generator) -> list[int]:
    """Return the point nearest to each of `count` centres (k-means, begun at points far from each other)."""
    centres = [points[int(random.integers(len(points)))]]
    while len(centres) < count:
        distance = np.min([((points - c) ** 2).sum(1) for c in centres], axis=0)
        centres.append(points[int(distance.argmax())])
    middle = np.array(centres)
    for _ in range(_ROUNDS):
        owner = ((points[:, None] - middle[None]) ** 2).sum(2).argmin(1)
        middle = np.array([points[owner == k].mean(0) if (owner == k).any() else middle[k] for k in range(count)])
    picked: list[int] = []
    for centre in middle:
        order = ((points - centre) ** 2).sum(1).argsort()
        picked.append(next(int(k) for k in order if int(k) not in picked))
    return picked
