"""CLIP-type segmenters: encoder, text and adapter behind the engine's contract. NumPy in, NumPy out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from ovrs.contract import TileScores
from ovrs.errors import OptionError
from ovrs.model import tmpa, tmpa_compat
from ovrs.model.dense import DENSE_VARIANTS, DenseVariant, native_size, patch_size
from ovrs.model.features import accumulate, cosines, encode_tile, upsample
from ovrs.model.head import class_scores
from ovrs.model.loading import LoadedModel, load
from ovrs.model.text import TextBank, build_text_bank
from ovrs.tiling import TileGeometry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ovrs.grid import Window
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.vocabulary import Vocabulary

METHODS = ("none", "tmpa", "tmpa_shift", "tmpa_compat")
CROPS_PER_TILE = 4
BATCH = CROPS_PER_TILE**2
"""Crops per forward pass: one full tile. Fixed, because batch size changes float results."""

_CLIP_DEFAULTS = {"dense": "segearth", "cls_weight": -0.3, "logit_scale": 50.0}
"""SegEarth-OV's settings, for models without recommendations of their own."""


@dataclass(frozen=True)
class Settings:
    """Options with the model's defaults filled in."""

    dense: DenseVariant
    cls_weight: float
    scale: float
    aggregate: Literal["max", "mean"]


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
        total, hits = accumulate(features, upsample(features, low))
        return total.cpu().numpy(), hits.cpu().numpy()

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

    def __init__(self, frozen: ClipSegmenter) -> None:
        self.frozen = frozen
        self.geometry, self.class_count = frozen.geometry, frozen.class_count

    def describe(self) -> dict[str, Any]:
        return self.frozen.facts


class TmpaSegmenter(_Episodic):
    """TMPA (`tmpa`, `tmpa_shift`): the text is calibrated to each tile, then the tile is classified with it."""

    def __init__(self, frozen: ClipSegmenter, settings: tmpa.TmpaSettings) -> None:
        super().__init__(frozen)
        self.settings = settings

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        own = self.frozen.settings
        features = encode_tile(self.frozen.model, own.dense, rgb, valid, crops, BATCH)
        calibration = tmpa.calibrate(features, self.frozen.bank, self.settings)
        with torch.no_grad():
            low = cosines(features, calibration.text, calibration.base_text, own.cls_weight)
            total, hits = accumulate(features, upsample(features, low))
            scores = class_scores(total / hits, self.frozen.bank, own.scale, own.aggregate)
        return TileScores(scores.cpu().numpy(), events=calibration.events)


class TmpaCompatSegmenter(_Episodic):
    """TMPA as released; the tile takes the place of the image."""

    def __init__(self, frozen: ClipSegmenter, settings: tmpa_compat.CompatSettings) -> None:
        super().__init__(frozen)
        self.settings = settings

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        features = encode_tile(self.frozen.model, self.frozen.settings.dense, rgb, valid, crops, BATCH)
        result = tmpa_compat.adapt(features, self.frozen.bank, self.settings)
        return TileScores(result.scores.cpu().numpy(), events=("adapted",))


def build_clip_segmenter(
    model_options: ModelOptions, method: MethodOptions, vocabulary: Vocabulary
) -> ClipSegmenter | TmpaSegmenter | TmpaCompatSegmenter:
    """Load the model, embed the vocabulary, and put the chosen method in front.

    Raises:
        OptionError: Unknown method or variant, or a class list the method cannot work with.
        WeightsError: See `ovrs.model.loading.load`.
    """
    if method.method not in METHODS:
        raise OptionError(f"method {method.method!r} is unknown; choose one of {', '.join(METHODS)}")
    if len(vocabulary.classes) < 2:
        raise OptionError(
            "a map needs at least two classes: with one, its probability is 1 everywhere. Add what else is there, "
            'for instance --classes "building, background"'
        )
    model = load(model_options)
    settings = _settle(method, model)
    geometry = _geometry(model_options, model)
    bank = build_text_bank(model, vocabulary)
    facts = {
        "model": model.name,
        "weights": model.weights_hash,
        "device": model.device.type,
        "dtype": model_options.dtype,
        "method": method.method,
        "dense": settings.dense,
        "cls_weight": settings.cls_weight,
        "logit_scale": settings.scale,
        "aggregate": settings.aggregate,
        "upsampler": "bilinear",
        "batch": BATCH,
        "queries": len(bank.vectors),
        "threads": torch.get_num_threads(),
        **_method_facts(method),
    }
    frozen = ClipSegmenter(model, bank, settings, geometry, facts)
    if method.method == "none":
        return frozen
    if method.method == "tmpa_compat":
        rule = vocabulary.background
        return TmpaCompatSegmenter(
            frozen,
            tmpa_compat.CompatSettings(
                scale=settings.scale,
                cls_weight=settings.cls_weight,
                aggregate=settings.aggregate,
                steps=method.steps,
                lr=method.lr_shift,
                alpha_init=method.alpha_init,
                background=vocabulary.background_index or 0,
                threshold=rule.threshold if rule else 0.0,
            ),
        )
    return TmpaSegmenter(
        frozen,
        tmpa.TmpaSettings(
            scale=settings.scale,
            cls_weight=settings.cls_weight,
            aggregate=settings.aggregate,
            shift=method.method == "tmpa_shift",
            steps=method.steps,
            lr=method.lr,
            lr_shift=method.lr_shift,
            alpha_init=method.alpha_init,
            alpha_max=method.alpha_max,
            anchors=method.anchors,
        ),
    )


def _settle(method: MethodOptions, model: LoadedModel) -> Settings:
    defaults = {**_CLIP_DEFAULTS, **model.defaults}
    dense = method.dense or str(defaults["dense"])
    if dense not in DENSE_VARIANTS:
        raise OptionError(f"dense variant {dense!r} is unknown; choose one of {', '.join(DENSE_VARIANTS)}")
    weight = defaults["cls_weight"] if method.cls_weight is None else method.cls_weight
    scale = defaults["logit_scale"] if method.logit_scale is None else method.logit_scale
    return Settings(cast("DenseVariant", dense), float(weight), float(scale), method.aggregate)


def _geometry(options: ModelOptions, model: LoadedModel) -> TileGeometry:
    patch = patch_size(model.clip.visual)
    crop = options.crop or native_size(model.clip.visual)
    if crop % patch:
        raise OptionError(
            f"--crop must be a multiple of the patch size {patch}, got {crop}; the nearest is {round(crop / patch) * patch or patch}"
        )
    return TileGeometry(crop=crop, stride=options.stride or crop // 2, crops_per_tile=CROPS_PER_TILE)


def _method_facts(method: MethodOptions) -> dict[str, Any]:
    if method.method == "none":
        return {}
    names = (
        ("steps", "alpha_init", "lr_shift")
        if method.method == "tmpa_compat"
        else ("steps", "lr", "lr_shift", "alpha_init", "alpha_max", "anchors")
    )
    return {name: getattr(method, name) for name in names}


def _on_cpu(bank: TextBank) -> TextBank:
    return TextBank(bank.vectors.cpu(), bank.class_of.cpu(), bank.class_count)
