"""`ovrs model import`: published weights in any known layout, written as a directory in open_clip's format and compared.

The directory is loaded through ovrs and its embeddings are compared with a reference that is built from the source's own
tensors, before it takes its name. What shapes cannot tell is known by the file's name, or asked for.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from ovrs import files
from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_directory, is_file
from ovrs.methods import recommended
from ovrs.methods.recommended import METADATA_FILE
from ovrs.model import places
from ovrs.model.clip import (
    architecture,
    checkpoint,
    known,
    layouts,
    of_transformers,
    reference,
    shapes,
    statefile,
)
from ovrs.model.clip.directory import CONFIG_FILE
from ovrs.model.clip.loading import load
from ovrs.options import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of unit vectors between the written network and the reference; float32 noise of deep towers is below."""
_SENTENCES = ("a field", "a photo of a road beside the river.", "narrow houses with gardens behind a long wall " * 40)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a source may leave open."""

    quick_gelu: bool | None = None
    """The activation: QuickGELU, or GELU; None as the published file is known to want, or as `config.json` says."""
    heads: tuple[int, int] | None = None
    """Attention heads of the vision and of the text tower; None by CLIP's rule, 64 numbers a head."""
    network: str | None = None
    """Which network of a checkpoint that holds several."""
    licence: str | None = None
    """Of the weights; None as the table of published models says."""
    mean: tuple[float, float, float] | None = None
    """Of red, green and blue, 0 to 1; None as the source says, else OpenAI's."""
    std: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Imported:
    """What came out."""

    directory: Path
    architecture: str
    lines: tuple[str, ...]
    """For people: what was found, chosen, left out and compared."""


@dataclass(eq=False, kw_only=True)
class _Draft:
    """A network on its way: everything the directory will say, and the reference to compare with."""

    files: tuple[Path, ...]
    layout: str
    tensors: dict[str, Tensor]
    config: Mapping[str, Any]
    reference: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    licence: str | None
    activation: str
    colours: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()


def import_model(source: Path, out: Path, choices: Choices | None = None, *, overwrite: bool = False) -> Imported:
    """Write a model directory from a file of weights, a zip archive with one, or a CLIPModel folder of transformers.

    Args:
        source: The file or folder.
        out: The directory to write; it takes its name when it is whole and compared.
        choices: What the source does not tell.
        overwrite: Replace `out`, if it is a model directory.

    Raises:
        WeightsError: The source cannot be read, is unsafe, of an unknown layout, or not what it says.
        OptionError: Something that must be told is not, or `out` is there.
        OutputError: The directory cannot be written.
    """
    chosen = choices or Choices()
    places.require_free(out, source, CONFIG_FILE, overwrite=overwrite)
    draft = _of_folder(source, chosen) if is_directory(source) else _of_file(source, chosen)
    given = {"mean": chosen.mean, "std": chosen.std}
    told = {key: list(value) for key, value in given.items() if value is not None}
    draft.colours = {**draft.colours, **told}
    draft.config = architecture.checked(draft.config, str(source))
    checkpoint.require_same(architecture.sketch(draft.config), dict(draft.tensors), draft.files[0])
    with places.new_directory(out) as folder:
        _write(draft, folder)
        difference = _compared(draft, folder, out)
    name = shapes.name_of(draft.config) or "an architecture without a name in open_clip"
    return Imported(out, name, tuple(_lines(draft, name, difference)))


def _of_file(source: Path, chosen: Choices) -> _Draft:
    state = statefile.read(source, chosen.network)
    if any(name.startswith(("vision_model.", "text_model.")) for name in state.tensors):
        raise WeightsError(
            f"{source} has the layout of transformers, whose config.json tells what shapes do not; give the folder that holds "
            "both: ovrs model import FOLDER -o DIR"
        )
    plain = layouts.bare(state.tensors, source, chosen.network)
    tensors = layouts.open_clip_names(plain, source)
    config: Any = shapes.model_cfg(tensors, source, chosen.heads)
    quick, why = _activation(source, config, chosen)
    config["quick_gelu"] = quick
    vision, text = config["vision_cfg"], config["text_cfg"]
    heads = (vision["width"] // vision["head_width"], text["heads"])

    def vectors(images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return (
            reference.image_vectors(plain, images, heads[0], quick=quick),
            reference.text_vectors(plain, tokens, heads[1], quick=quick),
        )

    entry = known.of_file(source.name)
    return _Draft(
        files=(source,),
        layout="Long-CLIP, two tables of positions made one" if layouts.is_long(plain) else "open_clip",
        tensors=tensors,
        config=config,
        reference=vectors,
        licence=chosen.licence or (entry[1].licence if entry else None),
        activation=why,
        left_out=state.left_out,
    )


def _of_folder(source: Path, chosen: Choices) -> _Draft:
    if is_file(source / CONFIG_FILE):
        raise OptionError(f"{source} is in open_clip's format already; use it as it is: --model {source}")
    if not is_file(source / of_transformers.CONFIG_FILE):
        raise WeightsError(
            f"{source} is no CLIPModel folder of transformers: config.json is missing; name the file of weights"
        )
    found = of_transformers.read(source)
    told = bool(found.config["quick_gelu"])
    if chosen.quick_gelu not in (None, told):
        raise OptionError(f"{source / 'config.json'} says {_named(told)}; leave out --quick-gelu and --no-quick-gelu")
    if chosen.heads is not None or chosen.network is not None:
        raise OptionError("--heads and --network are for files of weights; a folder of transformers tells both")
    return _Draft(
        files=found.weights,
        layout="transformers",
        tensors=found.tensors,
        config=found.config,
        reference=partial(of_transformers.vectors, found.network),
        licence=chosen.licence,
        activation="as config.json says",
        colours=found.colours,
        tokenizer=found.tokenizer,
    )


def _activation(source: Path, config: Mapping[str, Any], chosen: Choices) -> tuple[bool, str]:
    """Whether the towers have QuickGELU, and who says so."""
    entry = known.of_file(source.name)
    told = entry[1] if entry and entry[1].architecture == shapes.name_of(config) else None
    if chosen.quick_gelu is not None:
        if told and told.quick_gelu not in (None, chosen.quick_gelu):
            log.warning("%s wants %s (%s); the command counts", source.name, _named(told.quick_gelu), told.source)
        return chosen.quick_gelu, "as the command says"
    if told and told.quick_gelu is not None:
        return told.quick_gelu, f"as {told.basename} wants: {told.source}"
    raise OptionError(
        f"{source}: shapes do not tell the activation of the towers; add --quick-gelu (weights trained from OpenAI's) or "
        "--no-quick-gelu (from LAION's and most others)"
    )


def _named(quick: bool | None) -> str:
    return "QuickGELU" if quick else "GELU"


def _write(draft: _Draft, folder: Path) -> None:
    side = draft.config["vision_cfg"].get("image_size", 224)
    colours = {"mean": list(OPENAI_DATASET_MEAN), "std": list(OPENAI_DATASET_STD), **draft.colours}
    preprocess = {"size": side, "mode": "RGB", **colours, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = {"model_cfg": draft.config, "preprocess_cfg": preprocess}
    files.write_text(folder / CONFIG_FILE, json.dumps(content, indent=1) + "\n")
    places.write_tensors(folder, checkpoint.WEIGHTS_FILE, draft.tensors)
    of_transformers.copy_tokenizer(draft.tokenizer, folder)


def _compared(draft: _Draft, folder: Path, out: Path) -> float:
    """Load the written directory through ovrs, compare, and write what it is made of.

    Returns:
        The largest difference of unit vectors.

    Raises:
        WeightsError: It does not load, or gives other embeddings than the source.
    """
    try:
        loaded = load(ModelOptions(model=str(folder), device="cpu", dtype="float32"))
    except WeightsError as error:
        raise WeightsError(str(error).replace(str(folder), str(out))) from error
    side = loaded.clip.visual.image_size[0]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    tokens = loaded.tokenize(list(_SENTENCES))
    with torch.no_grad():
        ours = loaded.clip.encode_image(images, normalize=True), loaded.clip.encode_text(tokens, normalize=True)
    theirs = draft.reference(images, tokens)
    difference = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"the network made of {draft.files[0]} gives other embeddings than its tensors (difference {difference:.1g}); "
            "nothing is written. Is an option wrong, such as --heads?"
        )
    source = {
        "file": draft.files[0].name,
        "sha256": places.sha256(draft.files),
        "layout": draft.layout,
        "activation": f"{_named(draft.config['quick_gelu'])}, {draft.activation}",
    }
    own = {"sha256": loaded.weights_hash, "source": source, "licence": draft.licence}
    files.write_text(folder / METADATA_FILE, json.dumps(own, indent=1, ensure_ascii=False) + "\n")
    recommended.read(folder)
    return difference


def _lines(draft: _Draft, name: str, difference: float) -> list[str]:
    vision, text = draft.config["vision_cfg"], draft.config["text_cfg"]
    lines = [
        f"found: {name}, {vision['image_size']} px, {text['context_length']} tokens of text ({draft.layout})",
        f"activation: {_named(draft.config['quick_gelu'])}, {draft.activation}",
        f"licence: {draft.licence or 'not told; --licence writes it into the directory'}",
    ]
    if draft.left_out:
        more = f" and {len(draft.left_out) - 8} more" if len(draft.left_out) > 8 else ""
        lines.append(f"left out: {', '.join(n[:60] for n in draft.left_out[:8])}{more}")
    return [*lines, f"compared with its source: largest difference of unit vectors {difference:.1g}"]
