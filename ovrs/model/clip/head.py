"""From query logits to class scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.text import TextBank


STRIP_BYTES = 1 << 20
"""Memory of a strip of rows that is worked on at once: it stays in a processor's cache."""


def class_scores(logits: Tensor, bank: TextBank, scale: float, max_share: float = 1.0) -> Tensor:
    """Class scores from logits without temperature.

    Softmax over *all* queries, then one value per class: on probabilities, not on logits, and the maximum rather than
    the sum (`docs/methods.md#windows-and-scores`).

    Args:
        logits: `(M, …)`.
        bank: Names each query's class.
        scale: Inverse temperature s.
        max_share: See `join_queries`.

    Returns:
        `(C, …)` in 0..1; they need not sum to one.
    """
    scaled = scale * logits
    if bank.offsets is not None:
        scaled = scaled + bank.offsets.to(scaled).view(-1, *[1] * (scaled.ndim - 1))
    odds = (scaled - scaled.amax(dim=0)).exp()
    return join_queries(odds, bank, max_share) / odds.sum(dim=0)  # softmax, but one division a class


def class_scores_of_sums(
    total: Tensor, weights: Tensor, bank: TextBank, scale: float, max_share: float = 1.0
) -> Tensor:
    """Class scores of a tile's weighted sums `(M, H, W)` and weights `(H, W)`, as `class_scores` of their quotient.

    On a processor a strip of rows at a time, which stays in its cache.
    """
    rows = total.shape[1]
    if total.device.type == "cpu":
        rows = max(1, STRIP_BYTES // (total.element_size() * total.shape[0] * total.shape[2]))
    pairs = zip(total.split(rows, dim=1), weights.split(rows), strict=True)
    return torch.cat([class_scores(t / w, bank, scale, max_share) for t, w in pairs], dim=1)


def join_queries(values: Tensor, bank: TextBank, max_share: float = 1.0) -> Tensor:
    """`(M, …)` to `(C, …)`: w · maximum + (1 - w) · mean over each class's consecutive queries, w = `max_share`."""
    joined = []
    for group in values.split(bank.counts, dim=0):
        if max_share == 1:
            joined.append(group.amax(dim=0))
        elif max_share == 0:
            joined.append(group.mean(dim=0))
        else:
            joined.append(max_share * group.amax(dim=0) + (1 - max_share) * group.mean(dim=0))
    return torch.stack(joined)


def entropy(probabilities: Tensor, dim: int = 0, floor: float = 1e-8) -> Tensor:
    """−Σ p log p along `dim`, in nats."""
    return -(probabilities * probabilities.clamp(min=floor).log()).sum(dim=dim)
