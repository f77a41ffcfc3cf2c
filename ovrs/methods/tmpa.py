"""TMPA: the text is moved toward what the pixels show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ovrs.methods.base import Fixed, Method, Only, SceneSettings
from ovrs.methods.clip import Clip

_DESCENT = Only("bias", ("learned",))


class Descent(Clip, SceneSettings):
    """What the descent on α can be told."""

    steps: Annotated[int, _DESCENT] = Field(default=3, ge=0, le=1000)
    """Optimisation steps per tile; 0 keeps the initial visual bias."""
    alpha_init: Annotated[float, _DESCENT] = Field(default=0.02, ge=0, le=1)
    """Visual bias to start from."""
    alpha_max: Annotated[float, _DESCENT] = Field(default=0.5, gt=0, le=1)
    """Upper bound of the visual bias."""
    absent: Annotated[Literal["text", "mean"], _DESCENT] = "text"
    """What a class without prototype moves toward: nothing (the paper), or the mean of the valid patches. A prototype
    lies nearer to every patch than any text does, so a class that has one gains everywhere on a class that has none;
    the mean patch gives the latter the same gain."""
    keep_shares: Annotated[float, _DESCENT] = Field(default=0.0, ge=0)
    """Weight of the divergence of the tile's class shares from those before adaptation. Entropy alone also falls when
    frequent classes grow at the cost of rare ones; this makes it fall by surer patches instead. 0 is the paper's loss."""
    lr: Annotated[float, _DESCENT] = Field(default=1e-2, gt=0)
    """Learning rate of α."""
    anchors: Annotated[int, _DESCENT] = Field(default=3, ge=1)
    """Prototype patches per class and 14 × 14 patches."""


class Tmpa(Descent):
    """TMPA, by entropy or by descent."""

    method: Literal["tmpa"] = "tmpa"
    """Text calibrated by visual prototypes."""
    adaptation: Literal["tile", "scene"] = "scene"
    """Calibrate the text for each tile, as in the paper, or once for the scene from a sample of its tiles."""
    bias: Literal["entropy", "learned"] = "entropy"
    """How far the text moves. `entropy`: by how unsure the text is of the scene, nothing is learned; `learned`: the paper's
    α, by descent. The default is learned for `adaptation` tile and where options of the descent are given."""

    @classmethod
    def implied(cls, told: Mapping[str, Any], recommended: Mapping[str, Any]) -> dict[str, object]:
        """Tiles, and options of the descent, ask for the learned bias."""
        descent = any(_DESCENT in cls.model_fields[name].metadata for name in told)
        learned = descent or told.get("adaptation") == "tile"
        return {**super().implied(told, recommended), "bias": "learned" if learned else "entropy"}


class TmpaShift(Descent):
    """TMPA with a shift."""

    method: Literal["tmpa_shift"] = "tmpa_shift"
    """TMPA with a learned shift per query."""
    lr_shift: float = Field(default=1e-4, gt=0)
    """Learning rate of δ."""


class TmpaCompat(Clip):
    """TMPA as released."""

    method: Literal["tmpa_compat"] = "tmpa_compat"
    """TMPA exactly as released."""
    steps: int = Field(default=3, ge=0, le=1000)
    """Optimisation steps per tile."""
    alpha_init: float = Field(default=0.02, ge=0, le=1)
    """Visual bias to start from."""
    lr_shift: float = Field(default=1e-4, gt=0)
    """Learning rate of α and δ; the released code has a value per data set."""

    @classmethod
    def implied(cls, told: Mapping[str, Any], recommended: Mapping[str, Any]) -> dict[str, object]:
        """Start and words are the released ones, whatever a model recommends."""
        return {**super().implied(told, recommended), "alpha_init": 0.02, "split_names": False}


_RELEASED = "repeats the released code, which has no wider windows"
TMPA = Method(
    what="text calibrated by visual prototypes (α), for each tile or for the scene",
    source="TMPA, CVPR 2026",
    proof="equations",
    settings=Tmpa,
    build="ovrs.model.adapt.tmpa_segmenters:segmenter",
)
TMPA_SHIFT = Method(
    what="tmpa with a learned shift per query (α and δ)",
    source="TMPA, released code",
    proof="equations",
    settings=TmpaShift,
    build="ovrs.model.adapt.tmpa_segmenters:segmenter",
)
TMPA_COMPAT = Method(
    what="TMPA exactly as released",
    source="dawndaa/TMPA@660b5b2",
    proof="golden",
    settings=TmpaCompat,
    build="ovrs.model.adapt.tmpa_compat:segmenter",
    fixed={
        "crop_blend": Fixed(value="mean", why="repeats the released code, which averages crops alike"),
        "wide": Fixed(value=(), why=_RELEASED),
        "turned": Fixed(value=False, why=_RELEASED),
    },
)
