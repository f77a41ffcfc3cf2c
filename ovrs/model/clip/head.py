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
    return _of_scaled(scale * logits, bank, max_share)


def _of_scaled(scaled: Tensor, bank: TextBank, max_share: float) -> Tensor:
    """`class_scores` of logits times the inverse temperature, which are written over unless a gradient needs them."""
    if bank.offsets is not None:
        scaled = scaled + bank.offsets.to(scaled).view(-1, *[1] * (scaled.ndim - 1))
    if max_share == 1:  # the exponential keeps the order, so a class's maximum is that of its logits: one pass less
        highest = join_queries(scaled, bank)
        best = highest.amax(dim=0)
        joined = (highest - best).exp()
        return joined / _odds(scaled, best).sum(dim=0)  # softmax, but one division a class
    odds = _odds(scaled, scaled.amax(dim=0))
    return join_queries(odds, bank, max_share) / odds.sum(dim=0)


def _odds(scaled: Tensor, best: Tensor) -> Tensor:
    return (scaled - best).exp() if scaled.requires_grad else scaled.sub_(best).exp_()


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
    return torch.cat([_of_scaled(t * (scale / w), bank, max_share) for t, w in pairs], dim=1)


def join_queries(values: Tensor, bank: TextBank, max_share: float = 1.0) -> Tensor:
    """`(M, …)` to `(C, …)`: w · maximum + (1 - w) · mean over each class's consecutive queries, w = `max_share`."""
    counts = bank.counts
    if len(set(counts)) == 1:
        return _joined(values.unflatten(0, (len(counts), counts[0])), 1, max_share)
    return torch.stack([_joined(group, 0, max_share) for group in values.split(counts, dim=0)])


def _joined(values: Tensor, dim: int, max_share: float) -> Tensor:
    """`join_queries` along one axis."""
    if values.shape[dim] == 1:
        return values.squeeze(dim)
    if max_share == 1:
        return values.amax(dim=dim)
    if max_share == 0:
        return values.mean(dim=dim)
    return max_share * values.amax(dim=dim) + (1 - max_share) * values.mean(dim=dim)


def entropy(probabilities: Tensor, dim: int = 0, floor: float = 1e-8) -> Tensor:
    """−Σ p log p along `dim`, in nats."""
    return -(probabilities * probabilities.clamp(min=floor).log()).sum(dim=dim)
