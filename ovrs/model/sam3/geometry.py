"""The token of geometry: what the detector is told of boxes, where there are none.

SAM 3 was trained with this token behind the words of every phrase, and its authors' code adds it to phrases without boxes; so do the
released ProC-SAM3 and SegEarth-OV3. `Sam3Model.forward` of transformers leaves it out where no box is given, which is another network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def token(encoder: Any, features: Tensor, positions: Tensor) -> Tensor:
    """Return the token of each image, `(B, 1, C)`; it depends on the image and not on the phrase.

    Args:
        encoder: `Sam3Model.geometry_encoder`.
        features: `(B, C, h, w)`, the level of the neck that the detector reads.
        positions: Of the same shape.
    """
    own = encoder.cls_embed.weight[None].expand(len(features), -1, -1)
    found = encoder.prompt_layer_norm(encoder.final_proj(own))
    seen, places = (level.flatten(2).transpose(1, 2) for level in (features, positions))
    for layer in encoder.layers:
        found = layer(prompt_feats=found, vision_feats=seen, vision_pos_encoding=places, prompt_mask=None)
    result: Tensor = encoder.output_layer_norm(found)
    return result
