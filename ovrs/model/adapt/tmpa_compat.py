"""TMPA as released (`tmpa_compat`), for comparison with published figures only.

Source: the path stored as dawndaa/TMPA@660b5b2; differences from the paper and from ours are listed in
`docs/methods.md#tmpa-tmpa_shift-and-tmpa_compat`: prototypes per window and from thresholded predictions, a gate by the
mean of three, prototypes not normalised, AdamW with weight decay on α and δ, unbounded α, the loss on aggregated scores at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ovrs.engine.contract import TileScores
from ovrs.methods.tmpa import TmpaCompat
from ovrs.model.clip.head import class_scores, entropy, join_queries
from ovrs.model.clip.segmenter import ClipSegmenter, Episodic, given_away
from ovrs.model.clip.sums import accumulate

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.engine.arrays import Array
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.parts import Parts
    from ovrs.model.clip.text import TextBank
    from ovrs.model.clip.upsample import Upsampler
    from ovrs.scene.grid import Window

_ANCHORS = 3


@dataclass(frozen=True, eq=False)
class CompatResult:
    """Scores after the last update, and what led there."""

    scores: Tensor
    """`(C, H, W)`."""
    alpha: Tensor
    """`(M, 1)`."""
    shift: Tensor
    """`(M, D)`."""
    losses: tuple[float, ...]


@torch.no_grad()
def window_prototypes(
    features: TileFeatures, text: Tensor, bank: TextBank, settings: TmpaCompat, background: int | None
) -> tuple[Tensor, Tensor]:
    """Prototypes of each window; unsure patches are those of class `background`, if there is one.

    Returns:
        `(B, C, D)`, zero where a class has none, and the anchors' flat patch indices `(B, C, 3)`, -1 where none.
    """
    count, classes = len(features.patches), bank.class_count
    prototypes = features.patches.new_zeros(count, classes, text.shape[1])
    anchors = torch.full((count, classes, _ANCHORS), -1, device=text.device)
    for b, patches in enumerate(features.patches):
        probabilities = (settings.scale * (text @ patches.T)).softmax(dim=0)
        uncertainty = -(probabilities * probabilities.clamp(min=1e-6).log()).mean(dim=0)
        best, winner = join_queries(probabilities, bank).max(dim=0)
        if background is not None:
            winner = winner.masked_fill(best < settings.threshold, background)
        for index in range(classes):
            rows = (winner == index).nonzero().flatten()
            lowest = rows[uncertainty[rows].argsort(stable=True)[:_ANCHORS]]
            if len(lowest) and uncertainty[lowest].mean() < uncertainty.mean():
                prototypes[b, index] = patches[lowest].mean(dim=0)
                anchors[b, index, : len(lowest)] = lowest
    return prototypes, anchors


def forward(
    features: TileFeatures,
    bank: TextBank,
    alpha: Tensor,
    shift: Tensor,
    settings: TmpaCompat,
    upsampler: Upsampler,
    background: int | None,
    out_shape: tuple[int, int] | None = None,
) -> Tensor:
    """Return aggregated class scores `(C, H, W)` of the whole tile for the given parameters."""
    text = F.normalize(bank.vectors + shift, dim=-1)
    prototypes, _ = window_prototypes(features, text.detach(), bank, settings, background)
    calibrated = F.normalize((1 - alpha) * text + alpha * prototypes[:, bank.class_of], dim=-1)
    maps = upsampler(features, calibrated, text, settings.cls_weight)
    total, hits = accumulate(features, maps)
    logits = total / hits
    if out_shape is not None and out_shape != features.shape:
        logits = F.interpolate(logits[None], size=out_shape, mode="bilinear", align_corners=False)[0]
    return class_scores(logits, bank, settings.scale, settings.max_share)


def adapt(
    features: TileFeatures,
    bank: TextBank,
    settings: TmpaCompat,
    upsampler: Upsampler,
    background: int | None,
    out_shape: tuple[int, int] | None = None,
    *,
    alpha_only: bool = False,
) -> CompatResult:
    """Run the released optimisation on one image.

    Args:
        features: Of the image.
        bank: The queries.
        settings: Of the method.
        upsampler: From features to pixels.
        background: Class of patches that are surer of none than the threshold.
        out_shape: Size in pixels at which loss and scores are taken.
        alpha_only: Leave the shift at zero.
    """
    alpha = torch.full((len(bank.vectors), 1), settings.alpha_init, device=bank.vectors.device, requires_grad=True)
    shift = torch.zeros_like(bank.vectors, requires_grad=not alpha_only)
    parameters = [alpha] if alpha_only else [alpha, shift]
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr_shift, weight_decay=0.01)
    losses = []
    with torch.enable_grad():
        for _ in range(settings.steps):
            loss = entropy(
                forward(features, bank, alpha, shift, settings, upsampler, background, out_shape), floor=1e-8
            ).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    with torch.no_grad():
        scores = forward(features, bank, alpha, shift, settings, upsampler, background, out_shape)
    return CompatResult(scores, alpha.detach(), shift.detach(), tuple(losses))


class TmpaCompatSegmenter(Episodic[TmpaCompat]):
    """TMPA as released; the tile takes the place of the image."""

    def __init__(self, frozen: ClipSegmenter, settings: TmpaCompat, background: int | None) -> None:
        super().__init__(frozen, settings)
        self.background = background

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features = self.frozen.encode(rgb, valid, crops)
        result = adapt(features, self.frozen.bank, self.settings, self.frozen.upsampler, self.background)
        return TileScores(given_away(result.scores), events=("adapted",))


def segmenter(parts: Parts[TmpaCompat]) -> TmpaCompatSegmenter:
    """TMPA as released, on the vocabulary's queries."""
    return TmpaCompatSegmenter(parts.frozen(parts.bank()), parts.settings, parts.vocabulary.background_index)
