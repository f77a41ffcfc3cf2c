"""Segmenters without a network: for tests of the engine and for measuring it. Shipped, like `zarr.testing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.engine.contract import TileScores
from ovrs.engine.tiling import TileGeometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.scene.grid import Window


class ColourSegmenter:
    """Frozen: each crop is smoothed and compared with one colour per class. `--model trivial` uses it."""

    def __init__(self, classes: int, geometry: TileGeometry | None = None) -> None:
        self.geometry = geometry or TileGeometry(crop=160, stride=80)
        self.class_count = self.channels = classes
        rng = np.random.default_rng(7)
        self.colours = rng.uniform(40, 215, (classes, 3)).astype(np.float32)

    def evidence(
        self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        total = np.zeros((self.channels, *valid.shape), np.float32)
        hits = np.zeros(valid.shape, np.float32)
        for crop in crops:
            part = (slice(crop.row_off, crop.row_end), slice(crop.col_off, crop.col_end))
            pixels = rgb[(slice(None), *part)].astype(np.float32)
            pixels += 0.1 * (
                pixels.mean(axis=(1, 2), keepdims=True) - pixels
            )  # depends on the whole crop, as a network does
            for index, colour in enumerate(self.colours):
                total[(index, *part)] -= np.abs(pixels - colour[:, None, None]).sum(axis=0) / 765
            hits[part] += 1
        return total, hits

    def finish(self, evidence: NDArray[np.float32]) -> TileScores:
        scores = np.exp(20 * (evidence - evidence.max(axis=0)))
        return TileScores(scores / scores.sum(axis=0))

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        total, hits = self.evidence(rgb, valid, crops)
        return self.finish(total / hits)

    def describe(self) -> dict[str, object]:
        return {"model": "trivial", "weights": "none", "method": "none", "classes": self.class_count}


class TileMeanSegmenter:
    """Adaptive: scores depend on the tile's own statistics, like any test-time adaptation."""

    def __init__(self, classes: int = 3, geometry: TileGeometry | None = None) -> None:
        self.geometry = geometry or TileGeometry(crop=32, stride=16, crops_per_tile=3)
        self.class_count = classes

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        grey = rgb.mean(axis=0, dtype=np.float32)
        level = grey[valid].mean()
        centres = level + np.linspace(-60, 60, self.class_count, dtype=np.float32)
        distance = np.abs(grey - centres[:, None, None])
        scores = np.exp(-distance / 20).astype(np.float32)
        return TileScores(scores / scores.sum(axis=0), events=("adapted",))

    def describe(self) -> dict[str, object]:
        return {"model": "tile-mean", "weights": "none", "method": "tile", "classes": self.class_count}
