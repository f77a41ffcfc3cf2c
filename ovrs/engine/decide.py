"""From blended scores to labels and confidence: once per pixel, in the block that owns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE, label_dtype, label_nodata

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DecisionRule:
    """Background rule: where the best score stays below `threshold`, the pixel becomes class `background`."""

    background: int | None = None
    threshold: float = 0.0
    shares: bool = False
    """Confidence is the winner's share of all classes' scores, taken after the threshold (NACLIP)."""

    def facts(self) -> dict[str, float | None]:
        """For digest and record."""
        own: dict[str, float | None] = {"background": self.background, "threshold": self.threshold}
        return {**own, "shares": True} if self.shares else own


def decide(
    scores: NDArray[np.float32],
    valid: NDArray[np.bool_],
    rule: DecisionRule,
    background_evidence: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
    """Labels `(y, x)` and confidence uint8 `(y, x)` (0..200 = 0..1, 255 = no data) from scores `(class, y, x)`.

    A tie goes to the lower class index. The confidence of a pixel that fell to background is that of the class it
    would have had.
    """
    classes = scores.shape[0]
    best = scores[0].copy()
    labels = np.zeros(scores.shape[1:], label_dtype(classes))
    higher = np.empty(best.shape, np.bool_)
    for index in range(1, classes):  # many times faster than argmax over the leading axis or writing through a mask:
        np.greater(scores[index], best, out=higher)  # a later class has the greater number, so a maximum sets it
        np.maximum(labels, higher.view(np.uint8) * labels.dtype.type(index), out=labels)
        np.maximum(best, scores[index], out=best)
    if rule.background is not None:
        low = best < rule.threshold
        if background_evidence is not None:
            low |= background_evidence > best
        labels[low] = rule.background
    if rule.shares:
        best /= np.maximum(scores.sum(axis=0), np.finfo(np.float32).tiny)
    np.clip(best, 0, 1, out=best)
    best *= CONFIDENCE_SCALE
    confidence = np.rint(best, out=best).astype(np.uint8)
    if not valid.all():
        labels[~valid] = label_nodata(classes)
        confidence[~valid] = CONFIDENCE_NODATA
    return labels, confidence
