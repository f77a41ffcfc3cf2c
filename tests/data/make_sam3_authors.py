"""Record what the code of SAM 3's authors computes with small random weights.

    git clone https://github.com/facebookresearch/sam3 SAM3    # under the SAM License; recorded at 99d02f2
    pip install iopath
    PYTHONPATH=.:tests python tests/data/make_sam3_authors.py SAM3

The record holds names and shapes of the authors' tensors, and the answers of their `Sam3Image.forward_grounding` to two phrases
without boxes. The weights follow from the names (`weights`), so that tests make them again without the authors' code.
"""

from __future__ import annotations

import json
import lzma
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

RECORD = Path(__file__).parent / "sam3_authors.npz"
PHRASES = ["building", "a very long row of old trees"]
WIDTH, HEADS = 32, 4
ABSENT = ("sam3.train.data.collator", "sam3.model.sam3_video_inference", "sam3.model.sam3_video_predictor")
"""Modules of training and video, which need packages that pictures do not."""


def config() -> Any:
    """transformers' sizes of the same network."""
    from ovrs.model.sam3 import tiny

    own = tiny.config()
    own.text_config.intermediate_size, own.text_config.projection_dim = (
        256,
        512,
    )  # the authors have 4 times the width, and 512
    return own


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Random tensors by the names of the authors; each follows from its name."""
    found = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(shape, dtype=np.float32) * 0.12
        around = 1 if len(shape) == 1 and name.endswith("weight") else 0
        found[name] = torch.from_numpy(values + np.float32(around))
    return found


def names() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the authors' tensors: `shapes` and `complex` of the small network, `published` of the full one."""
    with np.load(RECORD) as kept:
        found: dict[str, dict[str, list[int]]] = json.loads(lzma.decompress(kept["names"].tobytes()))
    return found


def pixels() -> torch.Tensor:
    """One image `(1, 3, 64, 64)`, -1 to 1."""
    return torch.from_numpy(np.random.default_rng(5).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32))


def record(place: str) -> None:
    """Run the authors' code, which lies in the folder `place`."""
    network = _network(place)
    state = network.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in state.items() if not tensor.is_complex()}
    network.load_state_dict(weights(shapes), strict=False)  # turned positions stay their own
    from sam3.model.data_misc import FindStage

    both = torch.tensor([0, 1])
    stage = FindStage(
        img_ids=torch.zeros_like(both),
        text_ids=both,
        input_boxes=None,
        input_boxes_mask=None,
        input_boxes_label=None,
        input_points=None,
        input_points_mask=None,
    )
    torch.Tensor.pin_memory = lambda self: self  # asked for without a GPU too
    with torch.no_grad():
        seen = network.backbone.forward_image(pixels())
        seen.update(network.backbone.forward_text(PHRASES, device="cpu"))
        out = network.forward_grounding(seen, stage, None, network._get_dummy_prompt(2))
    named = {
        "shapes": shapes,
        "complex": {name: list(tensor.shape) for name, tensor in state.items() if tensor.is_complex()},
        "published": {name: list(tensor.shape) for name, tensor in _published().state_dict().items()},
    }
    np.savez_compressed(
        RECORD,
        names=np.frombuffer(lzma.compress(json.dumps(named).encode()), np.uint8),
        objects=out["pred_logits"][..., 0].numpy(),
        masks=out["pred_masks"].numpy(),
        semantic=out["semantic_seg"][:, 0].numpy(),
        presence=out["presence_logit_dec"][:, 0].numpy(),
    )


def _network(place: str) -> Any:
    package = types.ModuleType("sam3")
    package.__path__ = [f"{place}/sam3"]
    sys.modules["sam3"] = package
    for name in (*ABSENT, "pkg_resources"):
        sys.modules[name] = _Absent(name)
    from sam3 import model_builder as theirs

    def attention(first: bool = False) -> Any:
        return theirs.MultiheadAttention(num_heads=HEADS, dropout=0.0, embed_dim=WIDTH, batch_first=first)

    def positions() -> Any:
        return theirs.PositionEmbeddingSine(num_pos_feats=WIDTH, normalize=True, scale=None, temperature=10000)

    def layer(kind: Any, **more: Any) -> Any:
        return kind(activation="relu", d_model=WIDTH, dim_feedforward=64, dropout=0.0, **more)

    vit = theirs.ViT(
        img_size=64, pretrain_img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2,
        norm_layer="LayerNorm", qkv_bias=True, use_abs_pos=True, tile_abs_pos=True, global_att_blocks=(1, 3),
        rel_pos_blocks=(), use_rope=True, use_interp_rope=True, window_size=4, pretrain_use_cls_token=True,
        retain_cls_token=False, ln_pre=True, ln_post=False, return_interm_layers=False, bias_patch_embed=False,
    )  # fmt: skip
    neck = theirs.Sam3DualViTDetNeck(
        position_encoding=positions(), d_model=WIDTH, scale_factors=[4.0, 2.0, 1.0, 0.5], trunk=vit, add_sam2_neck=True
    )
    text = theirs.VETextEncoder(tokenizer=_tokens, d_model=WIDTH, width=64, heads=4, layers=2)
    encoder = theirs.TransformerEncoderFusion(
        layer=layer(
            theirs.TransformerEncoderLayer, pos_enc_at_attn=True, pos_enc_at_cross_attn_keys=False,
            pos_enc_at_cross_attn_queries=False, pre_norm=True, self_attention=attention(True), cross_attention=attention(True),
        ),
        num_layers=2, d_model=WIDTH, num_feature_levels=1, frozen=False, use_act_checkpoint=False,
        add_pooled_text_to_img_feat=False, pool_text_with_mask=True,
    )  # fmt: skip
    decoder = theirs.TransformerDecoder(
        layer=layer(
            theirs.TransformerDecoderLayer, cross_attention=attention(), n_heads=HEADS, use_text_cross_attention=True
        ),
        num_layers=2, num_queries=10, return_intermediate=True, box_refine=True, num_o2m_queries=0, dac=True, boxRPB="log",
        d_model=WIDTH, frozen=False, interaction_layer=None, dac_use_selfatt_ln=True, resolution=None, stride=None,
        use_act_checkpoint=False, presence_token=True,
    )  # fmt: skip
    norm = torch.nn.LayerNorm(WIDTH)
    scorer = theirs.DotProductScoring(
        d_model=WIDTH,
        d_proj=WIDTH,
        prompt_mlp=theirs.MLP(WIDTH, 64, WIDTH, num_layers=2, dropout=0.0, residual=True, out_norm=norm),
    )
    head = theirs.UniversalSegmentationHead(
        hidden_dim=WIDTH, upsampling_stages=3, aux_masks=False, presence_head=False, dot_product_scorer=None, act_ckpt=False,
        cross_attend_prompt=attention(),
        pixel_decoder=theirs.PixelDecoder(num_upsampling_stages=3, interpolation_mode="nearest", hidden_dim=WIDTH),
    )  # fmt: skip
    boxes = theirs.SequenceGeometryEncoder(
        pos_enc=positions(), encode_boxes_as_points=False, points_direct_project=True, points_pool=True, points_pos_enc=True,
        boxes_direct_project=True, boxes_pool=True, boxes_pos_enc=True, d_model=WIDTH, num_layers=1, use_act_ckpt=False,
        add_cls=True, add_post_encode_proj=True,
        layer=layer(
            theirs.TransformerEncoderLayer, pos_enc_at_attn=False, pre_norm=True, self_attention=attention(),
            pos_enc_at_cross_attn_queries=False, pos_enc_at_cross_attn_keys=True, cross_attention=attention(),
        ),
    )  # fmt: skip
    backbone = theirs.SAM3VLBackbone(visual=neck, text=text, scalp=1)
    transformer = theirs.TransformerWrapper(encoder=encoder, decoder=decoder, d_model=WIDTH)
    return theirs._create_sam3_model(backbone, transformer, boxes, head, scorer, None, True).eval()


def _published() -> Any:
    """The authors' network at its full size, without memory."""
    from sam3 import model_builder as theirs

    evenly = torch.linspace
    torch.linspace = lambda *args, **more: evenly(*args, **{**more, "device": "cpu"})  # its values are asked for
    with torch.device("meta"):
        neck = theirs._create_vit_neck(theirs._create_position_encoding(), theirs._create_vit_backbone(), True)
        text = theirs.VETextEncoder(tokenizer=None, d_model=256, width=1024, heads=16, layers=24)
        layer = theirs.TransformerDecoderLayer(
            activation="relu", d_model=256, dim_feedforward=2048, dropout=0.1, n_heads=8, use_text_cross_attention=True,
            cross_attention=theirs.MultiheadAttention(num_heads=8, dropout=0.1, embed_dim=256),
        )  # fmt: skip
        decoder = theirs.TransformerDecoder(
            layer=layer, num_layers=6, num_queries=200, return_intermediate=True, box_refine=True, num_o2m_queries=0, dac=True,
            boxRPB="log", d_model=256, frozen=False, interaction_layer=None, dac_use_selfatt_ln=True, resolution=None,
            stride=None, presence_token=True,
        )  # fmt: skip
        return theirs._create_sam3_model(
            theirs._create_vl_backbone(neck, text),
            theirs.TransformerWrapper(encoder=theirs._create_transformer_encoder(), decoder=decoder, d_model=256),
            theirs._create_geometry_encoder(),
            theirs._create_segmentation_head(),
            theirs._create_dot_product_scoring(),
            None,
            True,
        )


def _tokens(texts: list[str], context_length: int) -> torch.Tensor:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)(texts)


class _Absent(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


if __name__ == "__main__":
    record(sys.argv[1])
