"""How often pixels of a confidence are right, and the temperature that makes both agree (`ovrs.clean.calibrated`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.clean.calibrated import tempered

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
FEWEST = 30
"""Points below which no temperature is fitted."""
FOLDS = 5
_RANGE = (0.05, 20.0)
_STEPS = 241


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Pixels of similar confidence."""

    low: float
    high: float
    share: float
    """Of the area."""
    confidence: float
    """Mean, 0..1."""
    accuracy: float
    """Share that is right, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What a confidence is worth."""

    error: float
    """Expected calibration error of the stored confidence, 0..1, over ten bins of equal width."""
    bins: tuple[Bin, ...]
    temperature: float | None
    """None: too few points to fit one."""
    calibrated_error: float | None
    """The same error after calibration; of points, each with the temperature of the other folds."""
    held_out: bool
    """Whether `calibrated_error` is measured on points that the temperature is not fitted on."""


def measure(
    confidence: NDArray[np.float64],
    right: NDArray[np.float64],
    weight: NDArray[np.float64],
    classes: int,
    *,
    points: bool,
) -> Reliability | None:
    """Reliability of confidences; None without any.

    Args:
        confidence: 0..1, `(n,)`.
        right: Share of each entry that is right, 0..1, `(n,)`.
        weight: Area of each entry in any unit, `(n,)`.
        classes: Classes of the map.
        points: Each entry is one point of a sample; else entries are sums over pixels.
    """
    keep = weight > 0
    confidence, right, weight = confidence[keep], right[keep], weight[keep]
    if not len(confidence):
        return None
    error, bins = _error(confidence, right, weight)
    if points and len(confidence) < FEWEST:
        return Reliability(error=error, bins=bins, temperature=None, calibrated_error=None, held_out=False)
    temperature = fit(confidence, right, weight, classes)
    after = tempered(confidence, temperature, classes)
    if points:
        fold = np.random.default_rng(0).permutation(len(confidence)) % FOLDS
        for number in range(FOLDS):
            own = fold == number
            other = fit(confidence[~own], right[~own], weight[~own], classes)
            after[own] = tempered(confidence[own], other, classes)
    return Reliability(
        error=error,
        bins=bins,
        temperature=temperature,
        calibrated_error=_error(after, right, weight)[0],
        held_out=points,
    )


def fit(
    confidence: NDArray[np.float64], right: NDArray[np.float64], weight: NDArray[np.float64], classes: int
) -> float:
    """Fit the temperature, 0.05 to 20, under which the right answers have the highest likelihood."""
    tried = np.geomspace(*_RANGE, _STEPS)
    found = [_surprise(tempered(confidence, t, classes), right, weight) for t in tried]
    best = int(np.argmin(found))
    near = np.geomspace(tried[max(best - 1, 0)], tried[min(best + 1, _STEPS - 1)], 41)
    return float(near[int(np.argmin([_surprise(tempered(confidence, t, classes), right, weight) for t in near]))])


def _surprise(p: NDArray[np.float64], right: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return -float(np.sum(weight * (right * np.log(p) + (1 - right) * np.log(1 - p))))


def _error(
    confidence: NDArray[np.float64], right: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, tuple[Bin, ...]]:
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    shares = np.asarray(np.bincount(place, weight, minlength=BINS), np.float64)
    means = np.bincount(place, weight * confidence, minlength=BINS) / np.maximum(shares, 1e-300)
    rights = np.bincount(place, weight * right, minlength=BINS) / np.maximum(shares, 1e-300)
    shares = np.asarray(shares / shares.sum(), np.float64)
    bins = tuple(
        Bin(
            low=i / BINS,
            high=(i + 1) / BINS,
            share=float(shares[i]),
            confidence=float(means[i]),
            accuracy=float(rights[i]),
        )
        for i in range(BINS)
        if shares[i] > 0
    )
    return float(np.sum(shares * np.abs(means - rights))), bins
