"""Model directories in open_clip's format. Everything comes from files in the directory; no hub is ever asked."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ovrs.errors import WeightsError
from ovrs.foreign import is_file, read_object
from ovrs.methods import recommended
from ovrs.model.clip import architecture, checkpoint, tokenizer, tower
from ovrs.model.clip.foreign import place, shown
from ovrs.model.clip.singles import COLOUR_MEAN, COLOUR_STD
from ovrs.yamlfile import STRICT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovrs.methods.recommended import Recommendations
    from ovrs.model.clip.tokenizer import Tokenize

CONFIG_FILE = "open_clip_config.json"
Checked = TypeVar("Checked", bound=BaseModel)

_CONFIG_KEYS = {"model_cfg", "preprocess_cfg", "stem"}


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
    description: Mapping[str, Any]
    """What decides the network's numbers beside its weights: open_clip's `model_cfg`."""
    own: Recommendations


class _Preprocess(BaseModel):
    """open_clip's `preprocess_cfg`. Windows are cut and enlarged by `ovrs`, so that only colours matter here."""

    model_config = STRICT

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
    own = recommended.read(directory)
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


def described(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
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


def describe(model: Mapping[str, Any], stem: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return what decides a network's numbers beside its weights, with open_clip's defaults filled in."""
    filled = dict(model)
    if tower.is_plain(model):
        filled["vision_cfg"] = {**tower.VISION_REST, **tower.VISION_DEFAULTS, **model["vision_cfg"]}
        filled["text_cfg"] = {**tower.TEXT_REST, **tower.TEXT_DEFAULTS, **model["text_cfg"]}
        return filled if stem is None else {**filled, "stem": stem}
    import open_clip

    for key, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        filled[key] = asdict(kind(**model[key]))
    return filled if stem is None else {**filled, "stem": stem}


def _object(file: Path, directory: Path) -> Mapping[str, Any]:
    if not os.path.lexists(file):
        raise WeightsError(
            f"{directory} is no model directory in open_clip's format: {file.name} is missing{_hint(directory)}"
        )
    try:
        return read_object(file)
    except ValueError as error:
        raise WeightsError(f"{error}; install or download the model again") from error


def _hint(directory: Path) -> str:
    """Tell what the directory seems to be instead."""
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
