"""How a map's pixels are stored: types, no data and the scale of confidence. The one place that knows the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE_SCALE = 200
"""Stored confidence, and each stored score, is round(200 · score)."""
CONFIDENCE_NODATA = 255
BYTE_CLASSES = 254
"""So many classes fit into a byte beside no data."""


def label_dtype(classes: int) -> np.dtype[np.unsignedinteger]:
    """Type of the labels: uint8 up to 254 classes, uint16 above."""
    return np.dtype(np.uint8) if classes <= BYTE_CLASSES else np.dtype(np.uint16)


def label_nodata(classes: int) -> int:
    """Label of pixels without data: 255, or 65535 above 254 classes."""
    return int(np.iinfo(label_dtype(classes)).max)


def quantised(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scores as they are stored: 0..1 as 0..200; values outside are clipped."""
    return np.rint(np.clip(scores, 0, 1) * CONFIDENCE_SCALE).astype(np.uint8)
