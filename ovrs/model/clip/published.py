"""Published models: by open_clip's name and tag, or from a repository of the Hugging Face hub in open_clip's format.

Nothing large is fetched before the name, the tag and the vision tower are known to fit.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs import foreign
from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_file
from ovrs.methods.recommended import Recommendations
from ovrs.model.clip import architecture, checkpoint, directory, tokenizer
from ovrs.model.clip.directory import CONFIG_FILE, Source
from ovrs.model.clip.foreign import FAULTS, one_line, shown
from ovrs.model.clip.known import licence_of_tag, table

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

HUB = "hf-hub:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def read(name: str, tag: str | None) -> Source:
    """Load a published model; weights are fetched once, then come from the cache of the hub.

    Args:
        name: open_clip's name of an architecture, or `hf-hub:ORG/NAME`.
        tag: open_clip's tag of the weights, or a file that holds them; None for a repository.

    Raises:
        WeightsError: Unknown names or tags, an unfit vision tower, or weights that cannot be had or are damaged.
        OptionError: A tag beside a repository.
    """
    if name.startswith(HUB):
        if tag is not None:
            raise OptionError(f"--pretrained is for open_clip's names; --model {name} brings its own weights")
        return _from_hub(name)
    entry = table().models.get(name)
    if entry is not None and entry.tag is not None:
        if tag is not None:
            raise OptionError(f"--pretrained is for open_clip's names; --model {name} brings its own weights")
        return _from_name(entry.architecture, entry.tag)
    return _from_name(name, tag)


def _from_name(name: str, tag: str | None) -> Source:
    import open_clip

    known = open_clip.list_models()
    if name not in known:
        raise WeightsError(
            f"model {shown(name)} is neither 'bundled', nor a name that `ovrs models` lists, nor a directory, nor "
            f"hf-hub:ORG/NAME, nor one of open_clip's {len(known)} names (such as ViT-B-16); "
            '`python -c "import open_clip; print(open_clip.list_pretrained())"` lists them'
        )
    config = open_clip.get_model_config(name)
    sketch, towers = _sketch(config)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tag:
        raise WeightsError(f"model {name} needs --pretrained TAG, one of: {', '.join(tags)}")
    published = open_clip.get_pretrained_cfg(name, tag)
    if not published and not is_file(tag):
        raise WeightsError(
            f"model {name} has no weights {shown(tag)}, nor is that a file; its tags are: {', '.join(tags)}"
        )
    quick = _quick_gelu(name, config, published)
    try:
        file = Path(open_clip.factory.download_pretrained(published) if published else tag)
        checkpoint.require_fit(sketch, file, towers)
        clip = open_clip.create_model(name, pretrained=str(file), weights_only=True, quick_gelu=quick)
        tokenize = open_clip.get_tokenizer(name)
    except FAULTS as error:
        raise _unavailable(f"weights {shown(tag)} of {name}", error) from error
    checkpoint.require_finite(clip, file)
    return _source(clip, tokenize, {**config, "quick_gelu": quick}, published, licence_of_tag(name, tag))


def _from_hub(name: str) -> Source:
    """As open_clip's own `hf-hub:`, with the description checked before the weights are fetched."""
    import open_clip

    repository = name.removeprefix(HUB)
    if not _REPOSITORY.fullmatch(repository):
        raise WeightsError(f"--model {shown(name)} names no repository; the form is {HUB}ORG/NAME")
    fetch = open_clip.factory.download_pretrained_from_hf
    try:
        content = foreign.read_object(Path(fetch(repository, filename=CONFIG_FILE)))
    except FAULTS as error:
        raise _unavailable(f"{CONFIG_FILE} of {name}", error) from error
    model, preprocess = directory.described(content, name)
    sketch, towers = _sketch(model)
    tokenizer.checked_extra(name, model["text_cfg"])
    try:
        file = Path(fetch(repository))
        checkpoint.require_fit(sketch, file, towers)
        clip = open_clip.create_model(name, require_pretrained=True, weights_only=True)
        tokenize = open_clip.get_tokenizer(name)
    except FAULTS as error:
        raise _unavailable(f"weights of {name}", error) from error
    checkpoint.require_finite(clip, file)
    return _source(clip, tokenize, model, preprocess)


def _sketch(config: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the network on the meta device, and which of its towers it describes; other libraries' text towers are left out."""
    plain_text = not config["text_cfg"].get("hf_model_name") and "multimodal_cfg" not in config
    return architecture.sketch(config, text=plain_text), "" if plain_text else "visual."


def _source(
    clip: Any, tokenize: Any, config: Mapping[str, Any], colours: Mapping[str, Any], licence: str | None = None
) -> Source:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(asdict(PreprocessCfg()), dict(colours))
    return Source(
        clip=clip,
        tokenize=tokenize,
        mean=tuple(merged["mean"]),
        std=tuple(merged["std"]),
        tokenizer=config["text_cfg"].get("hf_tokenizer_name") or tokenizer.CLIP_BPE,
        description=directory.describe(config),
        own=Recommendations(licence=licence),
    )


def _quick_gelu(name: str, config: Mapping[str, Any], published: Mapping[str, Any]) -> bool:
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


def _unavailable(what: str, error: BaseException) -> WeightsError:
    return WeightsError(
        f"{what} cannot be loaded: {one_line(error)}. Without internet, point --model to a local directory that holds "
        f"{CONFIG_FILE} and {checkpoint.WEIGHTS_FILE}"
    )
