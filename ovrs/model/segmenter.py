"""CLIP-type segmenters: encoder, text and adapter behind the engine's contract. NumPy in, NumPy out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from ovrs.contract import TileScores
from ovrs.model import mlmp, tmpa, tmpa_compat
from ovrs.model.features import accumulate, cosines, crop_images, encode_tile, upsample
from ovrs.model.head import class_scores
from ovrs.model.text import TextBank

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.grid import Window
    from ovrs.model.dense import DenseVariant
    from ovrs.model.loading import LoadedModel
    from ovrs.tiling import TileGeometry

CROPS_PER_TILE = 4
BATCH = CROPS_PER_TILE**2
"""Crops per forward pass: one full tile. Fixed, because batch size changes float results."""


@dataclass(frozen=True)
class Settings:
    """Options with the model's defaults filled in."""

    dense: DenseVariant
    cls_weight: float
    scale: float
    aggregate: Literal["max", "mean"]
    ramp: int
    """Pixels over which a crop's weight rises from its border; 0 counts all crops alike."""


class ClipSegmenter:
    """Frozen dense CLIP: no adaptation. Evidence is cosines, summed over crops; softmax comes after the division."""

    def __init__(
        self, model: LoadedModel, bank: TextBank, settings: Settings, geometry: TileGeometry, facts: dict[str, Any]
    ) -> None:
        self.model, self.bank, self.settings, self.geometry, self.facts = model, bank, settings, geometry, facts
        self.class_count, self.channels = bank.class_count, len(bank.vectors)

    @torch.no_grad()
    def evidence(
        self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features = encode_tile(self.model, self.settings.dense, rgb, valid, crops, BATCH)
        low = cosines(features, self.bank.vectors, self.bank.vectors, self.settings.cls_weight)
        total, weights = accumulate(features, upsample(features, low), self.settings.ramp)
        return total.cpu().numpy(), weights.cpu().numpy()

    @torch.no_grad()
    def finish(self, evidence: NDArray[np.float32]) -> TileScores:
        scores = class_scores(
            torch.from_numpy(evidence), _on_cpu(self.bank), self.settings.scale, self.settings.aggregate
        )
        return TileScores(scores.numpy())

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        total, hits = self.evidence(rgb, valid, crops)
        return self.finish(total / hits)

    def describe(self) -> dict[str, Any]:
        return self.facts


class _Episodic:
    """Shared by the adapted segmenters: nothing survives a tile."""

    def __init__(
        self, frozen: ClipSegmenter, settings: tmpa.TmpaSettings | tmpa_compat.CompatSettings | mlmp.MlmpSettings
    ) -> None:
        self.frozen, self.settings = frozen, settings
        self.geometry, self.class_count = frozen.geometry, frozen.class_count

    def describe(self) -> dict[str, Any]:
        return {**self.frozen.facts, **asdict(self.settings)}


class TmpaSegmenter(_Episodic):
    """TMPA (`tmpa`, `tmpa_shift`): the text is calibrated to each tile, then the tile is classified with it."""

    def __init__(self, frozen: ClipSegmenter, settings: tmpa.TmpaSettings) -> None:
        super().__init__(frozen, settings)
        self.settings: tmpa.TmpaSettings

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        own = self.frozen.settings
        features = encode_tile(self.frozen.model, own.dense, rgb, valid, crops, BATCH)
        calibration = tmpa.calibrate(features, self.frozen.bank, self.settings)
        with torch.no_grad():
            low = cosines(features, calibration.text, calibration.base_text, own.cls_weight)
            total, weights = accumulate(features, upsample(features, low), own.ramp)
            scores = class_scores(total / weights, self.frozen.bank, own.scale, own.aggregate)
        return TileScores(scores.cpu().numpy(), events=calibration.events)


class NormSegmenter(_Episodic):
    """TENT and MLMP: one set of LayerNorm parameters per tile, adapted to all its crops together."""

    def __init__(self, frozen: ClipSegmenter, settings: mlmp.MlmpSettings, prompts: Tensor) -> None:
        super().__init__(frozen, settings)
        self.settings: mlmp.MlmpSettings
        self.prompts = prompts

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        frozen, own = self.frozen, self.frozen.settings
        images, geometry = crop_images(frozen.model, rgb, valid, crops)
        adapted = mlmp.adapt(
            frozen.model.clip.visual, images.to(frozen.model.dtype), self.prompts, frozen.bank.vectors, self.settings
        )
        features = geometry.features(adapted.patches.float(), adapted.patches.new_zeros(len(crops), 1), adapted.grid)
        with torch.no_grad():
            low = cosines(features, frozen.bank.vectors, frozen.bank.vectors, 0.0)
            total, weights = accumulate(features, upsample(features, low), own.ramp)
            scores = class_scores(total / weights, frozen.bank, own.scale, own.aggregate)
        return TileScores(scores.cpu().numpy(), events=("adapted",))


class TmpaCompatSegmenter(_Episodic):
    """TMPA as released; the tile takes the place of the image."""

    def __init__(self, frozen: ClipSegmenter, settings: tmpa_compat.CompatSettings) -> None:
        super().__init__(frozen, settings)
        self.settings: tmpa_compat.CompatSettings

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        features = encode_tile(self.frozen.model, self.frozen.settings.dense, rgb, valid, crops, BATCH)
        result = tmpa_compat.adapt(features, self.frozen.bank, self.settings)
        return TileScores(result.scores.cpu().numpy(), events=("adapted",))


def _on_cpu(bank: TextBank) -> TextBank:
    return TextBank(bank.vectors.cpu(), bank.class_of.cpu(), bank.class_count)
