"""Load a CLIP model by open_clip's name, from a directory in its format, or the bundled one. Never unpickles."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_directory, is_file
from ovrs.model import architecture, checkpoint, directory
from ovrs.model.foreign import FAULTS, one_line
from ovrs.model.probe import require_sound
from ovrs.model.stem import ConvStem
from ovrs.model.tokenizer import CLIP_BPE
from ovrs.provenance import canonical

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from ovrs.model.directory import Source
    from ovrs.options import ModelOptions

log = logging.getLogger(__name__)

BUNDLED = "bundled"


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
    facts: dict[str, Any] = field(default_factory=dict)
    """What decides the numbers beside the weights: `architecture` (SHA-256 of open_clip's description), `activation` of
    both towers, `tokenizer`, and `mean` and `std` of the colours."""


def load(options: ModelOptions) -> LoadedModel:
    """Load the model that the options name.

    Raises:
        WeightsError: Unknown, missing, damaged or unsafe weights, or no ViT; the message names the ways to get one.
        OptionError: The device does not exist, or options contradict each other.
    """
    device = resolve_device(options.device)
    place = _directory(options)
    source = _from_name(options) if place is None else directory.read(place)
    clip = source.clip.eval().requires_grad_(False)
    weights_hash = hash_weights(clip)
    if (source.own.sha256 or weights_hash).lower() != weights_hash:
        raise WeightsError(
            f"the weights in {place} are damaged: their SHA-256 is not the one in {directory.METADATA_FILE}; "
            "install them again"
        )
    if isinstance(clip.visual.conv1, ConvStem):
        clip.visual.conv1.fuse()
    dtype: torch.dtype = getattr(torch, options.dtype)
    clip.visual.to(device=device, dtype=dtype)
    require_sound(clip, source.tokenize, options.dtype)
    if options.compile:
        for block in clip.visual.transformer.resblocks:
            block.compile(dynamic=False)  # compiled at first use; the state dictionary keeps its names
    name = options.model if place is None or options.model == BUNDLED else place.name
    return LoadedModel(
        clip,
        source.tokenize,
        source.mean,
        source.std,
        f"{name}:{options.pretrained}" if options.pretrained else name,
        weights_hash,
        device,
        dtype,
        source.own.defaults,
        source.own.windows.model_dump(exclude_unset=True),
        place,
        _facts(source),
    )


def _facts(source: Source) -> dict[str, Any]:
    return {
        "architecture": hashlib.sha256(canonical(source.description).encode()).hexdigest(),
        "activation": architecture.activations(source.clip),
        "tokenizer": source.tokenizer,
        "mean": list(source.mean),
        "std": list(source.std),
    }


def bundled_directory() -> Path:
    """Where the bundled model lies."""
    return Path(str(resources.files("ovrs"))) / "assets"


def _directory(options: ModelOptions) -> Path | None:
    """The directory that the options name; None for one of open_clip's names."""
    place = bundled_directory() if options.model == BUNDLED else Path(options.model)
    if not is_directory(place):
        if is_file(place):
            raise WeightsError(
                f"--model {place} is a file; name its architecture too: --model ViT-B-32 --pretrained {place}, or put it "
                f"into a directory with its {directory.CONFIG_FILE}"
            )
        return None
    if options.pretrained is not None:
        raise OptionError(f"--pretrained is for open_clip's names; --model {options.model} brings its own weights")
    return place


def _from_name(options: ModelOptions) -> Source:
    """A model by open_clip's name. Nothing is fetched before the name, the tag and the vision tower are known to fit."""
    import open_clip

    known, name, tag = open_clip.list_models(), options.model, options.pretrained
    if name not in known:
        raise WeightsError(
            f"model {name!r} is neither 'bundled', nor a directory, nor one of open_clip's {len(known)} names "
            f'(such as ViT-B-16); `python -c "import open_clip; print(open_clip.list_pretrained())"` lists them'
        )
    config = open_clip.get_model_config(name)
    plain_text = not config["text_cfg"].get("hf_model_name") and "multimodal_cfg" not in config
    sketch = architecture.sketch(config, text=plain_text)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tag:
        raise WeightsError(f"model {name} needs --pretrained TAG, one of: {', '.join(tags)}")
    published = open_clip.get_pretrained_cfg(name, tag)
    if not published and not is_file(tag):
        raise WeightsError(f"model {name} has no weights {tag!r}, nor is that a file; its tags are: {', '.join(tags)}")
    quick = _quick_gelu(name, config, published)
    try:
        file = Path(open_clip.factory.download_pretrained(published) if published else tag)
    except FAULTS as error:
        raise _unavailable(options, error) from error
    checkpoint.require_fit(sketch, file, towers="" if plain_text else "visual.")
    try:
        clip = open_clip.create_model(name, pretrained=str(file), weights_only=True, quick_gelu=quick)
        tokenize = open_clip.get_tokenizer(name)
    except FAULTS as error:
        raise _unavailable(options, error) from error
    checkpoint.require_finite(clip, file)
    colours = open_clip.transform.merge_preprocess_dict(asdict(open_clip.transform.PreprocessCfg()), published)
    return directory.Source(
        clip=clip,
        tokenize=tokenize,
        mean=tuple(colours["mean"]),
        std=tuple(colours["std"]),
        tokenizer=config["text_cfg"].get("hf_tokenizer_name") or CLIP_BPE,
        description=directory.describe({**config, "quick_gelu": quick}),
        own=directory.Recommendations(),
    )


def _quick_gelu(name: str, config: dict[str, Any], published: dict[str, Any]) -> bool:
    """Whether the weights want QuickGELU: as their tag says, whatever the model's name says.

    A tag that says nothing wants GELU, unless the architecture was described with QuickGELU for it (`roberta-ViT-B-32`).
    A file says nothing; the name decides.
    """
    named = bool(config.get("quick_gelu", False))
    if not published:
        log.warning(
            "weights from a file do not tell their activation: %s has %s; %s",
            name,
            "QuickGELU" if named else "GELU",
            f"{name.removesuffix('-quickgelu')} has GELU"
            if named
            else "names with -quickgelu have QuickGELU, as OpenAI's weights want",
        )
        return named
    wanted = bool(published.get("quick_gelu", named and not name.endswith("-quickgelu")))
    if wanted != named:
        log.info("%s runs with %s, as its weights want", name, "QuickGELU" if wanted else "GELU")
    return wanted


def _unavailable(options: ModelOptions, error: BaseException) -> WeightsError:
    return WeightsError(
        f"weights {options.pretrained!r} of {options.model} cannot be loaded: {one_line(error)}. Without internet, point "
        f"--model to a local directory that holds {directory.CONFIG_FILE} and {checkpoint.WEIGHTS_FILE}"
    )


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
