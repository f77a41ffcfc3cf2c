"""A run like the one that made a map, but for something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ovrs.errors import OptionError, StoreError
from ovrs.options import MapOptions
from ovrs.request import Request
from ovrs.store.map import open_map
from ovrs.words.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovrs.objects.address import Place


def taught_request(store: Place, examples: Path, target: Place) -> Request:
    """Return the request that made a map, with examples.

    Args:
        store: A finished map.
        examples: Points or polygons with a class; those of an earlier request are not kept.
        target: Where the new map goes.

    Raises:
        OptionError: The target is the map itself.
        StoreError: The map tells of options or words that this version does not know.
    """
    if _settled(target) == _settled(store):
        raise OptionError(f"{target} is the map itself, which stays; name another store with -o")
    with open_map(store if isinstance(store, Path) else str(store)) as mapped:
        told = mapped.record.dump()
    try:
        options = MapOptions.model_validate(told["options"])
        words = Vocabulary.model_validate(told["vocabulary"])
    except (ValidationError, KeyError) as error:
        raise StoreError(
            f"{store} was made by ovrs {told.get('version')}, whose options this version does not know; "
            "map the scene with --examples instead"
        ) from error
    method = type(options.method).model_validate(
        {**options.method.told, "method": options.method.method, "examples": str(examples)}
    )
    own = target if isinstance(target, Path) else str(target)
    return Request(uri=str(told["uri"]), words=words, options=options.model_copy(update={"method": method}), target=own)


def _settled(place: Place) -> Place:
    """Return a place that two names of one map share."""
    return place.resolve() if isinstance(place, Path) else place
