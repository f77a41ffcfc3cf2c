"""From the detector's masks to class scores: SAM 3 plain, SegEarth-OV3's and ProC-SAM3's fusion, CoCo-SAM3's calibration.

Evidence: `sam3` sigmoid(semantic); `segearth_ov3` arXiv 2512.08730 and `proc_sam3` 2606.21863, rules as in their code;
`coco_sam3` arXiv 2604.19648.
Where the papers are silent the choice is ours and marked so in `docs/sam3.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ovrs.model.sam3.presence import in_instances, weighted

if TYPE_CHECKING:
    from ovrs.model.sam3.backend import Detection

EPS = 1e-4
_LIMIT = float(torch.logit(torch.tensor(1 - EPS, dtype=torch.float64)))
"""Logits of mask evidence stay within ±9.21."""
RESCUE_BELOW = 0.05


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """`(n, h, w)` to `(n, H, W)`, bilinear."""
    return F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]


def plain(detection: Detection, size: tuple[int, int]) -> tuple[Tensor]:
    """`sam3`: probability of the class-wide mask `(b, H, W)`."""
    return (resize(detection.semantic, size).sigmoid(),)


def best_instances(detection: Detection, size: tuple[int, int], scores: Tensor, confidence: float) -> Tensor:
    """I: the largest score · mask of the instances whose score lies above `confidence`, `(b, H, W)`; 0 without any.

    Args:
        detection: A chunk's detection.
        size: Rows and columns to which masks are resized before the sigmoid.
        scores: `(b, q)`, 0 to 1.
        confidence: Instances with a lower score do not count.
    """
    out = []
    for masks, score in zip(detection.masks, scores, strict=True):
        best = masks.new_zeros(size)
        for query in torch.nonzero(score > confidence)[:, 0].tolist():  # one at a time: 200 large masks never coexist
            best = torch.maximum(best, resize(masks[query][None], size)[0].sigmoid() * score[query])
        out.append(best)
    return torch.stack(out)


def segearth(
    detection: Detection, size: tuple[int, int], confidence: float, mode: str = "product", gate: float = 0.5
) -> tuple[Tensor]:
    """`segearth_ov3`: presence · max(semantic, instances · their score · presence) `(b, H, W)`.

    Presence enters the gate, the weight of an instance and the total; masks are resized before the sigmoid. Other modes of
    presence: `ovrs.model.sam3.presence`.
    """
    scores = detection.objects.sigmoid() * in_instances(detection.presence, mode)[:, None]
    best = best_instances(detection, size, scores, confidence)
    masks = torch.maximum(resize(detection.semantic, size).sigmoid(), best)
    return (weighted(masks, detection.presence, mode, gate),)


def proc(
    detection: Detection, size: tuple[int, int], confidence: float, mode: str = "product", gate: float = 0.5
) -> tuple[Tensor]:
    """`proc_sam3`: presence · (S + k · D) `(b, H, W)`, with S the class-wide mask (2606.21863, equations as in its code).

    With p presence, r object scores and I the best instances of `segearth`: B = max(S, I), D = B - S, agreement
    A = 1 - |S - B|, and k = p · (p · the largest r of all instances) · A, clamped to 0..1.
    """
    semantic = resize(detection.semantic, size).sigmoid()
    here = in_instances(detection.presence, mode)
    scores = detection.objects.sigmoid() * here[:, None]
    best = torch.maximum(semantic, best_instances(detection, size, scores, confidence))
    gain = best - semantic
    let_in = ((here * scores.amax(dim=1))[:, None, None] * (1 - gain)).clamp(0, 1)
    masks = (semantic + let_in * gain).clamp(EPS, 1 - EPS)
    return (weighted(masks, detection.presence, mode, gate),)


def structure(detection: Detection, head: str, score_floor: float) -> tuple[Tensor, Tensor]:
    """CoCo-SAM3's mask evidence L `(b, h, w)` as logits, presence kept out of it, and presence z `(b,)`.

    Args:
        detection: A chunk's detection.
        head: `semantic`, `instance`, or `both` (their maximum).
        score_floor: Instances with a lower object score do not count.
    """
    parts = []
    if head != "instance":
        parts.append(detection.semantic.clamp(-_LIMIT, _LIMIT))
    if head != "semantic":
        score = detection.objects.sigmoid()
        score = torch.where(score >= score_floor, score, torch.zeros_like(score))
        instances = (detection.masks.sigmoid() * score[..., None, None]).amax(dim=1)
        parts.append(torch.logit(instances.clamp(EPS, 1 - EPS)))
    return (torch.stack(parts).amax(dim=0), detection.presence)


def join_rows(values: Tensor, class_of: Tensor, classes: int) -> Tensor:
    """Maximum over each class's phrases: `(R, …)` to `(C, …)`."""
    return torch.stack([values[class_of == c].amax(dim=0) for c in range(classes)])


def log_prior(cosines: list[Tensor], tau: float, *, join: str = "mean", class_tau: float = 1.0) -> Tensor:
    """Semantic prior log π `(C, h, w)`: each class's cosines `(m, h, w)` joined, then softmax over classes.

    Args:
        cosines: Of each class.
        tau: Temperature of the cosines in the join.
        join: `mean` keeps a class from winning by having more synonyms; `sum` is the paper's, and equal for equal numbers.
        class_tau: Temperature of the softmax over classes.
    """
    joined = torch.stack([torch.logsumexp(u / tau, dim=0) for u in cosines])
    if join == "mean":
        joined = joined - joined.new_tensor([len(u) for u in cosines]).log()[:, None, None]
    return (joined / class_tau).log_softmax(dim=0)


def fuse(evidence: Tensor, presence: Tensor, prior: Tensor | None, weight: float, presence_weight: float) -> Tensor:
    """S = L + λ · log π + w · z `(C, h, w)`; the prior is resized to the masks."""
    scores = evidence + presence_weight * presence[:, None, None]
    if prior is None or weight == 0:
        return scores
    return scores + weight * resize(prior, (evidence.shape[-2], evidence.shape[-1])).log_softmax(dim=0)


def coco_evidence(scores: Tensor, evidence: Tensor, presence: Tensor, size: tuple[int, int], *, rescue: bool) -> Tensor:
    """Return the arrays that are averaged over windows: S and the probability sigmoid(L) · sigmoid(z), `(2C, H, W)`.

    `rescue`: where no class is present on the tile, the probability is sigmoid(L) alone (ours).
    """
    here = presence.sigmoid()
    if rescue and float(here.max()) < RESCUE_BELOW:
        here = torch.ones_like(here)
    return torch.cat([resize(scores, size), resize(evidence, size).sigmoid() * here[:, None, None]])


def coco_scores(mean: Tensor) -> Tensor:
    """Scores `(C, …)` whose maximum is the class with the largest S and whose value there is its probability."""
    values, chance = mean.chunk(2)
    best, winner = values.max(dim=0, keepdim=True)
    return chance.gather(0, winner) * (values - best).exp()
