"""CLIP-type segmenters: encoder, text and adapter behind the engine's contract. Scores stay on the model's device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ovrs.engine.contract import TileScores
from ovrs.model.adapt import cass, mlmp, pseudo, tmpa, tmpa_compat, tpt
from ovrs.model.clip.features import TileFeatures, accumulate
from ovrs.model.clip.head import class_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ovrs.engine.arrays import Array
    from ovrs.engine.tiling import TileGeometry
    from ovrs.model.clip.encoder import Encoder
    from ovrs.model.clip.text import TextBank
    from ovrs.model.clip.upsample import Upsampler
    from ovrs.scene.grid import Window


@dataclass(frozen=True)
class Settings:
    """Options with the model's defaults filled in."""

    cls_weight: float
    scale: float
    max_share: float
    """How a class's queries are joined: w · maximum + (1 - w) · mean."""
    ramp: int
    """Pixels over which a crop's weight rises from its border; 0 counts all crops alike."""


class ClipSegmenter:
    """Frozen dense CLIP: no adaptation. Evidence is cosines, summed over crops; softmax comes after the division."""

    def __init__(
        self,
        encoder: Encoder,
        upsampler: Upsampler,
        bank: TextBank,
        settings: Settings,
        geometry: TileGeometry,
        facts: dict[str, Any],
    ) -> None:
        self.encoder, self.upsampler, self.bank, self.settings = encoder, upsampler, bank, settings
        self.geometry, self.facts = geometry, facts
        self.text = self.base_text = bank.vectors
        self.class_count, self.channels = bank.class_count, len(bank.vectors)

    def encode(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileFeatures:
        """What the frozen encoder says about a tile."""
        return self.encoder.encode(rgb, valid, crops)

    @torch.no_grad()
    def evidence(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> tuple[Array, Array]:
        features = self.encode(rgb, valid, crops)
        total, weights = self.sum_crops(features, self.text, self.base_text)
        return given_away(total), given_away(weights)

    def sum_crops(self, features: TileFeatures, text: Tensor, base_text: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of all crops' cosines with `text` on the tile, and the sum of weights.

        With wider windows: of the mean of the crops' cosines and those of every size of window.
        """
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        for size, rows, part in features.parts():
            own = text[rows] if text.ndim == 3 else text
            ramp = self.settings.ramp
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
        return TileScores(given_away(scores), events=events)

    @torch.no_grad()
    def finish(self, evidence: Array) -> TileScores:
        logits = torch.as_tensor(evidence, device=self.bank.vectors.device)
        return TileScores(given_away(class_scores(logits, self.bank, self.settings.scale, self.settings.max_share)))

    def place(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[Array, Array]:
        return placed(rgb, self.encoder.model.device), placed(valid, self.encoder.model.device)

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        total, hits = self.evidence(rgb, valid, crops)
        return self.finish(total / hits)

    def describe(self) -> dict[str, Any]:
        return self.facts

    def with_text(
        self, text: Tensor, base_text: Tensor, offsets: Tensor | None, facts: dict[str, Any]
    ) -> ClipSegmenter:
        """The same segmenter with other vectors and offsets for its queries, still frozen: adapted to a scene."""
        bank = self.bank if offsets is None else replace(self.bank, offsets=offsets)
        other = ClipSegmenter(self.encoder, self.upsampler, bank, self.settings, self.geometry, {**self.facts, **facts})
        other.text, other.base_text = text, base_text
        return other


class Episodic:
    """Shared by the adapted segmenters: nothing survives a tile."""

    def __init__(self, frozen: ClipSegmenter, settings: Any) -> None:
        self.frozen, self.settings = frozen, settings
        self.geometry, self.class_count = frozen.geometry, frozen.class_count

    def place(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[Array, Array]:
        return self.frozen.place(rgb, valid)

    def describe(self) -> dict[str, Any]:
        return {**self.frozen.facts, **asdict(self.settings)}


class TmpaSegmenter(Episodic):
    """TMPA (`tmpa`, `tmpa_shift`): the text is calibrated to each tile, then the tile is classified with it."""

    settings: tmpa.TmpaSettings

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features = self.frozen.encode(rgb, valid, crops)
        calibration = tmpa.calibrate(features, self.frozen.bank, self.settings)
        return self.frozen.classify(features, calibration.text, calibration.base_text, calibration.events)


class TmpaCompatSegmenter(Episodic):
    """TMPA as released; the tile takes the place of the image."""

    settings: tmpa_compat.CompatSettings

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features = self.frozen.encode(rgb, valid, crops)
        result = tmpa_compat.adapt(features, self.frozen.bank, self.settings, self.frozen.upsampler)
        return TileScores(given_away(result.scores), events=("adapted",))


class NormSegmenter(Episodic):
    """TENT, MLMP, CLIPArTT, WATT: one set of LayerNorm parameters per tile, adapted to all its crops together."""

    def __init__(self, frozen: ClipSegmenter, settings: Any, adapt: Callable[[Tensor], NormAdapted]) -> None:
        super().__init__(frozen, settings)
        self.adapt = adapt

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        frozen = self.frozen
        inputs = frozen.encoder.inputs(rgb, valid, crops)
        adapted = self.adapt(inputs.images.to(frozen.encoder.model.dtype))
        features = inputs.features(adapted.patches, adapted.patches.new_zeros(len(inputs.images), 1), adapted.grid)
        return frozen.classify(features, frozen.bank.vectors, frozen.bank.vectors, ("adapted",))


NormAdapted = mlmp.Adapted | pseudo.PseudoAdapted


class TptSegmenter(Episodic):
    """TPT: the prompt's context is learned for each tile."""

    settings: tpt.TptSettings

    def __init__(self, frozen: ClipSegmenter, settings: tpt.TptSettings, learner: tpt.PromptLearner) -> None:
        super().__init__(frozen, settings)
        self.learner = learner

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features = self.frozen.encode(rgb, valid, crops)
        patches = features.patches[features.patch_valid]
        if not len(patches):
            return self.frozen.classify(
                features, self.frozen.bank.vectors, self.frozen.bank.vectors, ("no_valid_patch",)
            )
        text = tpt.tune(self.learner, patches, self.settings).text.to(features.patches)
        return self.frozen.classify(features, text, text, ("adapted",))


@dataclass(frozen=True, kw_only=True)
class CassSettings:
    """CASS's text step; the paper has values per data set (0.02 to 0.14, 0.01 to 0.05), none for remote sensing."""

    cluster_height: float = 0.06
    amount: float = 0.03


class CassSegmenter(Episodic):
    """CASS's text step: in each crop, some vectors move toward patches of that crop."""

    settings: CassSettings

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features, bank = self.frozen.encode(rgb, valid, crops), self.frozen.bank
        clusters = cass.cluster_classes(bank.vectors, self.settings.cluster_height)
        texts = [
            cass.move_text(bank.vectors, patches[ok], cls, clusters, self.settings.amount) if ok.any() else bank.vectors
            for patches, cls, ok in zip(features.patches, features.cls, features.patch_valid, strict=True)
        ]
        return self.frozen.classify(features, torch.stack(texts), bank.vectors, ("adapted",))


def given_away(values: Tensor) -> Array:
    """What the engine gets: NumPy's view on the host, else the tensor where it is."""
    return values.numpy() if values.device.type == "cpu" else values


def placed(values: NDArray[Any], device: torch.device) -> Array:
    """Pixels where the model is; the host's stay NumPy's."""
    return values if device.type == "cpu" else torch.from_numpy(np.ascontiguousarray(values)).to(device)
