"""Accuracy and area from a stratified random sample, with standard errors.

All figures are ratios of two stratified means (Stehman 2014, equations 2, 3, 25 to 28). Where the strata are the classes
of the map, they equal the estimators of Olofsson et al. (2014, equations 1 to 11), but for the finite population
correction, which they leave out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z95 = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval."""
_ROUNDING = 1e-12
"""Standard errors below are zeros."""


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """One stratum of a sample."""

    name: str
    pixels: int
    """In the map."""
    area_m2: float
    """True ground area."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Labelled points of a stratified random sample; arrays of equal length, one entry for each point."""

    strata: tuple[Stratum, ...]
    """Each with at least one point."""
    stratum: NDArray[np.int64]
    """Index into `strata`."""
    mapped: NDArray[np.int64]
    """Class of the map; index into the classes that are assessed."""
    reference: NDArray[np.int64]
    """Class of the reference, alike."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of the area that lies in each stratum."""
        areas = np.array([s.area_m2 for s in self.strata])
        return np.asarray(areas / areas.sum(), np.float64)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Share of the area for which each point stands; they add up to 1."""
        points = np.bincount(self.stratum, minlength=len(self.strata))
        return np.asarray((self.shares / np.maximum(points, 1))[self.stratum])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure between 0 and 1 with its 95 % interval."""

    value: float | None
    """None: no point tells."""
    error: float | None
    """Standard error; None where the sample has none to tell."""
    low: float | None
    high: float | None
    exact: bool = False
    """The interval is the exact binomial one, of points that all agree."""

    @property
    def half_width(self) -> float | None:
        """Of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


NOTHING = Estimate(value=None, error=None, low=None, high=None)


def ratio(sample: Sample, above: NDArray[np.bool_] | NDArray[np.float64], below: NDArray[np.float64]) -> Estimate:
    """Return the ratio of two stratified means with its standard error.

    Args:
        sample: The points.
        above: Numerator of each point, float64 or bool.
        below: Denominator of each point, float64.
    """
    y, x = np.asarray(above, np.float64), np.asarray(below, np.float64)
    shares = sample.shares
    points = np.bincount(sample.stratum, minlength=len(shares)).astype(np.float64)
    mean_y = np.bincount(sample.stratum, y, minlength=len(shares)) / np.maximum(points, 1)
    mean_x = np.bincount(sample.stratum, x, minlength=len(shares)) / np.maximum(points, 1)
    total = float(shares @ mean_x)
    if total <= 0:
        return NOTHING
    value = float(shares @ mean_y) / total
    rest = y - value * x
    mean = np.bincount(sample.stratum, rest, minlength=len(shares)) / np.maximum(points, 1)
    squares = np.bincount(sample.stratum, (rest - mean[sample.stratum]) ** 2, minlength=len(shares))
    told = (mean_x > 0) | (mean_y > 0)
    if (points[told] < 2).any():  # a single point says nothing of its stratum's variance
        return Estimate(value=value, error=None, low=None, high=None)
    population = np.array([s.pixels for s in sample.strata], np.float64)
    left = np.clip(1 - points / np.maximum(population, 1), 0, 1)
    variance = float(np.sum(shares**2 * left * squares / np.maximum(points - 1, 1) / np.maximum(points, 1)))
    error = math.sqrt(variance) / total
    if error < _ROUNDING and left[told].any():
        if (
            0 < value < 1
        ):  # every stratum agrees with itself: the sample shows no spread, which is not to say there is none
            return Estimate(value=value, error=None, low=None, high=None)
        low, high = _exact(int(np.count_nonzero(x)), value > 0.5)
        return Estimate(value=value, error=0.0, low=low, high=high, exact=True)
    return Estimate(value=value, error=error, low=max(0.0, value - Z95 * error), high=min(1.0, value + Z95 * error))


def _exact(points: int, all_right: bool) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of `points` that all agree."""
    far = 0.025 ** (1 / max(points, 1))
    return (far, 1.0) if all_right else (0.0, 1 - far)


@dataclass(frozen=True, kw_only=True)
class ClassEstimates:
    """Figures of one class."""

    user: Estimate
    """Share of the class on the map that is right."""
    producer: Estimate
    """Share of the class in the reference that the map has."""
    f1: Estimate
    iou: Estimate
    share: Estimate
    """Share of the area by the reference."""


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Everything that a sample tells."""

    overall: Estimate
    classes: tuple[ClassEstimates, ...]
    matrix: NDArray[np.float64]
    """Shares of the area `(mapped, reference)`; they add up to 1."""
    counts: NDArray[np.int64]
    """Points `(mapped, reference)`."""


def estimate(sample: Sample, classes: int) -> Estimates:
    """Estimate accuracy and area.

    Args:
        sample: The points.
        classes: How many classes are assessed.
    """
    one = np.ones(len(sample.stratum))
    found = []
    for index in range(classes):
        mapped, reference = sample.mapped == index, sample.reference == index
        both = mapped & reference
        found.append(
            ClassEstimates(
                user=ratio(sample, both, mapped.astype(np.float64)),
                producer=ratio(sample, both, reference.astype(np.float64)),
                f1=ratio(sample, 2.0 * both, mapped.astype(np.float64) + reference),
                iou=ratio(sample, both, (mapped | reference).astype(np.float64)),
                share=ratio(sample, reference, one),
            )
        )
    place = sample.mapped * classes + sample.reference
    return Estimates(
        overall=ratio(sample, sample.mapped == sample.reference, one),
        classes=tuple(found),
        matrix=np.asarray(np.bincount(place, sample.weights, minlength=classes**2), np.float64).reshape(
            classes, classes
        ),
        counts=np.bincount(place, minlength=classes**2).reshape(classes, classes),
    )


def exact(matrix: NDArray[np.float64]) -> Estimates:
    """Return the figures of a matrix `(mapped, reference)` of areas that cover the map: values without intervals."""
    total = float(matrix.sum())
    right, rows, cols = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)

    def share(above: float, below: float) -> Estimate:
        return NOTHING if below <= 0 else Estimate(value=float(above / below), error=None, low=None, high=None)

    return Estimates(
        overall=share(right.sum(), total),
        classes=tuple(
            ClassEstimates(
                user=share(right[i], rows[i]),
                producer=share(right[i], cols[i]),
                f1=share(2 * right[i], rows[i] + cols[i]),
                iou=share(right[i], rows[i] + cols[i] - right[i]),
                share=share(cols[i], total),
            )
            for i in range(len(matrix))
        ),
        matrix=matrix / total if total > 0 else matrix,
        counts=np.zeros(matrix.shape, np.int64),
    )
