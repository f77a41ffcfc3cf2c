"""From blended scores to labels and confidence: once per pixel, in the block that owns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE, label_dtype, label_nodata
from ovrs.engine.arrays import Array, as_numpy, namespace, on_host

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
    scores: Array, valid: NDArray[np.bool_], rule: DecisionRule, background_evidence: Array | None = None
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
    """Labels `(y, x)` and confidence uint8 `(y, x)` (0..200 = 0..1, 255 = no data) in NumPy, as `decided`."""
    labels, confidence = (as_numpy(a) for a in decided(scores, rule, background_evidence))
    labels = labels.astype(label_dtype(scores.shape[0]), copy=False)
    if not valid.all():
        labels[~valid] = label_nodata(scores.shape[0])
        confidence[~valid] = CONFIDENCE_NODATA
    return labels, confidence


def decided(scores: Array, rule: DecisionRule, background_evidence: Array | None = None) -> tuple[Array, Array]:
    """Labels `(y, x)` and confidence uint8 `(y, x)` (0..200 = 0..1) from scores `(class, y, x)`, valid pixels or not.

    A tie goes to the lower class index. The confidence of a pixel that fell to background is that of the class it
    would have had. What lies on the host is decided in NumPy; on a device, labels stay there, above 254 classes as int32.
    """
    if on_host(scores):
        background = None if background_evidence is None else as_numpy(background_evidence)
        return _on_host(as_numpy(scores), rule, background)
    xp = namespace(scores)
    best = xp.max(scores, axis=0)
    labels = xp.astype(xp.argmax(scores, axis=0), xp.uint8 if scores.shape[0] <= 254 else xp.int32)
    if rule.background is not None:
        low = best < rule.threshold
        if background_evidence is not None:
            low |= background_evidence > best
        # not by a mask: a device would have to be waited for
        labels = xp.where(low, xp.full_like(labels, rule.background), labels)
    return labels, quantised(best)


def quantised(scores: Array) -> Array:
    """uint8: round(200 · score), scores outside 0..1 at the nearer end."""
    xp = namespace(scores)
    return xp.astype(xp.round(xp.clip(scores, 0.0, 1.0) * CONFIDENCE_SCALE), xp.uint8)


def _on_host(
    scores: NDArray[np.float32], rule: DecisionRule, background_evidence: NDArray[np.float32] | None
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
    best, labels = highest(scores)
    if rule.background is not None:
        low = best < rule.threshold
        if background_evidence is not None:
            low |= background_evidence > best
        labels[low] = rule.background
    if rule.shares:
        best /= np.maximum(scores.sum(axis=0), np.finfo(np.float32).tiny)
    np.clip(best, 0, 1, out=best)
    best *= CONFIDENCE_SCALE
    return labels, np.rint(best, out=best).astype(np.uint8)


_GROUPS = 6
"""Classes are compared in so many groups at once: fewer, longer steps."""


def highest(scores: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.unsignedinteger]]:
    """Return the highest score of each pixel and the first class that has it.

    Many times faster than argmax over the leading axis: a later class has the greater number, so a maximum sets it.
    """
    classes, kind = scores.shape[0], label_dtype(scores.shape[0])
    groups = _GROUPS if classes >= 2 * _GROUPS else 1
    size = classes // groups
    members = scores[: groups * size].reshape(groups, size, *scores.shape[1:])
    best = members[:, 0].copy()
    labels, higher, number = np.zeros(best.shape, kind), np.empty(best.shape, np.bool_), np.empty(best.shape, kind)

    def rise(to: int | slice, values: NDArray[np.float32], label: Any) -> None:
        np.greater(values, best[to], out=higher[to])
        np.multiply(higher[to].view(np.uint8), label, out=number[to])
        np.maximum(labels[to], number[to], out=labels[to])
        np.maximum(best[to], values, out=best[to])

    for index in range(1, size):
        rise(slice(None), members[:, index], kind.type(index))
    for group in range(1, groups):
        rise(0, best[group], np.add(labels[group], kind.type(group * size), out=labels[group]))
    for index in range(groups * size, classes):
        rise(0, scores[index], kind.type(index))
    return best[0], labels[0]
