"""Put SAM 3, words and method together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ovrs.engine.tiling import TileGeometry
from ovrs.errors import OptionError, VocabularyError
from ovrs.methods.registry import SAM3_METHOD_NAMES
from ovrs.model.clip.loading import resolve_device
from ovrs.model.sam3.backend import Sam3Backend
from ovrs.model.sam3.prior import (
    ClipSpace,
    NeckSpace,
    PrototypeSpace,
    Sam3Space,
    load_alignment,
)
from ovrs.model.sam3.probe import read_verdict
from ovrs.model.sam3.segmenter import CocoSegmenter, MaskSegmenter, Phrases
from ovrs.model.sam3.weights import load
from ovrs.options import MethodOptions, ModelOptions, Sam3Options
from ovrs.words.vocabulary import ClassEntry, Vocabulary

if TYPE_CHECKING:
    from ovrs.model.sam3.prior import PriorSpace

_SHARED = {"method", "sam3", "threshold", "adaptation", "scene_tiles"}
"""Method options that mean something here; all others belong to the CLIP methods."""


def build_sam3_segmenter(
    model: ModelOptions, method: MethodOptions, vocabulary: Vocabulary
) -> MaskSegmenter | CocoSegmenter:
    """Load SAM 3, encode the phrases, and build the method.

    Raises:
        OptionError: An unknown method, an option of the CLIP methods, or no class to ask for.
        Sam3WeightsMissing, WeightsError: See `ovrs.model.sam3.weights`.
    """
    _check(model, method, vocabulary)
    options = _with_defaults(method)
    network, name = load(model.model, getattr(torch, model.dtype))
    device = resolve_device(model.device)
    backend = Sam3Backend(network, name, device, layer=options.prior_layer, prompt_chunk=options.prompt_chunk)
    phrases = _phrases(backend, vocabulary, method.method, options)
    crop = model.crop or backend.image_size
    geometry = TileGeometry(crop=crop, stride=model.stride or crop * 3 // 4, crops_per_tile=1)
    facts = {
        **model.decisive(),
        **{name: value for name, value in method.decisive().items() if name in _SHARED},
        "adaptation": method.adaptation or "tile",
        "model": backend.name,
        "weights": backend.weights_hash,
        "architecture": backend.architecture,
        "device": device.type,
        "sam3": {**options.decisive(), "prompt_chunk": backend.prompt_chunk, "prior_layer": backend.layer},
        "crop": crop,
        "stride": geometry.stride,
        "queries": len(phrases.bank.vectors),
        "threads": torch.get_num_threads(),
    }
    parts = (backend, phrases, options, geometry, facts)
    if method.method != "coco_sam3":
        return MaskSegmenter(*parts, method=method.method)
    space = None if options.prior_space == "none" else prior_space(options.prior_space, backend, options, vocabulary)
    facts["prior"] = None if space is None else space.describe()
    verdict = None if options.probe is None else read_verdict(options.probe)
    return CocoSegmenter(*parts, space=space, verdict=verdict)


def prior_space(name: str, backend: Sam3Backend, options: Sam3Options, vocabulary: Vocabulary) -> PriorSpace:
    """A space by its name."""
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


def _clip(backend: Sam3Backend, options: Sam3Options, vocabulary: Vocabulary) -> Any:
    """The frozen dense CLIP of the `rs_clip` space, asked for the same phrases in the same order."""
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
        MethodOptions(method="none", prompts="synonyms", cls_weight=0.0),
        Vocabulary(name="prior", classes=tuple(entries)),
    )


def _check(model: ModelOptions, method: MethodOptions, vocabulary: Vocabulary) -> None:
    if method.method not in SAM3_METHOD_NAMES:
        raise OptionError(
            f"method {method.method!r} is for CLIP models; with SAM 3 choose one of {', '.join(SAM3_METHOD_NAMES)}"
        )
    fields = type(method).model_fields
    foreign = sorted(n for n in fields if n not in _SHARED and getattr(method, n) != fields[n].default)
    foreign += [n for n in ("pretrained", "compile", "zoom", "wide", "turned", "pixel_size") if getattr(model, n)]
    if foreign:
        raise OptionError(
            f"SAM 3 does not use {', '.join(foreign)}: they belong to the CLIP methods (see --set sam3.…)"
        )
    if method.adaptation == "scene" and method.method != "coco_sam3":
        raise OptionError(f"method {method.method} does not adapt to a scene; only coco_sam3 (its prior is probed)")
    if len(vocabulary.classes) == 1:
        raise OptionError('one class alone would cover everything; add what else is there: --classes "car, background"')


def _with_defaults(method: MethodOptions) -> Sam3Options:
    """SegEarth-OV3 asks for every phrase, and for the background too; CoCo-SAM3 and plain SAM 3 for names."""
    rules = method.method == "segearth_ov3"
    wanted: dict[str, object] = {
        "structure_prompts": "all" if rules else "name",
        "background": "prompt" if rules else "threshold",
    }
    return method.sam3.model_copy(update={k: v for k, v in wanted.items() if getattr(method.sam3, k) is None})


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


def _phrases(backend: Sam3Backend, vocabulary: Vocabulary, method: str, options: Sam3Options) -> Phrases:
    found = _prompted(vocabulary, 0 if method == "sam3" else options.synonyms, options.background)
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
