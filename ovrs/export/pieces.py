"""One polygon on its way into a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMIT = 3_000_000
"""Polygons that may be held in memory, to simplify or square shared borders."""


@dataclass(kw_only=True)
class Piece:
    """Part of a component that lies in one block, later the whole of it."""

    geometries: list[Any] = field(default_factory=list)
    label: int = 0
    pixels: int = 0
    area_m2: float = 0.0
    confidence: float = 0.0
    """Sum over pixels, 0..1 each."""

    def join(self, other: Piece) -> None:
        """Take another piece of the same component in."""
        self.geometries += other.geometries
        self.pixels += other.pixels
        self.area_m2 += other.area_m2
        self.confidence += other.confidence


def moved(affine: Any, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points `(n, 2)` through an affine transform."""
    x, y = points[:, 0], points[:, 1]
    return np.stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f], 1)
