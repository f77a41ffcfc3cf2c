"""Put model, words and method together."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ovrs import options
from ovrs.errors import OptionError
from ovrs.methods import registry
from ovrs.methods.base import Settings
from ovrs.methods.clip import Clip
from ovrs.model.clip import towers
from ovrs.model.clip.loading import load
from ovrs.model.clip.parts import Parts
from ovrs.model.clip.refine import refined
from ovrs.model.clip.windows import choose

if TYPE_CHECKING:
    from ovrs.engine.contract import Segmenter
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.words.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def build_clip_segmenter(look: ModelOptions, method: MethodOptions | Settings, vocabulary: Vocabulary) -> Segmenter:
    """Load the model, embed the vocabulary, and put the chosen method in front.

    Args:
        look: The network and its windows.
        method: Settings, or what was told of them.
        vocabulary: The classes.

    Raises:
        OptionError: See `ovrs.options.resolved`, a combination that makes no sense, or a class list the method cannot
            work with.
        WeightsError: See `ovrs.model.clip.loading.load`, and missing weights of an upsampler or a second network.
    """
    settings = method if isinstance(method, Settings) else options.resolved(look, method, vocabulary)
    if len(vocabulary.classes) < 2:
        raise OptionError(
            "a map needs at least two classes: with one, its probability is 1 everywhere. Add what else is there, "
            'for instance --classes "building, background"'
        )
    assert isinstance(settings, Clip)  # `resolved` has looked at the model's family
    look = options.imposed(look, settings.method)
    model = load(look)
    settings = towers.fitted(model.clip.visual, settings)
    _tell_unasked(settings, vocabulary)
    parts = Parts(model=model, look=look, settings=settings, views=choose(look, model), vocabulary=vocabulary)
    module, _, name = registry.method(settings.method).build.partition(":")
    segmenter = cast("Segmenter", getattr(import_module(module), name)(parts))
    return refined(segmenter, settings, vocabulary.background_index)


def _tell_unasked(settings: Clip, vocabulary: Vocabulary) -> None:
    """Say that sentences of the user's own are left out, because the model asks for less than the vocabulary holds."""
    written = [c.name for c in vocabulary.classes if c.descriptions and c.prompt_source != "composed"]
    if written and settings.prompts != "all":
        log.info(
            "asking for %s; the descriptions of %d classes are left out (--set prompts=all asks for them too)",
            {"names": "class names alone", "synonyms": "names and synonyms"}[settings.prompts],
            len(written),
        )
