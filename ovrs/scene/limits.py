"""What a raster may claim before memory or days are spent on it: a damaged header often claims enormous sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovrs.errors import SceneReadError

MOST_PIXELS_PER_SIDE = 1 << 24
"""Side of a scene in pixels; the coordinates of a longer side alone take 128 MiB and more."""
MOST_BYTES_PER_PIECE = 2 << 30
"""Bytes of one strip or tile of a band, which GDAL holds in memory as a whole."""


def check_claims(source: Any) -> None:
    """Refuse a raster (an open rasterio dataset) whose header claims what cannot be worked on.

    Raises:
        SceneReadError: A side, or a piece that GDAL reads at once, is too large; or pixels have no place of their own.
    """
    if not _are_apart(source):
        raise SceneReadError(
            f"{source.name} has a transform in which neighbouring pixels lie on one point, {tuple(source.transform)[:6]}; "
            "is its header damaged? gdal_edit.py -a_ullr gives it another"
        )
    if max(source.width, source.height) > MOST_PIXELS_PER_SIDE:
        raise SceneReadError(
            f"{source.name} claims {source.width} x {source.height} pixels, more than {MOST_PIXELS_PER_SIDE} along a side; "
            "is its header damaged?"
        )
    for (rows, cols), dtype in zip(source.block_shapes, source.dtypes, strict=True):
        size = 16 if dtype.startswith("complex") else np.dtype(dtype).itemsize
        if rows * cols * size > MOST_BYTES_PER_PIECE:
            raise SceneReadError(
                f"{source.name} is stored in pieces of {cols} x {rows} pixels, too large to read at once. Store it in tiles "
                "(gdal_translate -co TILED=YES), or is its header damaged?"
            )


def _are_apart(source: Any) -> bool:
    """Whether neighbouring pixels differ in place, at both ends of the raster, and span an area."""
    a, b, c, d, e, f = (float(v) for v in tuple(source.transform)[:6])
    if not np.isfinite([a, b, c, d, e, f]).all() or a * e == b * d:
        return False
    ends = [(c, f), (c + a * source.width + b * source.height, f + d * source.width + e * source.height)]
    return all((x + a, y + d) != (x, y) and (x + b, y + e) != (x, y) for x, y in ends)
