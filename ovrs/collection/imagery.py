"""The imagery of a collection: files that a pattern finds, or items of a STAC search."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs.collection.catalog import file_name, glob, require_own_names
from ovrs.collection.ledger import Image
from ovrs.errors import CatalogError, OptionError

if TYPE_CHECKING:
    from ovrs.collection.catalog import Catalog, StacSearch

log = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0
"""A file that changed so recently may still be growing; the next look takes it."""


def images(catalog: Catalog, name: str, *, settle: float = SETTLE_SECONDS) -> list[Image]:
    """What a collection holds now, in the order of names.

    Raises:
        CatalogError: No such collection, or its API does not answer.
    """
    entry = catalog.collection(name)
    if entry.stac is not None:
        return _items(name, entry.stac)
    found = []
    for file in glob(catalog.resolve(str(entry.pattern))):
        if not Path(file).is_file():
            log.warning("%s is a folder or a link to nothing; it is left out", file)
            continue
        state = Path(file).stat()
        if abs(time.time() - state.st_mtime) < settle:  # times far in the future come from clocks that go wrong
            log.info("%s changed a moment ago; it is left for the next look", file)
            continue
        found.append(Image(Path(file).stem, str(Path(file).absolute()), f"{state.st_size}-{state.st_mtime_ns}"))
    require_own_names(f"collection {name}", [i.name for i in found])
    return found


def _items(name: str, search: StacSearch) -> list[Image]:
    try:
        from pystac.errors import STACError, STACTypeError
        from pystac_client import Client
        from pystac_client.errors import ClientTypeError
        from pystac_client.exceptions import APIError, ParametersError
    except ImportError as error:
        raise OptionError(f'STAC searches need pystac-client: pip install "ovrs[stac]" ({error})') from error
    try:
        found = Client.open(search.url).search(
            collections=list(search.collections),
            bbox=search.bbox,
            datetime=search.datetime,
            query=search.query,
            max_items=search.max_items,
        )
        items = sorted(found.items(), key=lambda item: item.id)
    except (APIError, OSError) as error:
        raise CatalogError(f"collection {name}: {search.url} does not answer: {error}") from error
    except (
        ClientTypeError,
        ParametersError,
        STACError,
        STACTypeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise CatalogError(
            f"collection {name}: {search.url} and this search do not fit, or it is no STAC API ({type(error).__name__}: {error})"
        ) from error
    out = []
    for item in items:
        try:
            file_name(item.id)
        except ValueError as error:
            log.warning("item %r is left out: %s", item.id, error)
            continue
        if search.asset not in item.assets:
            log.warning("item %s has no asset %s (it has %s)", item.id, search.asset, ", ".join(item.assets))
            continue
        updated = str(item.properties.get("updated") or item.properties.get("created") or item.datetime)
        out.append(
            Image(item.id, item.assets[search.asset].get_absolute_href() or item.assets[search.asset].href, updated)
        )
    return out
