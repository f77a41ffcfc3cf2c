"""Decode only the phrases that are there (ActiveSAM, 2606.16996): presence of all on a small pass, masks for the likely ones.

The small pass looks at the same window at about two thirds of its size. Its network is the same: parameters are shared, only the
global layers' positions are those of the smaller grid. The selection is ours: a floor of presence instead of ActiveSAM's
quantile and cap, so that the number of decoded phrases follows the window and not the vocabulary.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ovrs.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

FEW = 8
"""Up to so many phrases the small pass would cost more than it saves; all are decoded."""
SHARE = 2 / 3
"""Side of the small pass; a whole number of attention windows, 672 of 1008 px."""


def small_size(vision: Any) -> int:
    """Side of the small pass in pixels.

    Args:
        vision: `backbone_config` of the vision tower.
    """
    unit = int(vision.patch_size) * int(vision.window_size)
    return max(unit, round(SHARE * int(vision.image_size) / unit) * unit)


def small_encoder(network: Any) -> Any:
    """Return the vision encoder for images of `small_size`; it shares all parameters with the network's own.

    Raises:
        OptionError: This version of transformers builds positions in another way.
    """
    own = network.vision_encoder
    shared = {id(tensor): tensor for tensor in chain(own.parameters(), own.buffers())}
    encoder = copy.deepcopy(own, shared)
    config = copy.deepcopy(network.config.vision_config.backbone_config)
    config.image_size = small_size(config)
    for layer in encoder.backbone.layers:
        if layer.window_size:
            continue
        if not hasattr(layer, "precompute_positions") or not hasattr(layer, "position_ids"):
            raise OptionError("decode=present needs transformers 5.24 or newer: pip install -U transformers")
        positions = layer.precompute_positions(config, 0)
        layer.position_ids = torch.nn.Buffer(positions.to(layer.position_ids), persistent=False)
    return encoder


def likely(presence: Tensor, floor: float) -> list[int]:
    """Which phrases are decoded, ascending: those whose presence reaches the floor, and always the likeliest.

    Args:
        presence: Logits `(R,)` of the small pass.
        floor: A probability.
    """
    chosen = presence.sigmoid() >= floor
    chosen[presence.argmax()] = True
    return [int(row) for row in torch.nonzero(chosen)[:, 0]]


def absent(presence: Tensor, like: tuple[int, int], limit: float) -> Any:
    """Return the detection of phrases that are not decoded: empty masks, and the presence of the small pass.

    Args:
        presence: Logits `(b,)`.
        like: Rows and columns of masks.
        limit: Largest logit.
    """
    from ovrs.model.sam3.backend import Detection

    count = len(presence)
    return Detection(
        presence.new_full((count, *like), -limit),
        presence.new_full((count, 1, *like), -limit),
        presence.new_full((count, 1), -limit),
        presence,
    )


def merged(parts: list[tuple[list[int], tuple[Tensor, ...]]], count: int) -> tuple[Tensor, ...]:
    """Tensors with one row for each of `count` phrases, from parts that hold some rows each."""
    whole = [first.new_empty((count, *first.shape[1:])) for first in parts[0][1]]
    for rows, tensors in parts:
        for target, values in zip(whole, tensors, strict=True):
            target[rows] = values
    return tuple(whole)
