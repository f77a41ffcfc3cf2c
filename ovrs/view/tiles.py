"""Pictures for the viewer: tiles of image, classes and confidence, and what one pixel says. Reads overviews, never whole arrays."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ovrs.engine.decide import CONFIDENCE_NODATA, CONFIDENCE_SCALE, label_nodata
from ovrs.errors import OvrsError
from ovrs.export.cog import legend
from ovrs.options import SceneOptions
from ovrs.scene.opening import open_scene
from ovrs.store import layout as store

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TILE = 256


class MapTiles:
    """One map. Tile (z, x, y) covers 256 pixels of overview level z, level 0 being the full resolution."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.group = store.open_complete(path)
        self.facts, self.geobox = store.facts(self.group), store.geobox_of(self.group)
        self.names, self.colours = legend(self.group)
        self.levels = [0]
        while f"{2 ** (len(self.levels))}" in self.group:
            self.levels.append(len(self.levels))
        self.nodata = label_nodata(len(self.names))
        self.lock = threading.Lock()
        self.scene: Any = None
        try:
            self.scene = open_scene(self.facts["uri"], SceneOptions.model_validate(self.facts["options"]["scene"]))
        except OvrsError as error:
            self.scene_missing = str(error)

    def describe(self) -> dict[str, Any]:
        """What the page needs to know."""
        return {
            "name": self.path.name,
            "shape": [self.geobox.height, self.geobox.width],
            "levels": len(self.levels),
            "tile": TILE,
            "pixel_m": self.facts["pixel_size_m"][0],
            "crs": None if self.geobox.crs is None else (self.facts["grid"]["epsg"] or "custom"),
            "transform": [float(v) for v in self.geobox.affine[:6]],
            "image": self.scene is not None,
            "scores": "score" in self.group,
            "model": f"{self.facts['model']['model']}, {self.facts['model']['method']}",
            "classes": [
                {
                    "name": n,
                    "colour": f"#{r:02x}{g:02x}{b:02x}",
                    "hectares": area["hectares"],
                    "percent": area["percent"],
                }
                for n, (r, g, b), area in zip(self.names, self.colours, self.facts["classes"], strict=True)
            ],
        }

    def tile(self, layer: str, z: int, x: int, y: int, hidden: frozenset[int] = frozenset()) -> bytes | None:
        """PNG of one tile, None outside the map or for a layer that is not there."""
        if z not in self.levels:
            return None
        if layer == "image":
            return self._image(z, x, y)
        array = self._array("label" if layer == "classes" else "confidence", z)
        part = self._cut(array, x, y)
        if part is None:
            return None
        if layer == "classes":
            table = np.zeros((self.nodata + 1, 4), np.uint8)
            table[: len(self.colours), :3], table[: len(self.colours), 3] = self.colours, 255
            table[[h for h in hidden if h < len(self.colours)], 3] = 0
            return _png(table[part])
        shade = np.round(part.astype(np.float32) * 255 / CONFIDENCE_SCALE).clip(0, 255).astype(np.uint8)
        alpha = np.where(part == CONFIDENCE_NODATA, 0, 255).astype(np.uint8)
        return _png(np.dstack([shade, shade, shade, alpha]))

    def at(self, row: int, col: int) -> dict[str, Any] | None:
        """Class, confidence and, where stored, all scores of one pixel."""
        if not (0 <= row < self.geobox.height and 0 <= col < self.geobox.width):
            return None
        label = int(np.asarray(self._array("label", 0)[row, col]))
        if label >= len(self.names):
            return {"class": None}
        sure = int(np.asarray(self._array("confidence", 0)[row, col])) / CONFIDENCE_SCALE
        found: dict[str, Any] = {"class": self.names[label], "confidence": round(sure, 3)}
        if "score" in self.group:
            scores = np.asarray(store.array(self.group, "score")[:, row, col]) / CONFIDENCE_SCALE
            found["scores"] = {n: round(float(s), 3) for n, s in zip(self.names, scores, strict=True)}
        return found

    def _array(self, name: str, z: int) -> Any:
        return store.array(self.group, name if z == 0 else f"{2**z}/{name}")

    def _cut(self, array: Any, x: int, y: int) -> NDArray[Any] | None:
        """256 × 256 pixels, filled up with no data at the border."""
        rows, cols = slice(y * TILE, (y + 1) * TILE), slice(x * TILE, (x + 1) * TILE)
        if x < 0 or y < 0 or rows.start >= array.shape[0] or cols.start >= array.shape[1]:
            return None
        part = np.asarray(array[rows, cols])
        out = np.full((TILE, TILE), np.iinfo(array.dtype).max, array.dtype)
        out[: part.shape[0], : part.shape[1]] = part
        return out

    def _image(self, z: int, x: int, y: int) -> bytes | None:
        from ovrs.scene.grid import Window

        size = TILE * 2**z
        whole = Window(0, 0, self.geobox.height, self.geobox.width)
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
