"""ConInfer: patches of many windows classified together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ovrs.methods.base import Fixed, Method, SceneSettings
from ovrs.methods.clip import Clip, Upsampling


class ConInfer(Clip, SceneSettings):
    """ConInfer; the defaults are the paper's."""

    method: Literal["coninfer"] = "coninfer"
    """Patches of many windows classified together, by text and by one Gaussian per query."""
    adaptation: Literal["tile", "scene"] = "scene"
    """Fit the Gaussians to the windows of each tile, or once to a sample of the scene's tiles."""
    upsampler: Upsampling = "bilinear"
    """How features are brought to the resolution of pixels."""
    logit_scale: float = Field(default=100.0, gt=0)
    """Inverse temperature of the cosines in the prior."""
    gaussian_tau: float = Field(default=50.0, gt=0)
    """Temperature τ of the likelihood: larger values trust the text more."""
    rounds: int = Field(default=10, ge=0, le=1000)
    """How often the Gaussians are refitted."""
    confident: int = Field(default=8, ge=1)
    """Patches of each query that its Gaussian starts from."""
    joint_scale: float = Field(default=5.0, gt=0)
    """Scores are softmax over queries of so many times the joined probability."""


CONINFER = Method(
    what="patches of many windows classified together, by text and by one Gaussian per query",
    source="arXiv 2603.29271",
    proof="equations",
    settings=ConInfer,
    build="ovrs.model.adapt.coninfer_segmenters:segmenter",
    fixed={"upsampler": Fixed(value="bilinear", why="classifies patches, not pixels")},
)
