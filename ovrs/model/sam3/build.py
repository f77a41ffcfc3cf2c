"""Put SAM 3, words and method together."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch

from ovrs.engine.tiling import TileGeometry
from ovrs.errors import OptionError, VocabularyError
from ovrs.methods import registry
from ovrs.methods.base import Settings
from ovrs.methods.sam3 import CocoSam3, Masks, Phrased
from ovrs.model.clip.fetching import tell_licence
from ovrs.model.clip.loading import resolve_device
from ovrs.model.sam3.backend import Sam3Backend
from ovrs.model.sam3.importing import LICENCE
from ovrs.model.sam3.prior import (
    ClipSpace,
    NeckSpace,
    PrototypeSpace,
    Sam3Space,
    load_alignment,
)
from ovrs.model.sam3.probe import read_verdict
from ovrs.model.sam3.segmenter import CocoSegmenter, MaskSegmenter, Phrases
from ovrs.model.sam3.weights import TINY, load
from ovrs.options import MethodOptions, ModelOptions, resolved
from ovrs.words.vocabulary import ClassEntry, Vocabulary

if TYPE_CHECKING:
    from ovrs.model.sam3.prior import PriorSpace


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a method's `segmenter` function is given."""

    backend: Sam3Backend
    phrases: Phrases
    settings: Masks
    """Of the method, complete."""
    geometry: TileGeometry
    facts: dict[str, object]
    vocabulary: Vocabulary


def build_sam3_segmenter(
    look: ModelOptions, method: MethodOptions | Settings, vocabulary: Vocabulary
) -> MaskSegmenter | CocoSegmenter:
    """Load SAM 3, encode the phrases, and build the method.

    Args:
        look: The network and its windows.
        method: Settings, or what was told of them.
        vocabulary: The classes.

    Raises:
        OptionError: See `ovrs.options.resolved`, windows of CLIP's, or no class to ask for.
        Sam3WeightsMissing, WeightsError: See `ovrs.model.sam3.weights`.
    """
    settings = method if isinstance(method, Settings) else resolved(look, method, vocabulary)
    _check(look, vocabulary)
    assert isinstance(settings, Masks)  # `resolved` has looked at the model's family
    parts = _parts(look, settings, vocabulary)
    module, _, name = registry.method(settings.method).build.partition(":")
    return cast("MaskSegmenter | CocoSegmenter", getattr(import_module(module), name)(parts))


def mask_segmenter(parts: Parts) -> MaskSegmenter:
    """`sam3` and `segearth_ov3`."""
    return MaskSegmenter(parts.backend, parts.phrases, parts.settings, parts.geometry, parts.facts)


def proc_segmenter(parts: Parts) -> MaskSegmenter:
    """`proc_sam3`."""
    return MaskSegmenter(parts.backend, parts.phrases, parts.settings, parts.geometry, parts.facts)


def coco_segmenter(parts: Parts) -> CocoSegmenter:
    """`coco_sam3`, with the prior's space and verdict that its settings name."""
    own = parts.settings
    assert isinstance(own, CocoSam3)  # of that method
    space = None if own.prior_space == "none" else prior_space(own.prior_space, parts.backend, own, parts.vocabulary)
    facts = {**parts.facts, "prior": None if space is None else space.describe()}
    verdict = None if own.probe is None else read_verdict(own.probe)
    return CocoSegmenter(parts.backend, parts.phrases, own, parts.geometry, facts, space=space, verdict=verdict)


def _parts(look: ModelOptions, settings: Masks, vocabulary: Vocabulary) -> Parts:
    network, name = load(look.model, getattr(torch, look.dtype))
    device = resolve_device(look.device)
    layer = settings.prior_layer if isinstance(settings, CocoSam3) else None
    backend = Sam3Backend(
        network,
        name,
        device,
        layer=layer,
        prompt_chunk=settings.prompt_chunk,
        present_floor=settings.present_floor if settings.decode == "present" else None,
    )
    if name != TINY:
        tell_licence(name, LICENCE, backend.weights_hash)
    phrases = _phrases(backend, vocabulary, settings)
    crop = look.crop or backend.image_size
    geometry = TileGeometry(crop=crop, stride=look.stride or crop * 3 // 4, crops_per_tile=1)
    facts = {
        **look.decisive(),
        **settings.decisive(),
        "model": backend.name,
        "weights": backend.weights_hash,
        "architecture": backend.architecture,
        "licence": None if name == TINY else LICENCE,
        "device": device.type,
        "prompt_chunk": backend.prompt_chunk,
        "prior_layer": backend.layer,
        "crop": crop,
        "stride": geometry.stride,
        "queries": len(phrases.bank.vectors),
        "threads": torch.get_num_threads(),
    }
    return Parts(
        backend=backend, phrases=phrases, settings=settings, geometry=geometry, facts=facts, vocabulary=vocabulary
    )


def prior_space(name: str, backend: Sam3Backend, options: CocoSam3, vocabulary: Vocabulary) -> PriorSpace:
    """Return a space by its name."""
    literal = options.prior_preset == "literal"
    if name == "sam3":
        return Sam3Space(literal)
    if name == "sam3_neck":
        return NeckSpace(literal)
    if name == "prototype":
        return PrototypeSpace()
    if name == "aligned":
        if options.alignment is None:
            raise OptionError("prior space aligned needs --set sam3.alignment=FILE.npz; `ovrs sam3 align` writes one")
        return load_alignment(options.alignment, backend.weights_hash, backend.layer, backend.device)
    return ClipSpace(_clip(backend, options, vocabulary))


def _clip(backend: Sam3Backend, options: CocoSam3, vocabulary: Vocabulary) -> Any:
    """Return the frozen dense CLIP of the `rs_clip` space, asked for the same phrases in the same order."""
    from ovrs.model.clip.build import build_clip_segmenter

    entries = [
        ClassEntry(name=words[0], synonyms=tuple(words[1:]))
        for _, words in _prompted(vocabulary, options.synonyms, options.background)
    ]
    if len(entries) < 2:
        raise OptionError("prior space rs_clip compares classes, and there is one; use --set sam3.prior_space=none")
    device = "cpu" if backend.device.type == "cpu" else str(backend.device)
    return build_clip_segmenter(
        ModelOptions(model=options.prior_model, pretrained=options.prior_pretrained, device=device),
        MethodOptions.model_validate({"method": "none", "prompts": "synonyms", "cls_weight": 0.0}),
        Vocabulary(name="prior", classes=tuple(entries)),
    )


def _check(look: ModelOptions, vocabulary: Vocabulary) -> None:
    foreign = [n for n in ("pretrained", "compile", "zoom", "wide", "turned", "pixel_size") if getattr(look, n)]
    if foreign:
        raise OptionError(f"SAM 3 does not use {', '.join(foreign)}: they belong to the CLIP methods")
    if len(vocabulary.classes) == 1:
        raise OptionError('one class alone would cover everything; add what else is there: --classes "car, background"')


def _prompted(vocabulary: Vocabulary, synonyms: int, background: str | None) -> list[tuple[int, list[str]]]:
    """Index and phrases (name first, no phrase twice) of every class that is asked for."""
    out = []
    for index, entry in enumerate(vocabulary.classes):
        if index == vocabulary.background_index and background != "prompt":
            continue
        out.append((index, list(entry.concepts[: 1 + synonyms])))
    if not out:
        raise VocabularyError("every class of this vocabulary is background: there is nothing to ask SAM 3 for")
    return out


def _phrases(backend: Sam3Backend, vocabulary: Vocabulary, settings: Masks) -> Phrases:
    synonyms = settings.synonyms if isinstance(settings, Phrased) else 0
    found = _prompted(vocabulary, synonyms, settings.background)
    phrases = [w for _, words in found for w in words]
    doubles = sorted({p for p in phrases if phrases.count(p) > 1})
    if doubles:
        raise VocabularyError(
            f"phrases stand in two classes: {', '.join(doubles)}; SAM 3 would give both the same mask. Take them out of one"
        )
    groups, at = [], 0
    for _, words in found:
        groups.append(tuple(range(at, at + len(words))))
        at += len(words)
    return Phrases(
        backend.encode_text(phrases),
        tuple(groups),
        tuple(vocabulary.class_names[i] for i, _ in found),
        tuple(i for i, _ in found),
        len(vocabulary.classes),
    )
