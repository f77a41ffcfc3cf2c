"""Pictures for the viewer: tiles of image, classes and confidence, and what one pixel says. Reads overviews, never whole arrays."""

from __future__ import annotations

import io
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.errors import OvrsError
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.scene.raster import RasterScene
    from ovrs.store.layout import Layer
    from ovrs.store.map import Map

log = logging.getLogger(__name__)

TILE = 256


class MapTiles:
    """One map. Tile (z, x, y) covers 256 pixels of overview level z, level 0 being the full resolution."""

    def __init__(self, mapped: Map) -> None:
        self.map = mapped
        self.lock = threading.Lock()
        self.scene: RasterScene | None = None
        try:
            self.scene = mapped.scene()
        except OvrsError as error:
            log.warning("the viewer shows the map alone: %s", error)

    def describe(self) -> dict[str, object]:
        """Return what the page needs to know."""
        grid, record = self.map.grid, self.map.record
        return {
            "name": self.map.name,
            "shape": [grid.height, grid.width],
            "levels": len(self.map.factors),
            "tile": TILE,
            "pixel_m": record.pixel_size_m[0],
            "crs": None if grid.crs is None else (record.grid.epsg or "custom"),
            "transform": [float(v) for v in grid.affine[:6]],
            "image": self.scene is not None,
            "scores": self.map.scores is not None,
            "model": f"{record.model.model}, {record.model.method}",
            "classes": [
                {"name": c.name, "colour": c.hex, "hectares": c.hectares, "percent": c.percent}
                for c in self.map.classes
            ],
        }

    def tile(self, layer: str, z: int, x: int, y: int, hidden: frozenset[int] = frozenset()) -> bytes | None:
        """PNG of one tile, None outside the map or for a layer that is not there."""
        if not 0 <= z < len(self.map.factors):
            return None
        if layer == "image":
            return self._image(z, x, y)
        array = self._array("label" if layer == "classes" else "confidence", z)
        part = self._cut(array, x, y)
        if part is None:
            return None
        if layer == "classes":
            table = np.zeros((self.map.nodata + 1, 4), np.uint8)
            table[: len(self.map.colours), :3], table[: len(self.map.colours), 3] = self.map.colours, 255
            table[[h for h in hidden if h < len(self.map.colours)], 3] = 0
            return _png(table[part])
        shade = np.round(part.astype(np.float32) * 255 / CONFIDENCE_SCALE).clip(0, 255).astype(np.uint8)
        alpha = np.where(part == CONFIDENCE_NODATA, 0, 255).astype(np.uint8)
        return _png(np.dstack([shade, shade, shade, alpha]))

    def at(self, row: int, col: int) -> dict[str, object] | None:
        """Class, confidence and, where stored, all scores of one pixel."""
        if not (0 <= row < self.map.grid.height and 0 <= col < self.map.grid.width):
            return None
        label = int(np.asarray(self._array("label", 0)[row, col]))
        if label >= len(self.map.names):
            return {"class": None}
        sure = int(np.asarray(self._array("confidence", 0)[row, col])) / CONFIDENCE_SCALE
        found: dict[str, object] = {"class": self.map.names[label], "confidence": round(sure, 3)}
        if self.map.scores is not None:
            scores = np.asarray(self.map.scores[:, row, col]) / CONFIDENCE_SCALE
            found["scores"] = {n: round(float(s), 3) for n, s in zip(self.map.names, scores, strict=True)}
        return found

    def _array(self, name: str, z: int) -> Layer:
        return self.map.layer(name, 2**z)

    def _cut(self, array: Layer, x: int, y: int) -> NDArray[Any] | None:
        """256 × 256 pixels, filled up with no data at the border."""
        rows, cols = slice(y * TILE, (y + 1) * TILE), slice(x * TILE, (x + 1) * TILE)
        if x < 0 or y < 0 or rows.start >= array.shape[0] or cols.start >= array.shape[1]:
            return None
        part = np.asarray(array[rows, cols])
        out = np.full((TILE, TILE), np.iinfo(array.dtype).max, array.dtype)
        out[: part.shape[0], : part.shape[1]] = part
        return out

    def _image(self, z: int, x: int, y: int) -> bytes | None:
        size = TILE * 2**z
        whole = Window(0, 0, self.map.grid.height, self.map.grid.width)
        window = Window(y * size, x * size, size, size).intersect(whole) if x >= 0 and y >= 0 else None
        if self.scene is None or window is None:
            return None
        with self.lock:
            pixels = self.scene.decimated_window(window, 2**z)
        out = np.zeros((TILE, TILE, 4), np.uint8)
        h, w = pixels.valid.shape
        out[:h, :w, :3] = np.moveaxis(pixels.rgb, 0, -1)
        out[:h, :w, 3] = np.where(pixels.valid, 255, 0)
        return _png(out)


def _png(rgba: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
