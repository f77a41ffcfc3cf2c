"""How many tiles a device looks at in one batch."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ovrs.engine.contract import TileScores
from ovrs.model.clip.dense import native_size, patch_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ovrs.engine.contract import Events, Look, TileSample
    from ovrs.model.clip.loading import LoadedModel
    from ovrs.model.clip.segmenter import ClipSegmenter
    from ovrs.model.clip.windows import Views

log = logging.getLogger(__name__)

MOST = 16
"""More tiles in a batch gain nothing: matrix products are large by then."""
_SHARE = 0.4
"""Of the device's memory; the rest is left to the weights, the block's pixels and other programs."""
_KEPT = 24
"""Numbers of a token that a block keeps for the backward pass, in widths of the tower."""
_PASSING = 16
"""The same without a backward pass, for one block at a time."""


def in_memory(
    frozen: ClipSegmenter, tiles: Sequence[TileSample], look: Callable[[Sequence[TileSample]], Sequence[Look]]
) -> list[Look]:
    """`look`; where the device's memory does not suffice, with half as many tiles at once from then on.

    The event `halved_tiles_at_once` of a tile tells it in the map's record. Sums may then differ in their last bits.

    Raises:
        torch.OutOfMemoryError: It does not suffice for one tile.
    """
    try:
        return list(look(tiles))
    except torch.OutOfMemoryError:
        count = frozen.tiles_at_once // 2
        if not count:
            raise
    log.warning(
        "the device has too little memory for %d tiles at once; going on with %d (--set model.tiles_at_once=%d says so)",
        *(2 * count, count, count),
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    frozen.encoder = replace(frozen.encoder, tiles_at_once=count)
    found: list[Look] = []
    for start in range(0, len(tiles), count):
        found += in_memory(frozen, tiles[start : start + count], look)
    found[0] = _told(found[0], "halved_tiles_at_once")
    return found


def _told(found: Look, event: str) -> Look:
    """Return the value with one event more."""
    if isinstance(found, TileScores):
        return replace(found, events=partial(_more, found.events, event))
    return (*found[:2], partial(_more, found[2], event))


def _more(events: Events, event: str) -> tuple[str, ...]:
    return (*(events() if callable(events) else events), event)


def suited(model: LoadedModel, views: Views, *, learns: bool, queries: int) -> int:
    """Return a power of two from the device's whole memory, so that it is the same on every machine with such a device.

    Args:
        model: The network on its device.
        views: The windows of a tile.
        learns: Whether LayerNorms are adapted, by gradients through the whole tower.
        queries: Maps of scores that each window gives, at the windows' own size.
    """
    if model.device.type != "cuda":
        return 1
    visual = model.clip.visual
    tokens = (native_size(visual) // patch_size(visual)) ** 2 + 1
    layers = len(visual.transformer.resblocks) * _KEPT if learns else _PASSING
    width = visual.class_embedding.shape[0]
    numbers = views.batch * (tokens * width * layers + 3 * queries * views.geometry.crop**2)
    memory = torch.cuda.get_device_properties(model.device).total_memory
    return power_of_two(int(_SHARE * memory / (4 * numbers)))


def power_of_two(count: int) -> int:
    """Return the largest power of two that is not larger, between 1 and `MOST`."""
    return 1 << (max(1, min(count, MOST)).bit_length() - 1)
