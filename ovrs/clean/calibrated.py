"""Stored confidence brought to how often it is right, by one temperature.

A confidence p among K classes stands for scores of p and K − 1 equal rests. Their softmax at temperature T gives
p^(1/T) / (p^(1/T) + (K − 1) ((1 − p) / (K − 1))^(1/T)): 1/K stays, T < 1 raises what lies above, T > 1 lowers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.store.derived import DerivedMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ovrs.store.map import Map


def tempered(confidence: NDArray[np.float64], temperature: float, classes: int) -> NDArray[np.float64]:
    """Confidence 0..1 at a temperature; the same shape, float64."""
    others = max(classes - 1, 1)
    p = np.clip(np.asarray(confidence, np.float64), 1e-6, 1 - 1e-6)
    odds = np.log(p) - np.log((1 - p) / others)
    return np.asarray(1 / (1 + others * np.exp(np.clip(-odds / temperature, -700, 700))))


def table(temperature: float, classes: int) -> NDArray[np.uint8]:
    """Map stored confidence to calibrated stored confidence, uint8 `(256,)`; no data stays."""
    found = np.arange(256, dtype=np.uint8)
    stored = np.arange(CONFIDENCE_SCALE + 1) / CONFIDENCE_SCALE
    found[: CONFIDENCE_SCALE + 1] = np.rint(tempered(stored, temperature, classes) * CONFIDENCE_SCALE)
    found[CONFIDENCE_NODATA] = CONFIDENCE_NODATA
    return found


def calibrated(mapped: Map, temperature: float) -> Map:
    """Return the same map with calibrated confidence; its store stays as it is."""
    translation = table(temperature, len(mapped.names))
    return DerivedMap(mapped, translation=translation, note=f"confidence at temperature {temperature:.4g}")
