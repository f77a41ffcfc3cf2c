"""Methods that tune the LayerNorms of the vision tower: TENT, MLMP, CLIPArTT, WATT."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ovrs.methods.base import Method, Only
from ovrs.methods.clip import LAST_BLOCK, NO_GLOBAL_TERM, OWN_TEMPLATES, Clip

LAYER_SHARE = 0.75
"""MLMP: deepest share of the blocks that are fused, where their number is not given."""
_FIXED = {"cls_weight": NO_GLOBAL_TERM, "bare": OWN_TEMPLATES}


class Norms(Clip):
    """What all of them can be told."""

    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the LayerNorms."""


class Mlmp(Norms):
    """MLMP; the defaults are the paper's."""

    method: Literal["mlmp"] = "mlmp"
    """LayerNorms by entropy over layers and prompts."""
    steps: int = Field(default=10, ge=0, le=1000)
    """Optimisation steps per tile."""
    layers: int | None = Field(default=None, ge=1)
    """Number of deepest blocks that are fused; null takes three quarters of the network's blocks."""
    image_weight: float = Field(default=1.0, ge=0)
    """Weight of the image-level entropy (α_cls); 0 leaves it out."""
    beta: float = Field(default=1.0, ge=0)
    """Sharpness of the uncertainty weights at inference; 0 weighs all layers alike."""
    templates: Literal["separate", "mean", "weights", "single"] = "separate"
    """How the prompts are joined: `separate` takes the mean of their entropies, `mean` the entropy of their mean
    vector; `weights` adapts to each prompt alone and averages the LayerNorm parameters; `single` takes "a photo of a {}"
    alone."""
    template_count: Annotated[Literal[3, 7, 20, 80], Only("templates", ("separate", "mean", "weights"))] = 7
    """How many prompts; 20 and 80 come from CLIP's eighty."""

    def depths(self, blocks: int) -> tuple[int, ...]:
        """0-based indices of the fused blocks of a tower, ascending."""
        count = self.layers if self.layers is not None else round(LAYER_SHARE * blocks)
        return tuple(range(blocks - max(1, min(count, blocks)), blocks))


class Tent(Norms):
    """TENT in the segmentation form of MLMP's code."""

    method: Literal["tent"] = "tent"
    """LayerNorms by patch entropy, one prompt, last layer."""
    steps: int = Field(default=10, ge=0, le=1000)
    """Optimisation steps per tile."""

    def as_mlmp(self) -> Mlmp:
        """Return the special case of MLMP that TENT is: one layer, one prompt, no image-level term."""
        shared = self.model_dump(exclude={"method"})
        return Mlmp(**shared, layers=1, image_weight=0.0, templates="single")


class Pseudo(Norms):
    """What CLIPArTT and WATT can be told."""

    compat: ClassVar[bool] = False
    """The released layout: in each image, ranks of neighbouring patches share a prompt; a softmax runs over the patches of
    one image under as many texts as the batch has images (`ovrs.model.adapt.pseudo.released_rows`)."""


class Clipartt(Pseudo):
    """CLIPArTT; the defaults are those of the paper's segmentation form."""

    method: Literal["clipartt"] = "clipartt"
    """LayerNorms by agreement with joined class prompts."""
    steps: int = Field(default=10, ge=0, le=1000)
    """Optimisation steps per tile."""
    top: int = Field(default=3, ge=1)
    """Classes joined in a prompt."""


class ClipArttCompat(Clipartt):
    """CLIPArTT with the released layout of axes."""

    compat: ClassVar[bool] = True

    method: Literal["clipartt_compat"] = "clipartt_compat"  # type: ignore[assignment]
    """CLIPArTT with the released layout of axes."""


class Watt(Pseudo):
    """WATT; the defaults are those of the paper's segmentation form."""

    method: Literal["watt"] = "watt"
    """LayerNorms averaged over templates."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the LayerNorms."""
    inner_steps: int = Field(default=2, ge=1)
    """Steps per template (l)."""
    rounds: int = Field(default=5, ge=1)
    """Rounds over all templates (m)."""
    mode: Literal["sequential", "parallel"] = "sequential"
    """Whether a template starts from its predecessor's parameters or from the last round's mean."""


class WattCompat(Watt):
    """WATT with the released layout of axes."""

    compat: ClassVar[bool] = True

    method: Literal["watt_compat"] = "watt_compat"  # type: ignore[assignment]
    """WATT with the released layout of axes."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the LayerNorms."""


TENT = Method(
    what="LayerNorms by patch entropy, one prompt, last layer",
    source="arXiv 2006.10726 in MLMP's code",
    proof="golden",
    settings=Tent,
    build="ovrs.model.adapt.mlmp:segmenter",
    fixed=_FIXED,
    needs=(LAST_BLOCK,),
)
MLMP = Method(
    what="LayerNorms by entropy over layers and prompts",
    source="arXiv 2505.21844",
    proof="golden",
    settings=Mlmp,
    build="ovrs.model.adapt.mlmp:segmenter",
    fixed=_FIXED,
    needs=(LAST_BLOCK,),
)
CLIPARTT = Method(
    what="LayerNorms by agreement with joined class prompts",
    source="arXiv 2405.00754",
    proof="equations",
    settings=Clipartt,
    build="ovrs.model.adapt.pseudo:clipartt_segmenter",
    fixed=_FIXED,
    needs=(LAST_BLOCK,),
)
CLIPARTT_COMPAT = Method(
    what="clipartt with the released layout of axes",
    source="dosowiechi/MLMP@2a887de",
    proof="golden",
    settings=ClipArttCompat,
    build="ovrs.model.adapt.pseudo:clipartt_segmenter",
    fixed=_FIXED,
    needs=(LAST_BLOCK,),
)
WATT = Method(
    what="LayerNorms averaged over templates",
    source="arXiv 2406.13875",
    proof="equations",
    settings=Watt,
    build="ovrs.model.adapt.pseudo:watt_segmenter",
    fixed=_FIXED,
    needs=(LAST_BLOCK,),
)
WATT_COMPAT = Method(
    what="watt with the released layout of axes",
    source="dosowiechi/MLMP@2a887de",
    proof="golden",
    settings=WattCompat,
    build="ovrs.model.adapt.pseudo:watt_segmenter",
    fixed=_FIXED,
    needs=(LAST_BLOCK,),
)
