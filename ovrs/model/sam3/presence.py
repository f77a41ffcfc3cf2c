"""How the presence of a phrase weighs its masks.

SAM 3's presence is trained on everyday pictures. On remote sensing it can be low where the mask is sure (a road with presence 0.08
and a mask logit of +10 has been reported), so it can be taken in other ways than the published product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

PER_INSTANCE = frozenset({"product", "instances"})
"""Modes in which the score of an instance is object score times presence, as published; in the others it is the object score."""
_EPS = 1e-4


def in_instances(presence: Tensor, mode: str) -> Tensor:
    """Return what object scores are multiplied with, `(b,)`: presence, or 1.

    Args:
        presence: Logits `(b,)`.
        mode: `Gated.presence`.
    """
    return presence.sigmoid() if mode in PER_INSTANCE else torch.ones_like(presence)


def weighted(masks: Tensor, presence: Tensor, mode: str, gate: float) -> Tensor:
    """Probabilities of phrases `(b, H, W)` after their presence has been taken into account.

    Args:
        masks: Probabilities `(b, H, W)`.
        presence: Logits `(b,)`.
        mode: `product` p · m; `gate` m where p reaches the gate, else 0; `logit` sigmoid(logit m + z); `instances` and
            `none` m.
        gate: Of mode `gate`, a probability.
    """
    here = presence.sigmoid()[:, None, None]
    if mode == "product":
        return masks * here
    if mode == "gate":
        return masks * (here >= gate)
    if mode == "logit":
        return (masks.clamp(_EPS, 1 - _EPS).logit() + presence[:, None, None]).sigmoid()
    return masks
