"""Agreement of labels with ground truth: one confusion matrix over a whole data set (`docs/methods.md#agreement-with-ground-truth`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovrs.errors import GridMismatchError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORE = 255


@dataclass(frozen=True, eq=False)
class Confusion:
    """int64 `(label, prediction)` counts; the last column holds predictions of no data."""

    matrix: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int) -> Confusion:
        """Return counts of zero."""
        return cls(np.zeros((classes, classes + 1), np.int64))

    def add(self, prediction: NDArray[np.integer], label: NDArray[np.integer], ignore: int = IGNORE) -> Confusion:
        """Return a new confusion with one more image. Pixels labelled `ignore` are removed; predictions of no data count as wrong.

        Raises:
            GridMismatchError: Shapes differ. Labels are never resized.
        """
        if prediction.shape != label.shape:
            raise GridMismatchError(f"prediction {prediction.shape} and label {label.shape} differ in shape")
        classes = len(self.matrix)
        keep = label != ignore
        guess = np.minimum(prediction[keep].astype(np.int64), classes)
        counts = np.bincount(label[keep].astype(np.int64) * (classes + 1) + guess, minlength=classes * (classes + 1))
        return Confusion(self.matrix + counts.reshape(classes, classes + 1))

    def iou(self) -> NDArray[np.float64]:
        """Per class in 0..1; NaN where a class is neither labelled nor predicted."""
        square = self.matrix[:, :-1]
        hit = np.diag(square).astype(np.float64)
        union = self.matrix.sum(axis=1) + square.sum(axis=0) - hit
        return np.asarray(np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0))

    def miou(self) -> float:
        """Mean IoU in percent over the classes that occur."""
        values = self.iou()
        return float(100 * np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    def labelled_miou(self) -> float:
        """Mean IoU in percent over the classes that the labels hold.

        For small samples: with `miou` a class that is absent costs a whole share as soon as one pixel is called so.
        """
        held = self.matrix.sum(axis=1) > 0
        return float(100 * self.iou()[held].mean()) if held.any() else float("nan")

    def accuracy(self) -> float:
        """Share of labelled pixels that are right, in percent."""
        return float(100 * np.diag(self.matrix[:, :-1]).sum() / max(1, self.matrix.sum()))

    def majority_miou(self) -> float:
        """Return the mIoU in percent of a map that shows the most frequent labelled class everywhere."""
        labelled = self.matrix.sum(axis=1)
        constant = Confusion(np.zeros_like(self.matrix))
        constant.matrix[:, int(labelled.argmax())] = labelled
        return constant.miou()
