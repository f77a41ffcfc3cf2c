"""What every method on CLIP's features can be told: which words are asked for, and how features become scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from ovrs.methods.base import AbsolutePath, Fixed, Method, Need, Only, Settings

DenseVariant = Literal[
    "vanilla",
    "maskclip",
    "sclip",
    "clearclip",
    "naclip",
    "naclip_residual",
    "naclip_kk",
    "naclip_nonly",
    "naclip_vanilla",
    "segearth",
    "gem",
    "proxyclip",
    "cass",
]
DENSE_VARIANTS: tuple[DenseVariant, ...] = get_args(DenseVariant)
EXTERNAL_VARIANTS: tuple[DenseVariant, ...] = ("proxyclip", "cass")
"""Dense variants that need a second network."""
LAST_BLOCK_VARIANTS = tuple(v for v in DENSE_VARIANTS if v not in ("gem", *EXTERNAL_VARIANTS))
"""Dense variants that change the last block alone."""
Upsampling = Literal["bilinear", "jbu_one", "jbu_stack"]

_SECOND = Only("dense", EXTERNAL_VARIANTS)
_JBU = Only("upsampler", ("jbu_one", "jbu_stack"))
_CASS_GLOBAL = 0.3
"""γ of CASS: logits are (1 - γ) · patch + γ · image; the paper uses 0.1 to 0.4."""


class Text(Settings):
    """What of a vocabulary is asked for."""

    prompts: Literal["all", "names", "synonyms"] = "all"
    """What of the vocabulary is asked for: names, names and synonyms, or all with the descriptions."""
    bare: bool = False
    """Ask for the bare words, without CLIP's 80 templates (not for methods with templates of their own)."""
    split_names: bool = False
    """Ask for a class name that lists things, "trees, grass and crops", also thing by thing."""
    prefix: bool = True
    """Put the class's name before each of its descriptions, as TMPA's prompt files do."""


class Head(Settings):
    """How features and text become scores."""

    APART: ClassVar[Mapping[str, str]] = {
        **Settings.APART,
        "proxy_weights": "the weights in the file enter",
        "upsampler_weights": "the weights in the file enter",
        "shares": "the rule of decision enters",
    }

    dense: DenseVariant = "segearth"
    """Variant of the last block, see `ovrs methods`."""
    proxy_model: Annotated[str, _SECOND] = "vit_base_patch8_224.dino"
    """`proxyclip` and `cass`: a timm ViT."""
    proxy_weights: Annotated[AbsolutePath, _SECOND] = None
    """`proxyclip` and `cass`: a local checkpoint of it; without one, timm fetches the published weights."""
    upsampler: Upsampling = "bilinear"
    """How features are brought to the resolution of pixels."""
    upsampler_rank: Annotated[int, _JBU] = Field(default=64, ge=0)
    """Joint bilateral upsamplers: dimensions in which the lengths of pixel features are measured; 0 takes all (exact)."""
    upsampler_weights: Annotated[AbsolutePath, _JBU] = None
    """Weights of a joint bilateral upsampler. Without a file, those beside the model's own weights."""
    cls_weight: float = Field(default=-0.3, ge=-2, le=2)
    """SegEarth-OV's λ: weight of the global token's logits. With `dense` cass the default is 0.43."""
    logit_scale: float = Field(default=50.0, gt=0)
    """Inverse temperature s."""
    aggregate: Literal["max", "mean", "mixed"] = "max"
    """How the queries of a class are joined."""
    aggregate_weight: Annotated[float, Only("aggregate", ("mixed",))] = Field(default=0.8, ge=0, le=1)
    """`aggregate` mixed: share of the maximum, the rest is the mean."""
    balance: bool = False
    """Take the logarithm of a class's number of queries off its logits."""
    shares: bool = False
    """Tell confidence as the winner's share of all classes' scores, divided after the threshold (NACLIP)."""
    pamr: int = Field(default=0, ge=0, le=100)
    """Steps of pixel-adaptive refinement of each tile's scores; NACLIP and CASS use 10."""
    area_threshold: float = Field(default=0.0, ge=0, le=1)
    """Share of a tile's foreground below which a class is dropped from it (SCLIP)."""
    crop_blend: Literal["taper", "mean"] = "taper"
    """How overlapping crops are averaged: by a weight that falls towards a crop's border, or all alike as in the papers
    (crops then show as boxes)."""

    @classmethod
    def implied(cls, told: Mapping[str, Any], recommended: Mapping[str, Any]) -> dict[str, object]:
        """CASS's features bring the paper's weight of the global token."""
        if {**recommended, **told}.get("dense") != "cass":
            return {}
        return {"cls_weight": _CASS_GLOBAL / (1 - _CASS_GLOBAL)}

    @property
    def scale(self) -> float:
        """`logit_scale`, as the equations call it."""
        return self.logit_scale

    @property
    def max_share(self) -> float:
        """How the queries of a class are joined: w · maximum + (1 - w) · mean."""
        return {"max": 1.0, "mean": 0.0, "mixed": self.aggregate_weight}[self.aggregate]


class Clip(Text, Head):
    """What every method of CLIP can be told."""


class FrozenClip(Clip):
    """Frozen dense CLIP."""

    method: Literal["none"] = "none"
    """Frozen dense CLIP, no adaptation."""


FROZEN = Method(
    what="frozen dense CLIP, no adaptation",
    source="-",
    proof="golden",
    settings=FrozenClip,
    build="ovrs.model.clip.segmenter:segmenter",
)
NO_GLOBAL_TERM = Fixed(value=0.0, why="has no global term")
OWN_TEMPLATES = Fixed(value=False, why="has templates of its own")
LAST_BLOCK = Need(field="dense", values=LAST_BLOCK_VARIANTS, why="tunes LayerNorms through the last block")
