"""A reference brought to the pixels of a map."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ovrs.assess.estimators import Sample
    from ovrs.assess.names import Legend

OPTION = "--reference"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Pairs of classes, one for each point or for each kind of pixel; arrays `(n,)`."""

    legend: Legend
    mapped: NDArray[np.int64]
    """Class of the map."""
    reference: NDArray[np.int64]
    """Class of the reference."""
    confidence: NDArray[np.float64]
    """Stored confidence, 0..1; NaN where the map has no data."""
    weight: NDArray[np.float64]
    """Area that each entry stands for: shares of the map for points, square metres for pixels."""
    kind: str
    """`points`, `polygons` or `raster`."""
    sample: Sample | None = None
    """The design, where the points are a probability sample."""
    remarks: list[str] = field(default_factory=list)
    """What a reader should know of the reference."""
