"""From query logits to class scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.text import TextBank


def class_scores(logits: Tensor, bank: TextBank, scale: float, aggregate: Literal["max", "mean"] = "max") -> Tensor:
    """Class scores from logits without temperature.

    Softmax over *all* queries, then one value per class: on probabilities, not on logits, and the maximum rather than
    the sum (`methods` 1.5).

    Args:
        logits: `(M, …)`.
        bank: Names each query's class.
        scale: Inverse temperature s.
        aggregate: How the queries of a class are joined.

    Returns:
        `(C, …)` in 0..1; with `max` they do not sum to one.
    """
    return join_queries((scale * logits).softmax(dim=0), bank, aggregate)


def join_queries(values: Tensor, bank: TextBank, aggregate: Literal["max", "mean"]) -> Tensor:
    """`(M, …)` to `(C, …)`: maximum or mean over each class's consecutive queries."""
    counts = torch.bincount(bank.class_of, minlength=bank.class_count).tolist()
    groups = values.split(counts, dim=0)
    return torch.stack([g.amax(dim=0) if aggregate == "max" else g.mean(dim=0) for g in groups])


def entropy(probabilities: Tensor, dim: int = 0, floor: float = 1e-8) -> Tensor:
    """−Σ p log p along `dim`, in nats."""
    return -(probabilities * probabilities.clamp(min=floor).log()).sum(dim=dim)
