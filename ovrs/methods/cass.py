"""CASS's text step; its features are the dense variant of the same name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ovrs.methods.base import Method, Need
from ovrs.methods.clip import Clip


class Cass(Clip):
    """CASS's text step; the paper has values per data set (0.02 to 0.14, 0.01 to 0.05), none for remote sensing."""

    method: Literal["cass"] = "cass"
    """Some class vectors moved toward patches of each crop."""
    cluster_height: float = Field(default=0.06, gt=0)
    """Where the tree of class names is cut."""
    amount: float = Field(default=0.03, ge=0, le=1)
    """How far a class moves toward the image."""


CASS = Method(
    what="some class vectors moved toward patches of each crop",
    source="arXiv 2411.17150",
    proof="equations",
    settings=Cass,
    build="ovrs.model.adapt.cass:segmenter",
    needs=(Need(field="dense", values=("cass",), why="compares with an image embedding"),),
)
