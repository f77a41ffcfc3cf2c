"""SAM 3's methods (`docs/sam3.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ovrs.methods.base import AbsolutePath, Method, Only, SceneSettings, Settings


class Masks(Settings):
    """What every method on SAM 3's masks can be told."""

    presence_floor: float | None = None
    """Phrases whose presence logit lies below it are not given masks (saves the mask decoder); null gives all masks."""
    background: Literal["threshold", "prompt"] = "threshold"
    """Whether the background class is only what stays below the threshold, or asked for too."""
    prompt_chunk: int | None = Field(default=None, ge=1)
    """Phrases grounded at a time; null takes 2 on a CPU, 4 on a GPU (halved when its memory is short)."""
    decode: Literal["all", "present"] = "all"
    """Decode every phrase, or only those that a pass over the window at two thirds of its size finds (ActiveSAM)."""
    present_floor: Annotated[float, Only("decode", ("present",))] = Field(default=0.01, ge=0, le=1)
    """`decode` present: phrases whose presence in that pass is lower count as absent."""


class Plain(Masks):
    """SAM 3 alone, asked for names."""

    method: Literal["sam3"] = "sam3"
    """Argmax of SAM 3's class-wide masks."""


class Phrased(Masks):
    """Settings of a method that asks for synonyms too."""

    structure_prompts: Literal["name", "all"] = "name"
    """Whether the detector is asked for synonyms too."""
    synonyms: int = Field(default=3, ge=0)
    """At most so many synonyms of a class; 0 is the paper's SEC row."""


class Gated(Phrased):
    """Settings of a method that weighs masks by the presence of their phrase."""

    presence: Literal["product", "gate", "logit", "instances", "none"] = "product"
    """How presence p weighs a phrase's mask: as published, times p; a hard gate at `presence_gate`; its logit added to the
    mask's; in the scores of instances alone; or not at all."""
    presence_gate: Annotated[float, Only("presence", ("gate",))] = Field(default=0.5, ge=0, le=1)
    """`presence` gate: phrases with less presence have no mask."""
    confidence: float = Field(default=0.3, ge=0, le=1)
    """Instances whose object score times presence is lower do not count."""
    windows: Literal["class", "phrase"] = "class"
    """Whether overlapping windows are averaged after the best phrase of a class is taken, or phrase by phrase before it, as
    published (memory grows with the phrases)."""


class SegearthOv3(Gated):
    """SegEarth-OV3: every phrase is asked for, and the background too."""

    method: Literal["segearth_ov3"] = "segearth_ov3"
    """Semantic and instance masks fused, gated by presence."""
    structure_prompts: Literal["name", "all"] = "all"
    """Whether the detector is asked for synonyms too."""
    background: Literal["threshold", "prompt"] = "prompt"
    """Whether the background class is only what stays below the threshold, or asked for too."""


class ProcSam3(Gated):
    """ProC-SAM3: a pool of phrases for each class, instances let in by presence, score and agreement."""

    method: Literal["proc_sam3"] = "proc_sam3"
    """Pools of phrases, and instances let in where they agree with the class-wide mask."""
    structure_prompts: Literal["name", "all"] = "all"
    """Whether the detector is asked for synonyms too."""
    synonyms: int = Field(default=9, ge=0)
    """At most so many phrases of a class beside its name."""
    background: Literal["threshold", "prompt"] = "prompt"
    """Whether the background class is only what stays below the threshold, or asked for too."""
    confidence: float = Field(default=0.4, ge=0, le=1)
    """Instances whose object score times presence is lower do not count."""
    windows: Literal["class", "phrase"] = "phrase"
    """Whether overlapping windows are averaged after the best phrase of a class is taken, or phrase by phrase before it."""


class CocoSam3(Phrased, SceneSettings):
    """CoCo-SAM3."""

    APART: ClassVar[Mapping[str, str]] = {
        **Settings.APART,
        "probe": "the weight that the verdict allows enters, with its reason",
        "alignment": "the arrays of the file enter",
        "prior_model": "the description of the loaded CLIP enters",
        "prior_pretrained": "as for prior_model",
    }

    method: Literal["coco_sam3"] = "coco_sam3"
    """Mask evidence with a semantic prior, synonyms and presence."""
    adaptation: Literal["tile", "scene"] = "tile"
    """`scene` probes the prior's space on a sample of the scene's tiles first."""
    structure_head: Literal["both", "semantic", "instance"] = "both"
    """Which masks are evidence."""
    score_floor: float = Field(default=0.3, ge=0, le=1)
    """Instances with a lower object score do not count."""
    presence_weight: float = Field(default=1.0, ge=0)
    """Weight of the presence logit."""
    presence_rescue: bool = False
    """On a tile where no class is present, judge background by the masks alone."""
    prior_space: Literal["none", "rs_clip", "sam3", "sam3_neck", "prototype", "aligned"] = "rs_clip"
    """Where pixels are compared with phrases."""
    prior_preset: Literal["stabilised", "literal"] = "stabilised"
    """Spaces inside SAM 3: with layer norm and centring, or the bare product."""
    prior_layer: int | None = Field(default=None, ge=0)
    """Block of the vision tower (from 0); null takes the last global layer but one (23)."""
    prior_weight: float = Field(default=1.0, ge=0)
    """λ. Used only when the space passed the probe."""
    prior_tau: float = Field(default=0.1, gt=0)
    """Temperature of the cosines when the phrases of a class are joined."""
    class_tau: float = Field(default=1.0, gt=0)
    """Temperature of the prior's softmax over classes."""
    synonym_join: Literal["mean", "sum"] = "mean"
    """How the phrases of a class are joined in the prior: with the paper's sum a class can win by having more of them."""
    prior_model: str = "bundled"
    """`rs_clip`: any CLIP that --model takes."""
    prior_pretrained: str | None = None
    """`rs_clip`: open_clip's tag of the weights, or a file that holds them."""
    require_probe: bool = True
    """Keep λ at 0 until a verdict accepts the space; false is for ablations."""
    probe: AbsolutePath = None
    """Verdict written by `ovrs sam3 probe`."""
    alignment: AbsolutePath = None
    """`aligned`: map written by `ovrs sam3 align`."""


SAM3 = Method(
    what="argmax of SAM 3's class-wide masks",
    source="arXiv 2511.16719",
    proof="equations",
    settings=Plain,
    build="ovrs.model.sam3.build:mask_segmenter",
    family="sam3",
)
SEGEARTH_OV3 = Method(
    what="semantic and instance masks fused, gated by presence",
    source="arXiv 2512.08730",
    proof="equations",
    settings=SegearthOv3,
    build="ovrs.model.sam3.build:mask_segmenter",
    family="sam3",
)
PROC_SAM3 = Method(
    what="pools of phrases, instances let in by presence and agreement",
    source="arXiv 2606.21863",
    proof="equations",
    settings=ProcSam3,
    build="ovrs.model.sam3.build:proc_segmenter",
    family="sam3",
)
COCO_SAM3 = Method(
    what="mask evidence with a semantic prior, synonyms and presence",
    source="arXiv 2604.19648",
    proof="equations",
    settings=CocoSam3,
    build="ovrs.model.sam3.build:coco_segmenter",
    family="sam3",
)
