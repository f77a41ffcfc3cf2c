"""Model directories in open_clip's format. Everything comes from files in the directory; no hub is ever asked."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ovrs.errors import WeightsError
from ovrs.foreign import is_file, read_object
from ovrs.model.clip import architecture, checkpoint, tokenizer, tower
from ovrs.model.clip.dense import DENSE_VARIANTS
from ovrs.model.clip.foreign import place, shown
from ovrs.model.clip.parts import COLOUR_MEAN, COLOUR_STD
from ovrs.model.clip.upsample import UPSAMPLERS
from ovrs.options import MethodOptions

if TYPE_CHECKING:
    from pathlib import Path

    from ovrs.model.clip.tokenizer import Tokenize

CONFIG_FILE = "open_clip_config.json"
METADATA_FILE = "ovrs.json"
"""Optional, beside open_clip's files: this model's own defaults (dense variant, logit scale, λ), windows and hash."""

Checked = TypeVar("Checked", bound=BaseModel)

_CONFIG_KEYS = {"model_cfg", "preprocess_cfg", "stem"}
_PATHS = {"proxy_weights", "upsampler_weights"}
RECOMMENDABLE = frozenset(n for n, f in MethodOptions.model_fields.items() if f.default is None) - _PATHS
"""Options of methods that a model may recommend: those without a fixed default."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A network with what feeds it."""

    clip: Any
    """open_clip's network, float32 on the CPU."""
    tokenize: Tokenize
    mean: tuple[float, ...]
    """Of red, green and blue, 0 to 1."""
    std: tuple[float, ...]
    tokenizer: str
    """Name of the tokenizer, or the SHA-256 of its files."""
    description: dict[str, Any]
    """What decides the network's numbers beside its weights: open_clip's `model_cfg`."""
    own: Recommendations


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Windows(_Strict):
    zoom: float = Field(default=1.0, ge=0.25, le=8)
    stride: int = Field(default=1, ge=1)
    pixel_sizes: tuple[Annotated[float, Field(gt=0)], ...] = ()
    turned: bool = False


class Recommendations(_Strict):
    """The content of `ovrs.json`."""

    defaults: dict[str, Any] = {}
    """Options of methods by name."""
    windows: _Windows = _Windows()
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    """Of the weights, as `ovrs.model.clip.loading.hash_weights` counts it."""
    source: Any = None
    licence: Any = None
    description: Any = None


class _Preprocess(_Strict):
    """open_clip's `preprocess_cfg`. Windows are cut and enlarged by `ovrs`, so that only colours matter here."""

    mean: tuple[Annotated[float, Field(ge=-10, le=10)], ...] | None = Field(default=None, min_length=3, max_length=3)
    std: tuple[Annotated[float, Field(ge=1e-4, le=10)], ...] | None = Field(default=None, min_length=3, max_length=3)
    mode: str = Field(default="RGB", pattern="^RGB$")
    size: Any = None
    interpolation: Any = None
    resize_mode: Any = None
    fill_color: Any = None


def read(directory: Path) -> Source:
    """Load a model directory.

    Raises:
        WeightsError: A file is missing, damaged, unsafe, or does not fit the others; the vision tower is no ViT with a
            class token; or the text tower would have to be fetched from a hub.
        OptionError: The tokenizer needs a package that is not installed.
    """
    where = str(directory / CONFIG_FILE)
    config = _object(directory / CONFIG_FILE, directory)
    model, preprocess = described(config, where)
    if name := model["text_cfg"].get("hf_model_name"):
        raise WeightsError(
            f"{where}: the text tower is {shown(name)} of Hugging Face, which an open_clip directory does not describe; a "
            "directory's model never contacts a hub. Name the model as hf-hub:ORG/NAME, or by open_clip's name and tag"
        )
    stem = architecture.checked_stem(config.get("stem"), model, where)
    own = recommendations(directory)
    weights = checkpoint.find(directory)
    sketch = architecture.sketch(model, stem)
    checkpoint.require_fit(sketch, weights)
    tokenize, tokenizer_name = tokenizer.of_directory(directory, model["text_cfg"])
    ours = tower.is_plain(model) and weights.suffix == ".safetensors"  # the file's own tensors take their places
    clip = (architecture.unfilled if ours else architecture.build)(model, stem)
    checkpoint.fill(clip, weights)
    return Source(
        clip=clip,
        tokenize=tokenize,
        mean=tuple(preprocess.get("mean", COLOUR_MEAN)),
        std=tuple(preprocess.get("std", COLOUR_STD)),
        tokenizer=tokenizer_name,
        description=describe(model, stem),
        own=own,
    )


def described(config: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the content of `open_clip_config.json`.

    Returns:
        `model_cfg` with open_clip's types, and what `preprocess_cfg` says of colours (`mean` and `std`, or neither).

    Raises:
        WeightsError: Names `where`, the key and what is expected.
    """
    if unknown := sorted(config.keys() - _CONFIG_KEYS):
        raise WeightsError(f"{where} has unknown keys {shown(unknown)}; known are {', '.join(sorted(_CONFIG_KEYS))}")
    if not isinstance(config.get("model_cfg"), dict):
        raise WeightsError(
            f"{where}: model_cfg must be an object, {{…}}; take the configuration that came with the weights"
        )
    model = architecture.checked(config["model_cfg"], where)
    preprocess = _valid(_Preprocess, config.get("preprocess_cfg", {}), f"{where}: preprocess_cfg")
    return model, preprocess.model_dump(include={"mean", "std"}, exclude_none=True)


def recommendations(directory: Path) -> Recommendations:
    """Read `ovrs.json`; without the file nothing is recommended.

    Raises:
        WeightsError: It is damaged, or recommends what no method or window takes.
    """
    file = directory / METADATA_FILE
    if not os.path.lexists(file):
        return Recommendations()
    own = _valid(Recommendations, _object(file, directory), str(file))
    if unknown := sorted(own.defaults.keys() - RECOMMENDABLE):
        raise WeightsError(
            f"{file}: defaults has {shown(unknown)}, which no model can recommend; it may hold "
            f"{', '.join(sorted(RECOMMENDABLE))}"
        )
    method = _valid(MethodOptions, own.defaults, f"{file}: defaults")
    values = {name: getattr(method, name) for name in own.defaults}
    if wild := sorted(n for n, v in values.items() if isinstance(v, float) and not math.isfinite(v)):
        raise WeightsError(f"{file}: defaults.{wild[0]} must be a finite number")
    for name, known in (("dense", DENSE_VARIANTS), ("upsampler", UPSAMPLERS)):
        if values.get(name) is not None and values[name] not in known:
            raise WeightsError(f"{file}: defaults.{name} is {values[name]!r}; choose one of {', '.join(known)}")
    return own.model_copy(update={"defaults": values})


def describe(model: dict[str, Any], stem: dict[str, Any] | None = None) -> dict[str, Any]:
    """What decides a network's numbers beside its weights, with open_clip's defaults filled in."""
    filled = dict(model)
    if tower.is_plain(model):
        filled["vision_cfg"] = {**tower.VISION_REST, **tower.VISION_DEFAULTS, **model["vision_cfg"]}
        filled["text_cfg"] = {**tower.TEXT_REST, **tower.TEXT_DEFAULTS, **model["text_cfg"]}
        return filled if stem is None else {**filled, "stem": stem}
    import open_clip

    for key, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        filled[key] = asdict(kind(**model[key]))
    return filled if stem is None else {**filled, "stem": stem}


def _object(file: Path, directory: Path) -> dict[str, Any]:
    if not os.path.lexists(file):
        raise WeightsError(
            f"{directory} is no model directory in open_clip's format: {file.name} is missing{_hint(directory)}"
        )
    try:
        return read_object(file)
    except ValueError as error:
        raise WeightsError(f"{error}; install or download the model again") from error


def _hint(directory: Path) -> str:
    """What the directory seems to be instead."""
    if is_file(directory / "config.json"):
        return f". config.json is transformers' format: `ovrs model import {directory} -o NEW` converts it, and --model NEW loads it"
    return ""


def _valid(kind: type[Checked], content: Any, where: str) -> Checked:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(
            f"{where}: {place(first['loc']) or 'content'}: {first['msg']} (got {shown(first['input'])})"
        ) from error
