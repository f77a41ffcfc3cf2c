"""Put model, words and method together."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ovrs.errors import OptionError
from ovrs.methods.registry import METHOD_NAMES, NORM_METHODS, SAM3_METHOD_NAMES
from ovrs.model.adapt import mlmp, pseudo, tmpa, tmpa_compat, tpt
from ovrs.model.adapt.scene_segmenter import SceneLearnedSegmenter, SceneTmpaSegmenter
from ovrs.model.adapt.scene_text import SceneSettings
from ovrs.model.clip.dense import DENSE_VARIANTS, LAST_BLOCK_VARIANTS, DenseVariant
from ovrs.model.clip.encoder import EXTERNAL_VARIANTS, Encoder
from ovrs.model.clip.loading import LoadedModel, hash_weights, load
from ovrs.model.clip.memory import suited
from ovrs.model.clip.proxy import ExternalViT
from ovrs.model.clip.refine import RefineSettings, refined
from ovrs.model.clip.segmenter import (
    CassSegmenter,
    CassSettings,
    ClipSegmenter,
    NormSegmenter,
    Settings,
    TmpaCompatSegmenter,
    TmpaSegmenter,
    TptSegmenter,
)
from ovrs.model.clip.text import TextBank, build_prompt_stack, build_text_bank, clean, encode_sentences, queries_of
from ovrs.model.clip.upsample import UPSAMPLERS, Bilinear, JointBilateral, Upsampler, load_jbu
from ovrs.model.clip.windows import Views, choose
from ovrs.options import Sam3Options

if TYPE_CHECKING:
    from ovrs.engine.contract import Segmenter
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.words.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_CLIP_DEFAULTS: dict[str, Any] = {
    "dense": "segearth",
    "cls_weight": -0.3,
    "logit_scale": 50.0,
    "upsampler": "bilinear",
    "aggregate": "max",
    "absent": "text",
    "keep_shares": 0.0,
    "prefix": True,
    "bare": False,
    "split_names": False,
    "prompts": "all",
}
"""SegEarth-OV's settings, for models without recommendations of their own."""

_CASS_GLOBAL = 0.3
"""γ of CASS: logits are (1 - γ) · patch + γ · image; the paper uses 0.1 to 0.4."""

OWN_OPTIONS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "tmpa": frozenset(
        {
            "adaptation",
            "bias",
            "steps",
            "alpha_init",
            "alpha_max",
            "absent",
            "keep_shares",
            "lr",
            "anchors",
            "scene_tiles",
        }
    ),
    "tmpa_compat": frozenset({"steps", "alpha_init", "lr_shift"}),
    "tent": frozenset({"steps", "lr"}),
    "mlmp": frozenset({"steps", "lr", "layers", "image_weight", "beta", "templates"}),
    "tpt": frozenset({"steps", "lr"}),
    "clipartt": frozenset({"steps", "lr", "top"}),
    "watt": frozenset({"lr", "inner_steps", "rounds", "mode"}),
    "cass": frozenset({"cluster_height", "amount"}),
}
OWN_OPTIONS["tmpa_shift"] = OWN_OPTIONS["tmpa"] | {"lr_shift"}
OWN_OPTIONS["clipartt_compat"], OWN_OPTIONS["watt_compat"] = OWN_OPTIONS["clipartt"], OWN_OPTIONS["watt"]
OWN_OPTIONS["tmpa_shift"] -= {"bias"}
_DESCENT = OWN_OPTIONS["tmpa"] - {"adaptation", "bias", "scene_tiles"}
"""TMPA's options that only the learned bias reads."""
_SPECIFIC = frozenset().union(*OWN_OPTIONS.values())


def build_clip_segmenter(model_options: ModelOptions, method: MethodOptions, vocabulary: Vocabulary) -> Segmenter:
    """Load the model, embed the vocabulary, and put the chosen method in front.

    Raises:
        OptionError: Unknown method or variant, options that the method does not use, a combination that makes no sense,
            or a class list the method cannot work with.
        WeightsError: See `ovrs.model.clip.loading.load`, and missing weights of an upsampler or a second network.
    """
    _check(method, vocabulary)
    model = load(model_options)
    given = _given(method)
    method = with_model_defaults(method, model)
    if method.bias == "entropy" and (unread := sorted(given & _DESCENT)):
        raise OptionError(f"{', '.join(unread)} belong to the learned bias; leave them out, or add --set bias=learned")
    _tell_unasked(method, vocabulary)
    _refuse_unused(method)
    views = choose(model_options, model)
    if method.method == "tmpa_compat":
        if model_options.wide or model_options.turned:
            raise OptionError(
                "method tmpa_compat repeats the released code, which has no wider windows; leave out --wide and --turned"
            )
        views = replace(views, wide=(), turned=False)
    background = vocabulary.background_index
    segmenter = _adapted(_Parts(model, model_options, method, views, vocabulary))
    refine = RefineSettings(pamr_steps=method.pamr, area_threshold=method.area_threshold, background=background)
    return refined(segmenter, refine)


def _given(method: MethodOptions) -> frozenset[str]:
    """Options of single methods that differ from their defaults."""
    return frozenset(n for n in _SPECIFIC if getattr(method, n) != type(method).model_fields[n].default)


def _tell_unasked(method: MethodOptions, vocabulary: Vocabulary) -> None:
    """Say that sentences of the user's own are left out, because the model asks for less than the vocabulary holds."""
    written = [c.name for c in vocabulary.classes if c.descriptions and c.prompt_source != "composed"]
    if written and method.prompts != "all":
        log.info(
            "asking for %s; the descriptions of %d classes are left out (--set prompts=all asks for them too)",
            {"names": "class names alone", "synonyms": "names and synonyms"}[str(method.prompts)],
            len(written),
        )


def with_model_defaults(method: MethodOptions, model: LoadedModel) -> MethodOptions:
    """Fill options that are not given from the model's recommendations, then from SegEarth-OV's settings."""
    defaults = {**_CLIP_DEFAULTS, **model.defaults}
    if method.dense == "cass":
        defaults["cls_weight"] = _CASS_GLOBAL / (1 - _CASS_GLOBAL)
    if method.method in NORM_METHODS or method.method == "tpt":
        defaults["cls_weight"] = 0.0  # none of these has a global term
        defaults["bare"] = False  # and they have templates of their own
    if method.method == "tmpa_compat":
        defaults.pop("alpha_init", None)  # the released start, whatever the model recommends
        defaults["split_names"] = False
    if method.method not in ("tmpa", "tmpa_shift"):
        defaults.pop("lr", None)  # a model recommends the steps of α; other methods step along other parameters
    if method.method in ("tmpa", "tmpa_shift"):
        defaults["adaptation"] = "scene" if method.scene_level else "tile"
        learned = method.method == "tmpa_shift" or not method.scene_level or _given(method) & _DESCENT
        defaults["bias"] = "learned" if learned else "entropy"
    wanted = {k: v for k, v in defaults.items() if k in type(method).model_fields and getattr(method, k) is None}
    return method.model_copy(update=wanted)


def _check(method: MethodOptions, vocabulary: Vocabulary) -> None:
    if method.method in SAM3_METHOD_NAMES:
        raise OptionError(f"method {method.method} needs SAM 3: add --model sam3 (or a directory with its weights)")
    if method.method not in METHOD_NAMES:
        raise OptionError(f"method {method.method!r} is unknown; choose one of {', '.join(METHOD_NAMES)}")
    if method.dense is not None and method.dense not in DENSE_VARIANTS:
        raise OptionError(f"dense variant {method.dense!r} is unknown; choose one of {', '.join(DENSE_VARIANTS)}")
    if method.upsampler is not None and method.upsampler not in UPSAMPLERS:
        raise OptionError(f"upsampler {method.upsampler!r} is unknown; choose one of {', '.join(UPSAMPLERS)}")
    if method.bare and (method.method in NORM_METHODS or method.method == "tpt"):
        raise OptionError(f"method {method.method} has templates of its own; bare is for the others")
    if method.sam3 != Sam3Options():
        raise OptionError("the options sam3.… belong to SAM 3: choose --model sam3, or leave them out")
    foreign = sorted(_given(method) - OWN_OPTIONS[method.method])
    if foreign:
        users = {name: [m for m, own in OWN_OPTIONS.items() if name in own] for name in foreign}
        told = "; ".join(f"{name} belongs to {', '.join(users[name])}" for name in foreign)
        raise OptionError(f"method {method.method} does not use {', '.join(foreign)}: {told}")
    if len(vocabulary.classes) < 2:
        raise OptionError(
            "a map needs at least two classes: with one, its probability is 1 everywhere. Add what else is there, "
            'for instance --classes "building, background"'
        )


def _refuse_unused(method: MethodOptions) -> None:
    """Refuse options that nothing would read beside the others, so that none is silently ignored.

    Raises:
        OptionError: Names the option and what would use it.
    """
    fields = type(method).model_fields
    rules = {
        "dense proxyclip or cass": (("proxy_model", "proxy_weights"), method.dense in EXTERNAL_VARIANTS),
        "upsampler jbu_one or jbu_stack": (("upsampler_rank", "upsampler_weights"), method.upsampler != "bilinear"),
        "aggregate mixed": (("aggregate_weight",), method.aggregate == "mixed"),
        "a method with a global term": (("cls_weight",), method.method not in NORM_METHODS or not method.cls_weight),
    }
    for user, (names, used) in rules.items():
        given = [n for n in names if getattr(method, n) != fields[n].default]
        if given and not used:
            raise OptionError(
                f"{' and '.join(given)} would be ignored: only {user} uses it; leave it out, or choose that"
            )


class _Parts:
    """What the segmenters of all methods are put together from."""

    def __init__(
        self,
        model: LoadedModel,
        model_options: ModelOptions,
        method: MethodOptions,
        views: Views,
        vocabulary: Vocabulary,
    ) -> None:
        self.model, self.model_options, self.method = model, model_options, method
        self.views, self.vocabulary = views, vocabulary
        geometry = views.geometry
        self.variant = cast("DenseVariant", method.dense)
        if method.method in NORM_METHODS and self.variant not in LAST_BLOCK_VARIANTS:
            raise OptionError(
                f"method {method.method} tunes LayerNorms through the last block, which {self.variant} does not fit: "
                f"choose --dense {', '.join(LAST_BLOCK_VARIANTS)}"
            )
        if method.method == "cass" and self.variant != "cass":
            raise OptionError("method cass compares with the image embedding that only --dense cass gives; add that")
        share = {"max": 1.0, "mean": 0.0, "mixed": method.aggregate_weight}[str(method.aggregate)]
        taper = method.crop_blend == "taper" and method.method != "tmpa_compat"
        assert method.cls_weight is not None  # `with_model_defaults` fills these
        assert method.logit_scale is not None
        self.settings = Settings(
            method.cls_weight, method.logit_scale, share, geometry.crop - geometry.stride if taper else 0
        )

    def queries(self) -> tuple[list[str], list[int]]:
        """The cleaned queries and the class of each."""
        method = self.method
        return queries_of(
            self.vocabulary, method.prompts or "all", prefix=bool(method.prefix), split_names=bool(method.split_names)
        )

    def frozen(self, bank: TextBank) -> ClipSegmenter:
        method, model = self.method, self.model
        if method.balance:
            bank = bank.balanced()
        external = None
        if self.variant in EXTERNAL_VARIANTS:
            external = ExternalViT(method.proxy_model, method.proxy_weights, model.device)
        upsampler = _upsampler(method, model)
        facts = _facts(self, bank, external)
        facts["upsampler_weights"] = hash_weights(upsampler.net) if isinstance(upsampler, JointBilateral) else None
        encoder = Encoder(model, self.variant, external, self.views, tiles_at_once=facts["tiles_at_once"])
        return ClipSegmenter(encoder, upsampler, bank, self.settings, self.views.geometry, facts)

    def given(self, *names: str, **renamed: str) -> dict[str, Any]:
        """The named method options that were given, as arguments for a settings object."""
        pairs = {**{n: n for n in names}, **renamed}
        values = {target: getattr(self.method, source) for target, source in pairs.items()}
        return {k: v for k, v in values.items() if v is not None}


def _adapted(parts: _Parts) -> Segmenter:
    """The segmenter of the chosen method."""
    name, model = parts.method.method, parts.model
    if name in NORM_METHODS:
        return _norm_segmenter(parts)
    queries, class_of = parts.queries()
    if name == "tpt":
        _, bank = build_prompt_stack(model, queries, class_of, mlmp.TENT_TEMPLATES)
        settings = tpt.TptSettings(scale=parts.settings.scale, **parts.given("steps", "lr"))
        return TptSegmenter(parts.frozen(bank), settings, tpt.PromptLearner(model.clip, model.tokenize, queries))
    frozen = parts.frozen(build_text_bank(model, queries, class_of, bare=bool(parts.method.bare)))
    if name == "none":
        return frozen
    if name == "cass":
        return CassSegmenter(frozen, CassSettings(**parts.given("cluster_height", "amount")))
    if name == "tmpa_compat":
        return TmpaCompatSegmenter(frozen, _compat_settings(parts))
    if parts.method.bias == "entropy":
        own = parts.settings
        return SceneTmpaSegmenter(frozen, SceneSettings(scale=own.scale, max_share=own.max_share))
    kind = SceneLearnedSegmenter if parts.method.scene_level else TmpaSegmenter
    return kind(frozen, _tmpa_settings(parts))


def _norm_segmenter(parts: _Parts) -> NormSegmenter:
    name, model, method, own = parts.method.method, parts.model, parts.method, parts.settings
    visual = model.clip.visual
    queries, class_of = parts.queries()
    common: dict[str, Any] = {"variant": parts.variant, "scale": own.scale, "joint": True}
    if name in ("tent", "mlmp"):
        stack, bank = build_prompt_stack(model, queries, class_of, _templates(method))
        prompts = bank.vectors[None] if method.templates == "mean" else stack
        settings = mlmp.MlmpSettings(
            **common, **parts.given("steps", "lr", "layers", "image_weight", "beta", "templates")
        )
        if name == "tent":
            settings = replace(settings, layers=1, image_weight=0.0)
        return NormSegmenter(
            parts.frozen(bank),
            settings,
            lambda images, sets: mlmp.adapt(visual, images, prompts, bank.vectors, settings, sets),
        )
    names = [clean(c.words[0]) for c in parts.vocabulary.classes]
    compat = name.endswith("_compat")
    if name.startswith("clipartt"):
        _, bank = build_prompt_stack(model, queries, class_of, mlmp.TENT_TEMPLATES)
        reference = encode_sentences(model.clip, model.tokenize, [f"a photo of a {n}" for n in names])
        options = pseudo.PseudoSettings(**common, compat=compat, **parts.given("steps", "lr", "top"))
        return NormSegmenter(
            parts.frozen(bank),
            options,
            lambda images, sets: pseudo.clipartt(
                visual,
                images,
                reference.to(images.device),
                names,
                lambda sentences: encode_sentences(model.clip, model.tokenize, sentences),
                options,
                sets,
            ),
        )
    templates = mlmp.MLMP_TEMPLATES if compat else (*mlmp.MLMP_TEMPLATES, pseudo.WATT_EXTRA_TEMPLATE)
    _, bank = build_prompt_stack(model, queries, class_of, templates)
    stack, _ = build_prompt_stack(model, names, list(range(len(names))), templates)
    rate = {"lr": 1e-3 if compat else 1e-4}
    options = pseudo.PseudoSettings(
        **common, compat=compat, **{**rate, **parts.given("lr", "inner_steps", "rounds", "mode")}
    )
    return NormSegmenter(
        parts.frozen(bank), options, lambda images, sets: pseudo.watt(visual, images, stack, options, sets)
    )


def _templates(method: MethodOptions) -> tuple[str, ...]:
    return mlmp.TENT_TEMPLATES if method.method == "tent" or method.templates == "single" else mlmp.MLMP_TEMPLATES


def _tmpa_settings(parts: _Parts) -> tmpa.TmpaSettings:
    own = parts.settings
    return tmpa.TmpaSettings(
        scale=own.scale,
        cls_weight=own.cls_weight,
        max_share=own.max_share,
        shift=parts.method.method == "tmpa_shift",
        **parts.given("steps", "lr", "lr_shift", "alpha_init", "alpha_max", "anchors", "absent", "keep_shares"),
    )


def _compat_settings(parts: _Parts) -> tmpa_compat.CompatSettings:
    own, rule, given = parts.settings, parts.vocabulary.background, parts.method.threshold
    threshold = 0.0 if rule is None else rule.threshold if given is None else given
    return tmpa_compat.CompatSettings(
        scale=own.scale,
        cls_weight=own.cls_weight,
        max_share=own.max_share,
        background=parts.vocabulary.background_index or 0,
        threshold=threshold,
        **parts.given("steps", "alpha_init", lr="lr_shift"),
    )


def _upsampler(method: MethodOptions, model: LoadedModel) -> Upsampler:
    if method.upsampler == "bilinear":
        return Bilinear()
    path = method.upsampler_weights
    if path is None and model.directory is not None:
        path = model.directory / f"{method.upsampler}.safetensors"
    dim = int(model.clip.visual.output_dim)
    net = load_jbu(str(method.upsampler), path or Path(f"{method.upsampler}.ckpt"), dim, model.device)
    return JointBilateral(net, method.upsampler_rank or None)


def _facts(parts: _Parts, bank: TextBank, external: ExternalViT | None) -> dict[str, Any]:
    """What decides the numbers, for digest and provenance: all options after defaults, and what they led to."""
    model, method, settings = parts.model, parts.method, parts.settings
    return {
        **parts.model_options.decisive(),
        **method.decisive(),
        "model": model.name,
        "weights": model.weights_hash,
        **model.facts,
        "device": model.device.type,
        "external": None if external is None else external.describe(),
        "max_share": settings.max_share,
        "crop_ramp": settings.ramp,
        "crop": parts.views.geometry.crop,
        "stride": parts.views.geometry.stride,
        "zoom": parts.views.zoom,
        "wide": list(parts.views.wide),
        "turned": parts.views.turned,
        "batch": parts.views.batch,
        "tiles_at_once": parts.model_options.tiles_at_once
        or suited(model, parts.views, learns=method.method in NORM_METHODS, queries=len(bank.vectors)),
        "queries": len(bank.vectors),
        "threads": torch.get_num_threads(),
    }
