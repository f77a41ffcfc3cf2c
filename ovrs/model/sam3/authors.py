"""The layout of facebookresearch/sam3's own checkpoint (`sam3.pt`), brought to the names of transformers' `Sam3Model`.

Joint projections of queries, keys and values are cut in three, and the class token's position is taken off. What the detector of
pictures does not use is left out: the tracker, its neck, point prompts, and turned positions that a network makes itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ovrs.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

ANCHOR = "backbone.vision_backbone.trunk.patch_embed.proj.weight"
"""A name with this end tells the layout."""
_BESIDE = ("tracker.", "inst_interactive_predictor.")
"""Networks beside the detector, for video and for clicks."""
_UNUSED = re.compile(
    r"backbone\.vision_backbone\.(sam2_convs\.|interactive_convs\.|trunk\.blocks\.\d+\.attn\.freqs_cis$)"
    r"|geometry_encoder\.points_(direct|pool|pos_enc)_project\."
)
_LAYER = (
    (".cross_attn_image.", ".cross_attn."),
    (".out_proj.", ".o_proj."),
    (".linear1.", ".mlp.fc1."),
    (".linear2.", ".mlp.fc2."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".norm3.", ".layer_norm3."),
)
_PARTS = {
    "backbone.vision_backbone.trunk.": (
        "vision_encoder.backbone.",
        (
            (".pos_embed", ".embeddings.position_embeddings"),
            (".patch_embed.proj.", ".embeddings.patch_embeddings.projection."),
            (".ln_pre.", ".layer_norm."),
            (".blocks.", ".layers."),
            (".norm1.", ".layer_norm1."),
            (".norm2.", ".layer_norm2."),
            (".attn.proj.", ".attention.o_proj."),
            (".attn.", ".attention."),
        ),
    ),
    "backbone.vision_backbone.convs.": (
        "vision_encoder.neck.fpn_layers.",
        (
            (".dconv_2x2_0.", ".scale_layers.0."),
            (".dconv_2x2_1.", ".scale_layers.2."),
            (".dconv_2x2.", ".scale_layers.0."),
            (".conv_1x1.", ".proj1."),
            (".conv_3x3.", ".proj2."),
        ),
    ),
    "backbone.language_backbone.encoder.": (
        "text_encoder.text_model.",
        (
            (".text_model.text_projection", ".text_projection.weight"),
            (".text_model.token_embedding.", ".text_model.embeddings.token_embedding."),
            (".positional_embedding", ".embeddings.position_embedding.weight"),
            (".ln_final.", ".final_layer_norm."),
            (".transformer.resblocks.", ".encoder.layers."),
            (".attn.", ".self_attn."),
            (".ln_1.", ".layer_norm1."),
            (".ln_2.", ".layer_norm2."),
            (".mlp.c_fc.", ".mlp.fc1."),
            (".mlp.c_proj.", ".mlp.fc2."),
        ),
    ),
    "backbone.language_backbone.resizer.": ("text_projection.", ()),
    "geometry_encoder.": (
        "geometry_encoder.",
        (
            ("geometry_encoder.norm.", "geometry_encoder.prompt_layer_norm."),
            (".encode_norm.", ".output_layer_norm."),
            (".img_pre_norm.", ".vision_layer_norm."),
            (".encode.", ".layers."),
            *_LAYER,
        ),
    ),
    "transformer.encoder.": ("detr_encoder.", _LAYER),
    "transformer.decoder.": (
        "detr_decoder.",
        (
            ("detr_decoder.norm.", "detr_decoder.output_layer_norm."),
            (".presence_token_head.", ".presence_head."),
            (".presence_token_out_norm.", ".presence_layer_norm."),
            (".bbox_embed.", ".box_head."),
            (".boxRPB_embed_", ".box_rpb_embed_"),
            (".cross_attn.", ".vision_cross_attn."),
            (".ca_text.", ".text_cross_attn."),
            (".norm1.", ".vision_cross_attn_layer_norm."),
            (".catext_norm.", ".text_cross_attn_layer_norm."),
            (".norm2.", ".self_attn_layer_norm."),
            (".norm3.", ".mlp_layer_norm."),
            *_LAYER,
        ),
    ),
    "segmentation_head.": (
        "mask_decoder.",
        (
            (".mask_predictor.mask_embed.", ".mask_embedder."),
            (".instance_seg_head.", ".instance_projection."),
            (".semantic_seg_head.", ".semantic_projection."),
            (".cross_attend_prompt.", ".prompt_cross_attn."),
            (".cross_attn_norm.", ".prompt_cross_attn_norm."),
            (".out_proj.", ".o_proj."),
        ),
    ),
    "dot_prod_scoring.": (
        "dot_product_scoring.",
        (
            (".prompt_mlp.out_norm.", ".text_mlp_out_norm."),
            (".prompt_mlp.", ".text_mlp."),
            (".prompt_proj.", ".text_proj."),
            (".hs_proj.", ".query_proj."),
        ),
    ),
}
"""Beginning of a name: transformers' beginning, and what is replaced after it, in this order."""
_NUMBERED = re.compile(r"(_head|_mlp|_embed_[xy])\.layers\.(\d+)\.")
"""Layers of small networks, which transformers counts from 1."""
_JOINT = re.compile(r"(.*\.)(?:qkv\.|in_proj_)(weight|bias)$")
_CLASS_FIRST = "vision_encoder.backbone.embeddings.position_embeddings"
_TURNED = "text_encoder.text_projection.weight"


def is_theirs(names: Iterable[str]) -> bool:
    """Whether tensors have the names of facebookresearch/sam3, with or without the prefix `detector.`."""
    return any(name.endswith(ANCHOR) for name in names)


def converted(
    state: Mapping[str, Tensor], file: Path, wanted: Container[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Bring tensors to transformers' names, in the file's own arithmetic.

    Args:
        state: A file's tensors.
        file: For messages.
        wanted: Names of the network's tensors.

    Returns:
        The tensors of the detector, and the names of those that are left out.

    Raises:
        WeightsError: A tensor that belongs to no part, two detectors, or a joint projection that is not three times as long.
    """
    prefixes = [name.removesuffix(ANCHOR) for name in state if name.endswith(ANCHOR)]
    if len(prefixes) != 1:
        raise WeightsError(f"{file} holds {len(prefixes)} detectors of SAM 3 ({', '.join(prefixes)}); ovrs takes one")
    found: dict[str, Tensor] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    for name, tensor in state.items():
        own = name.removeprefix(prefixes[0])
        beside = not name.startswith(prefixes[0]) or not prefixes[0]
        if (beside and name.startswith(_BESIDE)) or (name.startswith(prefixes[0]) and _UNUSED.match(own)):
            left_out.append(name)
        elif not name.startswith(prefixes[0]) or (ours := _renamed(own)) is None:
            unknown.append(name)
        else:
            parts = _cut(ours, tensor, name, file)
            found |= parts
            unknown += [] if all(part in wanted for part in parts) else [name]
    if unknown:
        raise WeightsError(
            f"{file}: {len(unknown)} tensors belong to no part of SAM 3's detector, such as {sorted(unknown)[0][:100]}"
        )
    return found, tuple(sorted(left_out))


def _renamed(name: str) -> str | None:
    """Return the name in transformers, before joint projections are cut; None for one that has none."""
    for start, (ours, replaced) in _PARTS.items():
        if name.startswith(start):
            renamed = ours + name.removeprefix(start)
            for old, new in replaced:
                renamed = renamed.replace(old, new)
            return _NUMBERED.sub(lambda found: f"{found[1]}.layer{int(found[2]) + 1}.", renamed)
    return None


def _cut(name: str, tensor: Tensor, source: str, file: Path) -> dict[str, Tensor]:
    """One tensor as transformers holds it: as it is, turned, without the class token's position, or cut in three."""
    if joint := _JOINT.match(name):
        if not tensor.ndim or len(tensor) % 3:
            raise WeightsError(
                f"{file}: {source} has shape {tuple(tensor.shape)}; queries, keys and values were expected"
            )
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{joint[1]}{part}_proj.{joint[2]}": values.contiguous() for part, values in parts}
    if name == _CLASS_FIRST and tensor.ndim == 3:
        return {name: tensor[:, 1:].contiguous()}
    if name == _TURNED and tensor.ndim == 2:
        return {name: tensor.T.contiguous()}
    return {name: tensor}
