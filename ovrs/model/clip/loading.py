"""Load a CLIP model: the bundled one, from a directory, by open_clip's name, or from a hub. Nothing is unpickled into code."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_file
from ovrs.methods.recommended import BUNDLED, LOCAL, METADATA_FILE, place_of
from ovrs.model.clip import architecture, directory, fetching, published, tips, towers
from ovrs.model.clip.cards import own_card
from ovrs.model.clip.known import table
from ovrs.model.clip.probe import require_sound
from ovrs.model.clip.stem import ConvStem
from ovrs.provenance import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from ovrs.model.clip.directory import Source
    from ovrs.options import ModelOptions


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
    windows: Mapping[str, Any] = field(default_factory=dict)
    """As the model's makers recommend (`ovrs.model.clip.windows`); empty for the papers' rule."""
    directory: Path | None = None
    """Where it was loaded from, if from a directory: an upsampler of its own may lie there."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What decides the numbers beside the weights: `architecture` (SHA-256 of open_clip's description), `activation` of
    both towers, `tokenizer`, and `mean` and `std` of the colours."""
    licence: str | None = None
    """Of the weights, where it is told."""


def load(options: ModelOptions) -> LoadedModel:
    """Load the model that the options name.

    Raises:
        WeightsError: Unknown, missing, damaged or unsafe weights, or no ViT; the message names the ways to get one.
        OptionError: The device does not exist, or options contradict each other.
    """
    device = resolve_device(options.device)
    place = _directory(options)
    source = _source(options, place)
    clip = source.clip.eval().requires_grad_(False)
    clip.visual = towers.adapted(clip.visual)
    weights_hash = hash_weights(clip)
    if (source.own.sha256 or weights_hash).lower() != weights_hash:
        raise WeightsError(
            f"the weights in {place} are damaged: their SHA-256 is not the one in {METADATA_FILE}; "
            "install them again (a folder of the cache is made anew when it is removed)"
        )
    if isinstance(getattr(clip.visual, "conv1", None), ConvStem):
        clip.visual.conv1.fuse()
    dtype: torch.dtype = getattr(torch, options.dtype)
    clip.visual.to(device=device, dtype=dtype)
    require_sound(clip, source.tokenize, options.dtype)
    if options.compile:
        own = isinstance(clip.visual, towers.DenseTower)
        for block in clip.visual.blocks() if own else clip.visual.transformer.resblocks:
            block.compile(dynamic=False)  # compiled at first use; the state dictionary keeps its names
    entry = table().models.get(options.model)
    name = options.model if place is None or entry or options.model == BUNDLED else place.name
    told = source.own.licence if isinstance(source.own.licence, str) else None
    licence = told or (entry.licence if entry else None)
    if name != BUNDLED:  # its licence comes with the program
        fetching.tell_licence(name, licence, weights_hash)
    return LoadedModel(
        clip,
        source.tokenize,
        source.mean,
        source.std,
        f"{name}:{options.pretrained}" if options.pretrained else name,
        weights_hash,
        device,
        dtype,
        source.own.windows.model_dump(exclude_unset=True),
        place,
        _facts(source),
        licence,
    )


def _source(options: ModelOptions, place: Path | None) -> Source:
    if place is None:
        return published.read(options.model, options.pretrained)
    return tips.read(place) if tips.is_folder(place) else directory.read(place)


def _facts(source: Source) -> Mapping[str, Any]:
    return {
        "architecture": hashlib.sha256(canonical(source.description).encode()).hexdigest(),
        "activation": architecture.activations(source.clip),
        "tokenizer": source.tokenizer,
        "mean": list(source.mean),
        "std": list(source.std),
    }


def _directory(options: ModelOptions) -> Path | None:
    """Return the directory that the options name, or that a name of the table stands for; None for open_clip's names and hubs."""
    place = place_of(options.model)
    if place is not None:
        if options.pretrained is not None:
            raise OptionError(f"--pretrained is for open_clip's names; --model {options.model} brings its own weights")
        return place
    named = Path(options.model.removeprefix(LOCAL))
    if is_file(named):
        raise WeightsError(
            f"--model {named} is a file; make it a directory with `ovrs model import {named} -o NEW` and give --model NEW, "
            f"or name its architecture too: --model ViT-B-32 --pretrained {named}"
        )
    if options.model.startswith(LOCAL):
        raise WeightsError(f"--model {options.model}: there is no directory {named}")
    fetched = fetching.imported_directory(options.model)
    if fetched is not None and options.pretrained is not None:
        raise OptionError(f"--pretrained is for open_clip's names; --model {options.model} brings its own weights")
    return fetched


def resolve_device(name: str) -> torch.device:
    """Return the device of an option: `auto` takes `OVRS_DEVICE`, else a GPU where there is one; a local worker its own card.

    Raises:
        OptionError: No such device.
    """
    if name == "auto" and os.environ.get("OVRS_DEVICE"):
        name = os.environ["OVRS_DEVICE"]  # a worker says which of a machine's GPUs is its own
    if name == "auto":
        return own_card(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r} is unknown; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"--device {name}: PyTorch sees no CUDA device here; use --device cpu")
    return own_card(device)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of the state dictionary as float32, independent of file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
