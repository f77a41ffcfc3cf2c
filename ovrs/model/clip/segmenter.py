"""CLIP-type segmenters: encoder, text and adapter behind the engine's contract. NumPy in, NumPy out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from ovrs.engine.contract import TileScores
from ovrs.methods.clip import Clip
from ovrs.model.clip.features import TileFeatures, accumulate
from ovrs.model.clip.head import class_scores
from ovrs.model.clip.text import TextBank

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ovrs.engine.tiling import TileGeometry
    from ovrs.model.clip.encoder import Encoder
    from ovrs.model.clip.parts import Parts
    from ovrs.model.clip.upsample import Upsampler
    from ovrs.scene.grid import Window

S = TypeVar("S", bound=Clip)
"""Settings of a method."""


class ClipSegmenter:
    """Frozen dense CLIP: no adaptation. Evidence is cosines, summed over crops; softmax comes after the division."""

    def __init__(
        self,
        encoder: Encoder,
        upsampler: Upsampler,
        bank: TextBank,
        settings: Clip,
        geometry: TileGeometry,
        facts: dict[str, object],
    ) -> None:
        self.encoder, self.upsampler, self.bank, self.settings = encoder, upsampler, bank, settings
        self.geometry, self.facts = geometry, facts
        self.ramp = geometry.crop - geometry.stride if settings.crop_blend == "taper" else 0
        self.text = self.base_text = bank.vectors
        self.class_count, self.channels = bank.class_count, len(bank.vectors)

    def encode(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileFeatures:
        """What the frozen encoder says about a tile."""
        return self.encoder.encode(rgb, valid, crops)

    @torch.no_grad()
    def evidence(
        self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features = self.encode(rgb, valid, crops)
        total, weights = self.sum_crops(features, self.text, self.base_text)
        return total.cpu().numpy(), weights.cpu().numpy()

    def sum_crops(self, features: TileFeatures, text: Tensor, base_text: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of all crops' cosines with `text` on the tile, and the sum of weights.

        With wider windows: of the mean of the crops' cosines and those of every size of window.
        """
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        for size, rows, part in features.parts():
            own = text[rows] if text.ndim == 3 else text
            ramp = self.ramp
            if ramp and size > 1:  # its sum is divided by its weights, so any will do; the middle sees most
                ramp = max(part.crop_shape) // 2
            found = accumulate(part, self.upsampler(part, own, base_text, self.settings.cls_weight), ramp)
            sums[size] = (sums[size][0] + found[0], sums[size][1] + found[1]) if size in sums else found
        total, weights = sums.pop(1)
        if not sums:
            return total, weights
        for wide_total, wide_weights in sums.values():
            total = total + wide_total * (weights / wide_weights)
        return total / (1 + len(sums)), weights

    @torch.no_grad()
    def classify(self, features: TileFeatures, text: Tensor, base_text: Tensor, events: tuple[str, ...]) -> TileScores:
        """Scores of one tile with its own text."""
        total, weights = self.sum_crops(features, text, base_text)
        scores = class_scores(total / weights, self.bank, self.settings.scale, self.settings.max_share)
        return TileScores(scores.cpu().numpy(), events=events)

    @torch.no_grad()
    def finish(self, evidence: NDArray[np.float32]) -> TileScores:
        scores = class_scores(
            torch.from_numpy(evidence), _on_cpu(self.bank), self.settings.scale, self.settings.max_share
        )
        return TileScores(scores.numpy())

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        total, hits = self.evidence(rgb, valid, crops)
        return self.finish(total / hits)

    def describe(self) -> dict[str, object]:
        return self.facts

    def with_text(self, text: Tensor, base_text: Tensor, offsets: Tensor | None) -> ClipSegmenter:
        """The same segmenter with other vectors and offsets for its queries, still frozen: adapted to a scene."""
        bank = self.bank if offsets is None else replace(self.bank, offsets=offsets)
        other = ClipSegmenter(self.encoder, self.upsampler, bank, self.settings, self.geometry, self.facts)
        other.text, other.base_text = text, base_text
        return other


def segmenter(parts: Parts[Clip]) -> ClipSegmenter:
    """Frozen dense CLIP on the vocabulary's queries (`none`)."""
    return parts.frozen(parts.bank())


class Episodic(Generic[S]):
    """Shared by the adapted segmenters: nothing survives a tile."""

    def __init__(self, frozen: ClipSegmenter, settings: S) -> None:
        self.frozen, self.settings = frozen, settings
        self.geometry, self.class_count = frozen.geometry, frozen.class_count

    def describe(self) -> dict[str, object]:
        return self.frozen.facts


def _on_cpu(bank: TextBank) -> TextBank:
    return TextBank(
        bank.vectors.cpu(),
        bank.class_of.cpu(),
        bank.class_count,
        None if bank.offsets is None else bank.offsets.cpu(),
    )
