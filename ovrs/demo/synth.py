"""Procedural aerial scenes with exact labels: for the demo, the tests and as training material.

The world is a pure function of position and seed, so any window of any scene can be rendered alone
and neighbouring windows agree to the last bit. Nothing here imitates a particular place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Float = NDArray[np.floating]

CLASS_NAMES = ("building", "road", "water", "tree", "field", "bare soil")
"""Label values 0..5, in the order of the shipped `demo` vocabulary."""

BUILDING, ROAD, WATER, TREE, FIELD, SOIL = range(6)

_ROOFS = np.array(
    [[158, 84, 66], [176, 108, 84], [122, 118, 116], [148, 146, 142], [206, 202, 196], [96, 84, 80]],
    np.float32,
)
_CROPS = np.array(
    [[104, 132, 66], [128, 148, 82], [86, 118, 58], [168, 164, 98], [188, 172, 112], [112, 140, 74]],
    np.float32,
)
_SOILS = np.array([[150, 122, 92], [172, 146, 114], [128, 104, 82], [186, 166, 138]], np.float32)


@dataclass(frozen=True, kw_only=True)
class World:
    """An endless landscape. `seed` chooses it, `gsd` (metres per pixel) is the scale it is rendered at."""

    seed: int = 0
    gsd: float = 0.5
    parcel_m: float = 150.0
    noise: float = 3.0
    """Standard deviation of the sensor noise in 8-bit counts."""

    def render(
        self, row_off: int, col_off: int, height: int, width: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Render one window.

        Returns:
            RGB uint8 `(3, height, width)` and class labels uint8 `(height, width)`, values 0..5.
        """
        pad = 2  # the point spread function needs two neighbours on each side
        rows = np.arange(row_off - pad, row_off + height + pad)
        cols = np.arange(col_off - pad, col_off + width + pad)
        x, y = np.meshgrid(cols.astype(np.float32) * self.gsd, rows.astype(np.float32) * self.gsd)
        labels, rgb = self._ground(x, y)
        rgb = _blur(rgb)[:, pad:-pad, pad:-pad]
        gx, gy = np.meshgrid(cols[pad:-pad], rows[pad:-pad])
        for band in range(3):
            grain = sum(_hash01(gx, gy, self.seed * 131 + band * 7 + k) for k in (1, 2, 3)) - 1.5
            rgb[band] += 2.0 * self.noise * grain
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8), labels[pad:-pad, pad:-pad].copy()

    def _ground(self, x: Float, y: Float) -> tuple[NDArray[np.uint8], Float]:
        s = self.seed * 1009
        wob = 14 * (_noise(x, y, 45, s + 1) - 0.5)
        ix, iy, d1, d2 = _voronoi(x + wob, y - wob, self.parcel_m, s + 2)
        kind = _hash01(ix, iy, s + 3)
        px, py = ix * np.float32(self.parcel_m), iy * np.float32(self.parcel_m)
        town = _noise(px, py, 700, s + 4) > 0.56
        wood = (_noise(px, py, 520, s + 5) > 0.6) & ~town
        angle = (_hash01(ix, iy, s + 6) * np.pi).astype(np.float32)
        ca, sa = np.cos(angle), np.sin(angle)
        u, v = ca * x + sa * y, -sa * x + ca * y  # axes of the parcel: rows of crops, rows of houses

        labels = np.full(x.shape, FIELD, np.uint8)
        rgb = _pick(_CROPS, _hash01(ix, iy, s + 7))
        rgb = rgb * (1 + 0.05 * np.sin(u * (2 * np.pi / 3.0)))  # drill rows
        ploughed = ~town & ~wood & (kind < 0.24)
        labels[ploughed] = SOIL
        rgb = np.where(ploughed, _pick(_SOILS, _hash01(ix, iy, s + 8)) * (1 + 0.06 * np.sin(u * 2.1)), rgb)

        rgb = rgb * (0.86 + 0.28 * _noise(x, y, 30, s + 9)) + 14 * (_noise(x, y, 2.2, s + 10) - 0.5)
        self._houses(labels, rgb, u, v, ix, iy, town, s)
        groves = _noise(x, y, 38, s + 11) > np.where(town, 0.72, 0.83)
        hedges = ~town & (d2 - d1 < 7) & (_hash01(ix, iy, s + 12) < 0.3)
        self._trees(labels, rgb, x, y, (wood | groves | hedges) & (labels != BUILDING), s)
        lake = ~town & (kind > 0.95) & (d2 - d1 > 24)
        self._water(labels, rgb, x, y, lake, s)
        self._roads(labels, rgb, x, y, d2 - d1, town, s)
        return labels, rgb

    def _houses(
        self,
        labels: NDArray[np.uint8],
        rgb: Float,
        u: Float,
        v: Float,
        ix: Float,
        iy: Float,
        town: NDArray[np.bool_],
        s: int,
    ) -> None:
        lot = np.where(_hash01(ix, iy, s + 20) < 0.25, 48.0, 26.0).astype(np.float32)  # halls or houses
        cu, cv = np.floor(u / lot), np.floor(v / lot)
        key_u, key_v = cu + 977 * ix, cv + 613 * iy
        half_u = lot * (0.2 + 0.14 * _hash01(key_u, key_v, s + 21))
        half_v = lot * (0.16 + 0.14 * _hash01(key_u, key_v, s + 22))
        built = town & (_hash01(key_u, key_v, s + 23) < 0.8)
        du, dv = u - (cu + 0.5) * lot, v - (cv + 0.5) * lot
        roof = built & (np.abs(du) < half_u) & (np.abs(dv) < half_v)
        reach = 2.5 + 3.5 * _hash01(key_u, key_v, s + 24)
        shade = built & ~roof & (np.abs(du - reach) < half_u) & (np.abs(dv - 0.6 * reach) < half_v)
        rgb *= np.where(shade, 0.52, 1.0)
        colour = _pick(_ROOFS, _hash01(key_u, key_v, s + 25)) * (0.9 + 0.2 * _hash01(key_u, key_v, s + 26))
        colour = colour * np.where(dv > 0, 0.86, 1.06)  # two slopes under one sun
        rgb[:, roof] = colour[:, roof]
        labels[roof] = BUILDING

    def _trees(
        self, labels: NDArray[np.uint8], rgb: Float, x: Float, y: Float, where: NDArray[np.bool_], s: int
    ) -> None:
        ix, iy, d1, _ = _voronoi(x, y, 6.5, s + 30)  # one crown per cell, lit from the north-west
        crown = np.clip(1 - d1 / 4.6, 0, 1)
        light = 0.5 + 0.75 * crown + 0.12 * (_hash01(ix, iy, s + 31) - 0.5)
        green = np.array([56, 82, 46], np.float32)[:, None, None] * (0.85 + 0.4 * _hash01(ix, iy, s + 32))
        rgb[:, where] = (green * light)[:, where]
        labels[where] = TREE

    def _water(
        self, labels: NDArray[np.uint8], rgb: Float, x: Float, y: Float, lake: NDArray[np.bool_], s: int
    ) -> None:
        phase = 6.28 * float(_hash01(np.array([3]), np.array([5]), s + 40)[0])
        course = 620 + 170 * np.sin(x / 410 + phase) + 60 * np.sin(x / 137 + 2 * phase)
        slope = 170 / 410 * np.cos(x / 410 + phase) + 60 / 137 * np.cos(x / 137 + 2 * phase)
        off = np.mod(y - course + 900, 1800) - 900  # one river every 1.8 km
        river = np.abs(off) / np.sqrt(1 + slope**2) < 17 + 7 * _noise(x, y, 90, s + 41)
        water = river | lake
        tone = np.array([48, 72, 84], np.float32)[:, None, None] * (0.9 + 0.2 * _noise(x, y, 60, s + 42))
        rgb[:, water] = (tone + 3 * (_noise(x, y, 3, s + 43) - 0.5))[:, water]
        labels[water] = WATER

    def _roads(
        self, labels: NDArray[np.uint8], rgb: Float, x: Float, y: Float, gap: Float, town: NDArray[np.bool_], s: int
    ) -> None:
        street = town & (gap < 8)
        course = 300 + 120 * np.sin(y / 520 + s) + 35 * np.sin(y / 190)
        across = np.mod(x - course + 550, 1100) - 550  # a trunk road every 1.1 km, over bridges
        trunk = np.abs(across) < 6.5
        road = (street & (labels != WATER)) | trunk
        asphalt = np.array([126, 124, 122], np.float32)[:, None, None] * (0.92 + 0.14 * _noise(x, y, 14, s + 50))
        rgb[:, road] = asphalt[:, road]
        line = trunk & (np.abs(across) < 0.3)
        rgb[:, line] = 214
        labels[road] = ROAD


def windows(height: int, width: int, size: int = 1024) -> Iterator[tuple[int, int, int, int]]:
    """Yield `(row_off, col_off, height, width)` of a cover of the raster, row by row."""
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield row, col, min(size, height - row), min(size, width - col)


def write_scene(
    path: Path,
    *,
    height: int,
    width: int,
    world: World,
    labels_path: Path | None = None,
    crs: str = "EPSG:32633",
    origin: tuple[float, float] = (500_000.0, 5_600_000.0),
) -> None:
    """Write a georeferenced RGB GeoTIFF and, if asked, its exact labels (uint8, 255 never occurs), window by window.

    `origin` is the outer corner of the first pixel in units of `crs` (easting, northing).
    """
    import contextlib

    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "crs": crs,
        "dtype": "uint8",
        "tiled": True,
        "transform": from_origin(*origin, world.gsd, world.gsd),
        "compress": "deflate",
        "blockxsize": 512,
        "blockysize": 512,
    }
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(rasterio.open(path, "w", count=3, photometric="RGB", **profile))
        truth = None
        if labels_path is not None:
            truth = stack.enter_context(rasterio.open(labels_path, "w", count=1, nodata=255, **profile))
        for row, col, h, w in windows(height, width):
            rgb, labels = world.render(row, col, h, w)
            image.write(rgb, window=Window(col, row, w, h))
            if truth is not None:
                truth.write(labels, 1, window=Window(col, row, w, h))


def _hash01(ix: NDArray, iy: NDArray, salt: int) -> Float:
    """Uniform [0, 1) from integer-valued positions: a finaliser-type integer hash, the same on every machine."""
    a = np.asarray(ix).astype(np.int64).astype(np.uint32)
    b = np.asarray(iy).astype(np.int64).astype(np.uint32)
    h = a * np.uint32(0x9E3779B1) ^ (b * np.uint32(0x85EBCA77) + np.uint32((salt * 0xC2B2AE3D) & 0xFFFFFFFF))
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _noise(x: Float, y: Float, scale: float, salt: int) -> Float:
    """Smooth value noise in [0, 1) with features of `scale` metres."""
    fx, fy = x / np.float32(scale), y / np.float32(scale)
    ix, iy = np.floor(fx), np.floor(fy)
    tx, ty = fx - ix, fy - iy
    tx, ty = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty)
    top = _hash01(ix, iy, salt) * (1 - tx) + _hash01(ix + 1, iy, salt) * tx
    low = _hash01(ix, iy + 1, salt) * (1 - tx) + _hash01(ix + 1, iy + 1, salt) * tx
    return top * (1 - ty) + low * ty


def _voronoi(x: Float, y: Float, cell: float, salt: int) -> tuple[Float, Float, Float, Float]:
    """Nearest of jittered grid points: its cell `(ix, iy)` and the distances to it and to the second one."""
    gx, gy = np.floor(x / np.float32(cell)), np.floor(y / np.float32(cell))
    best_x, best_y = gx.copy(), gy.copy()
    d1 = np.full(x.shape, np.inf, np.float32)
    d2 = d1.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cx, cy = gx + dx, gy + dy
            sx = (cx + 0.1 + 0.8 * _hash01(cx, cy, salt)) * np.float32(cell)
            sy = (cy + 0.1 + 0.8 * _hash01(cx, cy, salt + 1)) * np.float32(cell)
            d = np.hypot(x - sx, y - sy)
            closer = d < d1
            d2 = np.where(closer, d1, np.minimum(d2, d))
            best_x, best_y = np.where(closer, cx, best_x), np.where(closer, cy, best_y)
            d1 = np.where(closer, d, d1)
    return best_x, best_y, d1, d2


def _pick(palette: Float, fraction: Float) -> Float:
    """Choose one row of `palette` (n, 3) per pixel; returns `(3, h, w)`."""
    index = np.minimum((fraction * len(palette)).astype(np.intp), len(palette) - 1)
    return np.moveaxis(palette[index], -1, 0).copy()


def _blur(rgb: Float) -> Float:
    """Separable binomial point spread function over five pixels; borders are invalid and cut by the caller."""
    kernel = np.array([1, 4, 6, 4, 1], np.float32) / 16
    for axis in (1, 2):
        rgb = sum(weight * np.roll(rgb, shift, axis) for weight, shift in zip(kernel, (-2, -1, 0, 1, 2), strict=True))
    return rgb
