"""Put model, words and method together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from ovrs.errors import OptionError
from ovrs.model import mlmp, tmpa, tmpa_compat
from ovrs.model.dense import DENSE_VARIANTS, DenseVariant, native_size, patch_size
from ovrs.model.loading import LoadedModel, load
from ovrs.model.segmenter import (
    BATCH,
    CROPS_PER_TILE,
    ClipSegmenter,
    NormSegmenter,
    Settings,
    TmpaCompatSegmenter,
    TmpaSegmenter,
)
from ovrs.model.text import TextBank, build_prompt_stack, build_text_bank
from ovrs.tiling import TileGeometry

if TYPE_CHECKING:
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.vocabulary import Vocabulary

METHODS = ("none", "tent", "mlmp", "tmpa", "tmpa_shift", "tmpa_compat")

_CLIP_DEFAULTS = {"dense": "segearth", "cls_weight": -0.3, "logit_scale": 50.0}
"""SegEarth-OV's settings, for models without recommendations of their own."""

AnySegmenter: TypeAlias = "ClipSegmenter | TmpaSegmenter | TmpaCompatSegmenter | NormSegmenter"


def build_clip_segmenter(model_options: ModelOptions, method: MethodOptions, vocabulary: Vocabulary) -> AnySegmenter:
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
    geometry = _geometry(model_options, model)
    settings = _settle(method, model, geometry)
    if method.method in ("tent", "mlmp"):
        prompts, bank = build_prompt_stack(
            model, vocabulary, mlmp.TENT_TEMPLATES if method.method == "tent" else mlmp.MLMP_TEMPLATES
        )
        settings = replace(settings, cls_weight=0.0)  # neither method has a global term
        norm_settings = _norm_settings(method, settings)
        frozen = ClipSegmenter(model, bank, settings, geometry, _facts(model, model_options, method, settings, bank))
        return NormSegmenter(frozen, norm_settings, prompts)
    bank = build_text_bank(model, vocabulary)
    frozen = ClipSegmenter(model, bank, settings, geometry, _facts(model, model_options, method, settings, bank))
    if method.method == "none":
        return frozen
    if method.method == "tmpa_compat":
        return TmpaCompatSegmenter(frozen, _compat_settings(method, settings, vocabulary))
    return TmpaSegmenter(frozen, _tmpa_settings(method, settings))


def _norm_settings(method: MethodOptions, settings: Settings) -> mlmp.MlmpSettings:
    own = mlmp.MlmpSettings(variant=settings.dense, scale=settings.scale, joint=True)
    if method.method == "tent":
        own = replace(own, layers=1, image_weight=0.0)
    given: dict[str, Any] = {"steps": method.steps, "lr": method.lr}
    return replace(own, **{name: value for name, value in given.items() if value is not None})


def _tmpa_settings(method: MethodOptions, settings: Settings) -> tmpa.TmpaSettings:
    own = tmpa.TmpaSettings(
        scale=settings.scale,
        cls_weight=settings.cls_weight,
        aggregate=settings.aggregate,
        shift=method.method == "tmpa_shift",
        lr_shift=method.lr_shift,
        alpha_init=method.alpha_init,
        alpha_max=method.alpha_max,
        anchors=method.anchors,
    )
    given: dict[str, Any] = {"steps": method.steps, "lr": method.lr}
    return replace(own, **{name: value for name, value in given.items() if value is not None})


def _compat_settings(method: MethodOptions, settings: Settings, vocabulary: Vocabulary) -> tmpa_compat.CompatSettings:
    rule = vocabulary.background
    return tmpa_compat.CompatSettings(
        scale=settings.scale,
        cls_weight=settings.cls_weight,
        aggregate=settings.aggregate,
        steps=3 if method.steps is None else method.steps,
        lr=method.lr_shift,
        alpha_init=method.alpha_init,
        background=vocabulary.background_index or 0,
        threshold=rule.threshold if rule else 0.0,
    )


def _facts(
    model: LoadedModel, options: ModelOptions, method: MethodOptions, settings: Settings, bank: TextBank
) -> dict[str, Any]:
    """What decides the numbers, for digest and provenance."""
    return {
        "model": model.name,
        "weights": model.weights_hash,
        "device": model.device.type,
        "dtype": options.dtype,
        "method": method.method,
        "dense": settings.dense,
        "cls_weight": settings.cls_weight,
        "logit_scale": settings.scale,
        "aggregate": settings.aggregate,
        "upsampler": "bilinear",
        "crop_ramp": settings.ramp,
        "batch": BATCH,
        "queries": len(bank.vectors),
        "threads": torch.get_num_threads(),
    }


def _settle(method: MethodOptions, model: LoadedModel, geometry: TileGeometry) -> Settings:
    defaults = {**_CLIP_DEFAULTS, **model.defaults}
    dense = method.dense or str(defaults["dense"])
    if dense not in DENSE_VARIANTS:
        raise OptionError(f"dense variant {dense!r} is unknown; choose one of {', '.join(DENSE_VARIANTS)}")
    weight = defaults["cls_weight"] if method.cls_weight is None else method.cls_weight
    scale = defaults["logit_scale"] if method.logit_scale is None else method.logit_scale
    ramp = geometry.crop - geometry.stride if method.crop_blend == "taper" and method.method != "tmpa_compat" else 0
    return Settings(cast("DenseVariant", dense), float(weight), float(scale), method.aggregate, ramp)


def _geometry(options: ModelOptions, model: LoadedModel) -> TileGeometry:
    patch = patch_size(model.clip.visual)
    crop = options.crop or native_size(model.clip.visual)
    if crop % patch:
        raise OptionError(
            f"--crop must be a multiple of the patch size {patch}, got {crop}; the nearest is {round(crop / patch) * patch or patch}"
        )
    return TileGeometry(crop=crop, stride=options.stride or crop // 2, crops_per_tile=CROPS_PER_TILE)
