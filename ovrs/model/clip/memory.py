"""How many tiles a device looks at in one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ovrs.model.clip.dense import native_size, patch_size

if TYPE_CHECKING:
    from ovrs.model.clip.loading import LoadedModel
    from ovrs.model.clip.windows import Views

MOST = 16
"""More tiles in a batch gain nothing: matrix products are large by then."""
_SHARE = 0.4
"""Of the device's memory; the rest is left to the weights, the block's pixels and other programs."""
_KEPT = 24
"""Numbers of a token that a block keeps for the backward pass, in widths of the tower."""
_PASSING = 16
"""The same without a backward pass, for one block at a time."""


def suited(model: LoadedModel, views: Views, *, learns: bool, queries: int) -> int:
    """A power of two from the device's whole memory, so that it is the same on every machine with such a device.

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
    """The largest power of two that is not larger, between 1 and `MOST`."""
    return 1 << (max(1, min(count, MOST)).bit_length() - 1)
