"""What `--method` and `--dense` may name: one line each, for the command line, the checks and the documentation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One method or dense variant."""

    name: str
    what: str
    reference: str
    status: str
    """How its correctness is known: `golden` (arrays of the authors' code), `equations` (own derivation and property
    tests), or `own`."""


METHODS = (
    Entry("none", "frozen dense CLIP, no adaptation", "-", "golden"),
    Entry("tmpa", "text calibrated to each tile by visual prototypes (α)", "TMPA, CVPR 2026", "equations"),
    Entry("tmpa_shift", "tmpa with a learned shift per query (α and δ)", "TMPA, released code", "equations"),
    Entry("tmpa_compat", "TMPA exactly as released", "dawndaa/TMPA@660b5b2", "golden"),
    Entry("tent", "LayerNorms by patch entropy, one prompt, last layer", "arXiv 2006.10726 in MLMP's code", "golden"),
    Entry("mlmp", "LayerNorms by entropy over layers and prompts", "arXiv 2505.21844", "golden"),
    Entry("tpt", "context vectors of the prompt by patch entropy", "arXiv 2209.07511 in MLMP's code", "golden"),
    Entry("clipartt", "LayerNorms by agreement with joined class prompts", "arXiv 2405.00754", "equations"),
    Entry("clipartt_compat", "clipartt with the released layout of axes", "dosowiechi/MLMP@2a887de", "golden"),
    Entry("watt", "LayerNorms averaged over templates", "arXiv 2406.13875", "equations"),
    Entry("watt_compat", "watt with the released layout of axes", "dosowiechi/MLMP@2a887de", "golden"),
    Entry("cass", "some class vectors moved toward patches of each crop", "arXiv 2411.17150", "equations"),
)
SAM3_METHODS = (
    Entry("sam3", "argmax of SAM 3's class-wide masks", "arXiv 2511.16719", "equations"),
    Entry("segearth_ov3", "semantic and instance masks fused, gated by presence", "arXiv 2512.08730", "equations"),
    Entry("coco_sam3", "mask evidence with a semantic prior, synonyms and presence", "arXiv 2604.19648", "equations"),
)
SAM3_METHOD_NAMES = tuple(entry.name for entry in SAM3_METHODS)
DENSE = (
    Entry("segearth", "q-q + k-k + v-v, no skip connection", "arXiv 2410.01768", "golden"),
    Entry("vanilla", "unchanged CLIP", "arXiv 2103.00020", "golden"),
    Entry("maskclip", "own value only", "arXiv 2112.01071", "golden"),
    Entry("sclip", "q-q + k-k", "arXiv 2312.01597", "golden"),
    Entry("clearclip", "q-q, no skip connection", "arXiv 2407.12442", "golden"),
    Entry("naclip", "k-k with a Gaussian neighbourhood, no skip connection", "arXiv 2404.08181", "golden"),
    Entry("naclip_residual", "naclip with skip connection and feed-forward", "NACLIP's ablation", "golden"),
    Entry("naclip_kk", "naclip without the neighbourhood", "NACLIP's ablation", "golden"),
    Entry("naclip_nonly", "the neighbourhood alone", "NACLIP's ablation", "golden"),
    Entry("naclip_vanilla", "q-k, no skip connection", "NACLIP's ablation", "golden"),
    Entry("gem", "self-self attention in the last half of the blocks", "arXiv 2312.00878", "golden"),
    Entry("proxyclip", "values mixed by another network's features", "arXiv 2408.04883", "golden"),
    Entry("cass", "attention fused with another network's", "arXiv 2411.17150", "equations"),
)
METHOD_NAMES = tuple(entry.name for entry in METHODS)
NORM_METHODS = frozenset({"tent", "mlmp", "clipartt", "clipartt_compat", "watt", "watt_compat"})
"""Methods that tune the vision tower's LayerNorms: they need a dense variant that changes the last block alone."""
