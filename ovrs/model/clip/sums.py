"""Windows into one tile: weighted sums of score maps over the windows that show a pixel.

Resizing, tapering and summing are linear, and each works along rows and columns alone. Where windows form a grid, all
three are one matrix for the rows and one for the columns: a tile's sum of query `m` is `R · L[m] · Cᵀ`, where `L[m]` holds
the scores of all windows' patches side by side. No window's map is ever made. Other layouts are summed window by window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ovrs.engine.tiling import ramp_weights, taper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ovrs.model.clip.features import TileFeatures


@dataclass(frozen=True, eq=False)
class Layer:
    """Windows of one shape, of T tiles in which they lie alike, with what is asked of them."""

    part: TileFeatures
    """Inputs of all tiles, tile after tile."""
    text: Tensor
    """`(M, D)`, or `(T * B, M, D)` when every input has its own."""
    base_text: Tensor
    """As `text`: what the global token is compared with."""
    ramp: int
    """Pixels over which a window's weight rises from its border; 0 counts all alike."""


def accumulate(features: TileFeatures, maps: Tensor, ramp: int = 0) -> tuple[Tensor, Tensor]:
    """Weighted sum of the crops' maps `(B, K, ch, cw)` on the tile `(K, H, W)`, and the sum of weights `(H, W)`.

    Args:
        features: Of one tile.
        maps: One per crop.
        ramp: Pixels over which a crop's weight rises from its border (the overlap of neighbours). 0 counts every crop
            alike, as the papers do; crops then show as boxes where they disagree.
    """
    total, weights = accumulate_alike(features, maps[None], ramp)
    return total[0], weights


def accumulate_alike(features: TileFeatures, maps: Tensor, ramp: int = 0) -> tuple[Tensor, Tensor]:
    """As `accumulate`, for tiles whose crops lie alike: maps `(T, B, K, ch, cw)` to `(T, K, H, W)` and weights `(H, W)`."""
    total = maps.new_zeros((len(maps), maps.shape[2], *features.shape))
    weights = maps.new_zeros(features.shape)
    weight = torch.from_numpy(taper(features.crops[0], ramp)).to(maps.device) if ramp else None
    if weight is None:
        weight = maps.new_ones(features.crop_shape)
    for crop, values in zip(features.crops, maps.unbind(1), strict=True):
        part = (slice(crop.row_off, crop.row_end), slice(crop.col_off, crop.col_end))
        total[(..., *part)] += values * weight
        weights[part] += weight
    return total, weights


def by_window(scales: Sequence[Sequence[Layer]], tiles: int, maps: Callable[[Layer], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of all scales times the crops' weights (the first scale's), `(T, M, H, W)`, and these, `(H, W)`.

    Args:
        scales: Layers of each size of window.
        tiles: T.
        maps: Score maps of a layer's inputs, `(T * B, M, ch, cw)`.
    """
    sums = []
    for layers in scales:
        found = [accumulate_alike(w.part, maps(w).unflatten(0, (tiles, -1)), w.ramp) for w in layers]
        sums.append((sum(t for t, _ in found[1:]) + found[0][0], sum(w for _, w in found[1:]) + found[0][1]))
    total, weights = sums[0]
    for wide_total, wide_weights in sums[1:]:
        total = total + wide_total * (weights / wide_weights)
    return total / len(sums), weights


@dataclass(frozen=True, eq=False)
class Axis:
    """Rows, or columns, of one layer."""

    matrix: Tensor
    """float32 `(length of the tile, windows * patches)`: resizing, weights and sum."""
    weights: Tensor
    """float64 `(length of the tile,)`: sums of the windows' weights."""


@dataclass(frozen=True)
class Line:
    """What decides an axis: starts of its windows, and how a window's patches become its pixels."""

    starts: tuple[int, ...]
    length: int
    crop: int
    grid: int
    seen: int
    pad: int
    inner: int
    direct: bool
    ramp: int


def in_grid(part: TileFeatures, ramp: int) -> tuple[Line, Line, tuple[int, ...]] | None:
    """Rows, columns and the windows' order, row by row; None if windows do not form a grid."""
    rows, cols = (tuple(sorted({getattr(c, name) for c in part.crops})) for name in ("row_off", "col_off"))
    at = {(c.row_off, c.col_off): index for index, c in enumerate(part.crops)}
    order = tuple(at[r, c] for r in rows for c in cols if (r, c) in at)
    if not len(order) == len(rows) * len(cols) == len(part.crops):
        return None
    direct = part.inner == part.input_shape
    shape, crop, grid, seen, pad, inner = (
        part.shape,
        part.crop_shape,
        part.grid,
        part.input_shape,
        part.pad,
        part.inner,
    )
    lines = [
        Line(starts, shape[k], crop[k], grid[k], seen[k], pad[k], inner[k], direct, ramp)
        for k, starts in enumerate((rows, cols))
    ]
    return lines[0], lines[1], order


@lru_cache(maxsize=64)
def axis(line: Line, device: torch.device) -> Axis:
    """Return the matrix and the weights of one axis."""
    # four equal columns: of maps one column wide, PyTorch 2.x's antialiased resizing mixes up the channels
    each = resized(
        torch.eye(line.grid)[None, :, :, None].repeat(1, 1, 1, 4),
        seen=(line.seen, 4),
        pad=(line.pad, 0),
        inner=(line.inner, 4),
        crop=(line.crop, 4),
        direct=line.direct,
    )[0, :, :, 0].T.double()
    weight = torch.from_numpy(ramp_weights(line.crop, line.ramp) if line.ramp else np.ones(line.crop))
    matrix = torch.zeros(line.length, len(line.starts), line.grid, dtype=torch.float64)
    weights = torch.zeros(line.length, dtype=torch.float64)
    for index, start in enumerate(line.starts):
        matrix[start : start + line.crop, index] = weight[:, None] * each
        weights[start : start + line.crop] += weight
    return Axis(matrix.flatten(1).float().to(device), weights.to(device))


def by_matrices(
    scales: Sequence[Sequence[Layer]], tiles: int, scores: Callable[[Layer], Tensor]
) -> tuple[Tensor, Tensor] | None:
    """As `by_window`, by one matrix for the rows and one for the columns of each scale; None if windows form no grid.

    Args:
        scales: Layers of each size of window.
        tiles: T.
        scores: Scores of a layer's patches, `(T * B, M, N)`.
    """
    grids = [in_grid(layers[0].part, layers[0].ramp) for layers in scales if len(layers) == 1]
    if len(grids) < len(scales) or None in grids:
        return None
    total = weights = first = None
    for (layer,), found in zip(scales, grids, strict=True):
        assert found is not None
        device = layer.part.patches.device
        rows, cols = axis(found[0], device), axis(found[1], device)
        first = first or (rows.weights, cols.weights)
        down, across = (
            a.matrix * (of_crops / a.weights)[:, None].float() if of_crops is not a.weights else a.matrix
            for a, of_crops in zip((rows, cols), first, strict=True)
        )
        low = _side_by_side(scores(layer), found, tiles)
        narrow = torch.matmul(down / len(scales), low)  # (T, M, H, columns of patches)
        wide = narrow.flatten(0, -2)
        total = wide @ across.T if total is None else total.addmm_(wide, across.T)
        shape = (*narrow.shape[:-1], len(across))
    assert first is not None
    assert total is not None
    weights = torch.outer(*first).float()
    return total.view(shape), weights


def _side_by_side(scores: Tensor, found: tuple[Line, Line, tuple[int, ...]], tiles: int) -> Tensor:
    """`(T * B, M, N)` to `(T, M, rows of patches, columns of patches)` over all windows."""
    rows, cols, order = found
    each = scores.unflatten(0, (tiles, -1))
    if order != tuple(range(len(order))):
        each = each[:, list(order)]
    grid = each.unflatten(1, (len(rows.starts), len(cols.starts))).unflatten(-1, (rows.grid, cols.grid))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def resized(
    low: Tensor,
    *,
    seen: tuple[int, int],
    pad: tuple[int, int],
    inner: tuple[int, int],
    crop: tuple[int, int],
    direct: bool,
) -> Tensor:
    """Resize maps on the patches `(B, M, h, w)` to the pixels of the crops `(B, M, crop height, crop width)`.

    Args:
        low: Maps on the grid of patches.
        seen: Rows and columns of the network's input.
        pad: Rows and columns of padding before the crop's first pixel.
        inner: Rows and columns of the input that show the crop.
        crop: Rows and columns of the crop.
        direct: There is no padding: straight to the crop's own pixels.
    """
    if direct:
        return F.interpolate(low, crop, mode="bilinear", align_corners=False)
    return cut_out(F.interpolate(low, seen, mode="bilinear", align_corners=False), pad=pad, inner=inner, crop=crop)


def cut_out(full: Tensor, *, pad: tuple[int, int], inner: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """Take the crop from maps on the network's input, at the size of the crop."""
    part = full[..., pad[0] : pad[0] + inner[0], pad[1] : pad[1] + inner[1]]
    if inner == crop:
        return part
    return F.interpolate(part, crop, mode="bilinear", align_corners=False, antialias=True)
