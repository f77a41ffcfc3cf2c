"""Where a run of `coco_sam3` departs from the equations of its paper (2604.19648), in words for the record and `ovrs info`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovrs.methods.sam3 import CocoSam3

LITERAL = "sam3/coco_literal"
"""The preset that is the paper's equations, literally."""


def of_run(settings: CocoSam3, weight: float) -> list[str]:
    """One line for each departure; empty where there is none.

    Args:
        settings: Of the run.
        weight: λ in force, which the probe may have put to 0.
    """
    found = []
    if weight == 0 and settings.prior_weight != 0:
        found.append(f"lambda is 0, not {settings.prior_weight:g}: no probe has accepted the prior's space")
    elif weight != 1:
        found.append(f"lambda is {weight:g}; the paper adds the prior with weight 1")
    if weight != 0 and settings.synonyms and settings.synonym_join == "mean":
        found.append("synonyms are joined by log-mean-exp; the paper's is log-sum-exp (the same for equal numbers)")
    if weight != 0 and settings.prior_space != "sam3":
        found.append(f"pixels and words are compared in the space {settings.prior_space}, not inside SAM 3")
    elif weight != 0 and settings.prior_preset != "literal":
        found.append("features and words are centred before they are compared; the paper takes the bare product")
    if settings.presence_weight != 1:
        found.append(f"presence has weight {settings.presence_weight:g}; the paper's is 1")
    if settings.structure_head != "both":
        found.append(f"mask evidence is the {settings.structure_head} head alone; the paper takes both")
    if settings.presence_rescue:
        found.append("tiles without any class present are judged by masks alone (presence_rescue)")
    return [*found, f"the paper literally: --preset {LITERAL}"] if found else []
