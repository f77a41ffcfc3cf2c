"""Load a CLIP model by open_clip's name, from a directory in its format, or the bundled one. Never unpickles."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import warnings
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ovrs.errors import OptionError, WeightsError
from ovrs.model.dense import check_vit
from ovrs.model.stem import ConvStem

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from ovrs.options import ModelOptions

log = logging.getLogger(__name__)

BUNDLED = "bundled"
CONFIG_FILE = "open_clip_config.json"
METADATA_FILE = "ovrs.json"
"""Optional, beside open_clip's files: this model's own defaults (dense variant, logit scale, λ), windows and hash."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network in evaluation mode with everything needed to feed it."""

    clip: Any
    """open_clip's CLIP: `visual`, and the text tower's parts."""
    tokenize: Callable[[list[str]], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    weights_hash: str
    """SHA-256 over all tensors: names, shapes and float32 bytes."""
    device: torch.device
    dtype: torch.dtype
    defaults: dict[str, Any] = field(default_factory=dict)
    """Method options as the model's makers recommend: `dense`, `cls_weight`, `logit_scale`, …"""
    windows: dict[str, Any] = field(default_factory=dict)
    """As the model's makers recommend: `zoom`, `stride`, `pixel_sizes`, `turned` (`ovrs.model.windows`); empty for the papers' rule."""
    directory: Path | None = None
    """Where it was loaded from, if from a directory: an upsampler of its own may lie there."""


def load(options: ModelOptions) -> LoadedModel:
    """Load the model that the options name.

    Raises:
        WeightsError: Unknown, missing or unsafe weights, or no ViT; the message names the ways to get one.
        OptionError: The device does not exist.
    """
    device = resolve_device(options.device)
    directory = _directory(options)
    clip, tokenize, preprocess = _from_directory(directory) if directory else _from_name(options)
    check_vit(clip.visual)
    clip.eval().requires_grad_(False)
    weights_hash = hash_weights(clip)
    if isinstance(clip.visual.conv1, ConvStem):
        clip.visual.conv1.fuse()
    dtype: torch.dtype = getattr(torch, options.dtype)
    clip.visual.to(device=device, dtype=dtype)
    if options.compile:
        for block in clip.visual.transformer.resblocks:
            block.compile(dynamic=False)  # compiled at first use; the state dictionary keeps its names
    own = _metadata(directory)
    if own.get("sha256", weights_hash) != weights_hash:
        raise WeightsError(
            f"the weights in {directory} are damaged: their SHA-256 is not the one in {METADATA_FILE}; install them again"
        )
    defaults = own.get("defaults", {})
    name = options.model if directory is None or options.model == BUNDLED else directory.name
    label = f"{name}:{options.pretrained}" if options.pretrained else name
    return LoadedModel(
        clip,
        tokenize,
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
        label,
        weights_hash,
        device,
        dtype,
        defaults,
        own.get("windows", {}),
        directory,
    )


def _metadata(directory: Path | None) -> dict[str, Any]:
    file = None if directory is None else directory / METADATA_FILE
    content: dict[str, Any] = json.loads(file.read_text("utf-8")) if file and file.is_file() else {}
    return content


def bundled_directory() -> Path:
    """Where the bundled model lies."""
    return Path(str(resources.files("ovrs"))) / "assets"


def _directory(options: ModelOptions) -> Path | None:
    if options.model == BUNDLED:
        return bundled_directory()
    path = Path(options.model)
    return path if path.is_dir() else None


def _from_directory(directory: Path) -> tuple[Any, Any, dict[str, Any]]:
    import open_clip
    from safetensors.torch import load_file

    config_file, weights = directory / CONFIG_FILE, directory / "open_clip_model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise WeightsError(f"{directory} is no model directory in open_clip's format: {file.name} is missing")
    config = json.loads(config_file.read_text("utf-8"))
    model_config = dict(config["model_cfg"])
    try:
        clip = open_clip.CLIP(**model_config)
        if "stem" in config:
            clip.visual.conv1 = ConvStem(**config["stem"], width=model_config["vision_cfg"]["width"])
        clip.load_state_dict({k: v.float() for k, v in load_file(weights).items()}, strict=True)
    except (TypeError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{directory}: weights and {CONFIG_FILE} do not fit each other: {error}") from error
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=clip.context_length)
    preprocess = config.get("preprocess_cfg", {})
    return (
        clip,
        tokenizer,
        {
            "mean": preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN),
            "std": preprocess.get("std", open_clip.OPENAI_DATASET_STD),
        },
    )


def _from_name(options: ModelOptions) -> tuple[Any, Any, dict[str, Any]]:
    import open_clip

    known = open_clip.list_models()
    if options.model not in known:
        raise WeightsError(
            f"model {options.model!r} is neither 'bundled', nor a directory, nor one of open_clip's {len(known)} names "
            f'(such as ViT-B-16); `python -c "import open_clip; print(open_clip.list_pretrained())"` lists them'
        )
    if not options.pretrained:
        tags = open_clip.list_pretrained_tags_by_model(options.model)
        raise WeightsError(f"model {options.model} needs --pretrained TAG, one of: {', '.join(tags)}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # OpenAI tags carry their own activation
            clip, _, preprocess = open_clip.create_model_and_transforms(
                options.model, pretrained=options.pretrained, weights_only=True
            )
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"weights {options.pretrained!r} of {options.model} cannot be loaded: {error}. Without internet, point --model "
            f"to a local directory that holds {CONFIG_FILE} and open_clip_model.safetensors"
        ) from error
    normalise = preprocess.transforms[-1]
    return clip, open_clip.get_tokenizer(options.model), {"mean": normalise.mean, "std": normalise.std}


def resolve_device(name: str) -> torch.device:
    """The device of an option: `auto` takes `OVRS_DEVICE`, else a GPU where there is one.

    Raises:
        OptionError: No such device.
    """
    if name == "auto" and os.environ.get("OVRS_DEVICE"):
        name = os.environ["OVRS_DEVICE"]  # a worker says which of a machine's GPUs is its own
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r} is unknown; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"--device {name}: PyTorch sees no CUDA device here; use --device cpu")
    return device


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of the state dictionary as float32, independent of file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
