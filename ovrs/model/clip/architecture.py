"""Networks by open_clip's description: checked, tried without memory on the meta device, then built."""

from __future__ import annotations

import inspect
import json
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from ovrs.errors import WeightsError
from ovrs.model.clip import tower, towers
from ovrs.model.clip.dense import check_vit, patch_size
from ovrs.model.clip.foreign import FAULTS, one_line, place, shown
from ovrs.model.clip.lite import SCALES
from ovrs.model.clip.stem import PATCH, ConvStem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_LARGEST = {
    "embed_dim": 65536,
    "layers": 512,
    "width": 65536,
    "head_width": 65536,
    "heads": 4096,
    "mlp_ratio": 64,
    "patch_size": 1024,
    "image_size": 16384,
    "context_length": 16384,
    "vocab_size": 10_000_000,
    "hidden": 65536,
}
"""Larger values are slips: no published network comes near them, and building one would hang."""

_SMALL_TEXT = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


def checked(config: Mapping[str, Any], where: str) -> dict[str, object]:
    """Check open_clip's `model_cfg`: known keys, right types, sizes that a network can have.

    Returns:
        The same with open_clip's types; keys that are null are left out.

    Raises:
        WeightsError: Names `where`, the key, its value and what is expected.
    """
    given = {key: value for key, value in config.items() if value is not None}
    if tower.is_plain(given):
        return _checked_plain(given, where)
    import open_clip

    known = {*inspect.signature(open_clip.CLIP).parameters, "custom_text"} - {"cast_dtype", "output_dict"}
    if unknown := sorted(given.keys() - known):
        raise WeightsError(
            f"{where}: model_cfg has unknown keys {shown(unknown)}; known are {', '.join(sorted(known))}"
        )
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in given:
            raise WeightsError(f"{where}: model_cfg lacks {key}; take the configuration that came with the weights")
    for key, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        given[key] = _tower(given[key], kind, f"{where}: model_cfg.{key}")
    for key, expected in _types(open_clip.CLIP).items():
        if key in given:
            given[key] = _value(given[key], expected, f"{where}: model_cfg.{key}")
    _require_size("embed_dim", given["embed_dim"], f"{where}: model_cfg")
    return given


def _checked_plain(given: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("vision_cfg", "text_cfg"):
        given[key] = {n: float(v) if n == "mlp_ratio" else v for n, v in given[key].items()}
        for name, value in given[key].items():
            _require_size(name, value, f"{where}: model_cfg.{key}")
    _require_size("embed_dim", given["embed_dim"], f"{where}: model_cfg")
    return given


def _types(kind: Any) -> dict[str, object]:
    plain = ("embed_dim", "quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")
    annotated = inspect.signature(kind).parameters
    return {**{name: annotated[name].annotation for name in plain}, "custom_text": bool}


def _value(value: Any, expected: Any, where: str) -> Any:
    try:
        return TypeAdapter(expected, config=ConfigDict(allow_inf_nan=False)).validate_json(
            json.dumps(value), strict=True
        )
    except ValidationError as error:
        raise WeightsError(f"{where}: {error.errors()[0]['msg']} (got {shown(value)})") from error


def _tower(values: Any, kind: Any, where: str) -> dict[str, object]:
    """Return the keys of a tower's description, as open_clip's dataclass types them."""
    if not isinstance(values, dict):
        raise WeightsError(f"{where} must be an object, {{…}}, got {shown(values)}")
    given = {str(key): value for key, value in values.items() if value is not None}
    if "timm_proj" in values and values["timm_proj"] is None:
        given["timm_proj"] = ""  # null says: no projection beside the trunk's own head; open_clip's default is another
    typed: Any = checked_dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False))(kind)
    try:
        values_of = asdict(TypeAdapter(typed).validate_json(json.dumps(given), strict=True))
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{where}.{place(first['loc'])}: {first['msg']} (got {shown(first['input'])})") from error
    for name, value in values_of.items():
        if name in given:
            _require_size(name, value, where)
    return {name: values_of[name] for name in given}


def _require_size(name: str, value: Any, where: str) -> None:
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if name in _LARGEST and not 0 < number <= _LARGEST[name]:
            raise WeightsError(f"{where}.{name} must lie above 0 and at most at {_LARGEST[name]}, got {shown(value)}")


def build(config: Mapping[str, Any], stem: Mapping[str, Any] | None = None) -> Any:
    """Make the described network with random weights. It never loads others, neither of timm nor of Hugging Face.

    Plain towers are ours, in open_clip's layout; all others are open_clip's.

    Args:
        config: open_clip's `model_cfg`.
        stem: Arguments of `ovrs.model.clip.stem.ConvStem`, which then stands in the place of the patch embedding.

    Raises:
        WeightsError: The description makes no network.
    """
    plain = tower.is_plain(config)
    given = (
        dict(config) if plain else {**config, "vision_cfg": {**config["vision_cfg"], "timm_model_pretrained": False}}
    )
    try:
        clip = _kind(given)(**given)
        if stem is not None:
            clip.visual.conv1 = ConvStem(**stem, width=given["vision_cfg"]["width"])
    except FAULTS as error:
        raise WeightsError(f"no network can be built by this description: {one_line(error)}") from error
    return clip


def _kind(given: dict[str, Any]) -> Any:
    """Return the class of the described network; takes `custom_text` out of the description."""
    if tower.is_plain(given):
        return tower.Clip
    import open_clip

    return open_clip.CustomTextCLIP if given.pop("custom_text", False) else open_clip.CLIP


def checked_stem(stem: Any, config: Mapping[str, Any], where: str) -> dict[str, object] | None:
    """Check the arguments of a convolutional stem.

    Raises:
        WeightsError: No such stem, or it does not belong to patches of this size.
    """
    if stem is None:
        return None
    if not isinstance(stem, dict) or not {"timm_model"} <= stem.keys() <= {"timm_model", "hidden"}:
        raise WeightsError(f"{where}: stem must be an object with timm_model, and hidden if need be, got {shown(stem)}")
    name = stem["timm_model"]
    if not isinstance(name, str) or ":" in name or not _is_known(name):
        raise WeightsError(f"{where}: stem.timm_model must be one of timm's names, got {shown(name)}")
    if "hidden" in stem:
        _require_size("hidden", _value(stem["hidden"], int, f"{where}: stem.hidden"), f"{where}: stem")
    if config["vision_cfg"].get("patch_size", PATCH) != PATCH:
        raise WeightsError(f"{where}: a stem gives patches of {PATCH} pixels, so vision_cfg.patch_size must be {PATCH}")
    return stem


def _is_known(name: str) -> bool:
    if name in SCALES:
        return True
    import timm

    return bool(timm.is_model(name))


def sketch(config: Mapping[str, Any], stem: Mapping[str, Any] | None = None, *, text: bool = True) -> Any:
    """Build the network on the meta device, where tensors have shapes and no memory, and refuse unfit vision towers.

    `text=False` puts a small text tower in the place of the described one.

    Raises:
        WeightsError: The description makes no network, or its vision tower is none that dense features fit.
    """
    vision = config["vision_cfg"]
    if isinstance(vision.get("layers"), (list, tuple)):
        raise towers.unsupported("this one is a ResNet")
    if vision.get("timm_model_name"):
        _require_timm(vision)
    given = {key: value for key, value in config.items() if text or key not in ("custom_text", "multimodal_cfg")}
    if not text:
        given["text_cfg"] = _SMALL_TEXT
    clip = unfilled(given, stem)
    if vision.get("timm_model_name"):
        towers.require_supported(clip.visual)
        return clip
    check_vit(clip.visual)
    rows, cols = clip.visual.grid_size
    if rows != cols or rows < 1 or patch_size(clip.visual) < 1:
        raise towers.unsupported(f"this one sees {rows} x {cols} patches, not a square of at least one")
    return clip


def unfilled(config: Mapping[str, Any], stem: Mapping[str, Any] | None = None) -> Any:
    """`build` on the meta device: shapes without memory or values.

    Raises:
        WeightsError: The description makes no network.
    """
    with torch.device("meta"), tower.Unfilled() if tower.is_plain(config) else nullcontext():
        return build(config, stem)


def _require_timm(vision: Mapping[str, Any]) -> None:
    """Refuse timm's networks that are known by name not to fit, before one of a billion parameters is described."""
    import timm

    name = vision["timm_model_name"]
    if ":" in name or not timm.is_model(name):
        raise towers.unsupported(f"this one is {shown(name)}, which timm does not know")
    if vision.get("timm_pool") != "map" or vision.get("timm_proj", "linear") not in (None, "", "none"):
        raise towers.unsupported(f"this one is timm's {name}")


def activations(clip: Any) -> dict[str, str]:
    """Names of the activation in the vision tower and in the text tower, for provenance."""
    text = getattr(clip, "text", clip)
    if hasattr(clip, "activations"):
        return dict(clip.activations)
    visual = clip.visual
    seen = visual.activation if isinstance(visual, towers.DenseTower) else _activation(visual.transformer)
    return {"vision": seen, "text": _activation(getattr(text, "transformer", None))}


def _activation(transformer: nn.Module | None) -> str:
    blocks = getattr(transformer, "resblocks", None)
    return repr(blocks[-1].mlp.gelu) if blocks is not None else type(transformer).__name__
