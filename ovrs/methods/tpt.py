"""TPT: the prompt's context is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ovrs.methods.base import Method
from ovrs.methods.clip import OWN_TEMPLATES, Clip


class Tpt(Clip):
    """TPT; the defaults are as published."""

    method: Literal["tpt"] = "tpt"
    """Context vectors of the prompt by patch entropy."""
    cls_weight: float = Field(default=0.0, ge=-2, le=2)
    """SegEarth-OV's λ: weight of the global token's logits; the published method has no global term."""
    steps: int = Field(default=10, ge=0, le=1000)
    """Optimisation steps per tile."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the context."""

    @classmethod
    def implied(cls, told: Mapping[str, Any], recommended: Mapping[str, Any]) -> dict[str, object]:  # noqa: ARG003
        """Set the weight of the global term to 0: a recommended one is meant for methods with such a term."""
        return {"cls_weight": 0.0}


TPT = Method(
    what="context vectors of the prompt by patch entropy",
    source="arXiv 2209.07511 in MLMP's code",
    proof="golden",
    settings=Tpt,
    build="ovrs.model.adapt.tpt:segmenter",
    fixed={"bare": OWN_TEMPLATES},
)
