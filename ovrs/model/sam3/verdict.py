"""What the probe says of prior spaces, as it lies in a JSON file and in a run's adaptation."""

from __future__ import annotations

from typing import TypedDict


class Identity(TypedDict):
    """What a verdict holds for."""

    weights: str
    """SHA-256 of SAM 3's weights."""
    layer: int
    preset: str
    prior_model: str
    classes: list[str]
    """Names of the classes that were prompted."""


class Judged(TypedDict):
    """One space."""

    space: str
    auc: float
    """Mean area under the ROC curve, 0..1."""
    pairs: int
    """Confident masks that were compared."""
    collapse: float
    """Share of the images on which one class took every pixel, 0..1."""
    passed: bool


class Verdict(Identity):
    """Agreement of prior spaces with SAM 3's own masks; not accuracy."""

    what: str
    images: int
    """Number of images."""
    limits: dict[str, float]
    spaces: list[Judged]
    accepted: str | None
    """Name of the space that may be used; None keeps the prior off."""
