"""From query logits to class scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.text import TextBank


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
    return join_queries(scaled.softmax(dim=0), bank, max_share)


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
