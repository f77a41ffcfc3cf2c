"""A tiny SAM 3 with random weights: 64 px images, 3.7 M parameters, most of them the words of CLIP's tokenizer."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY, BEGIN, END = 49408, 49406, 49407
"""CLIP's, as in the real model."""


def config(vocabulary: int = VOCABULARY) -> Any:
    """Sizes that run every code path: windowed and global layers, three neck levels, ten queries."""
    from transformers import Sam3Config

    small = {"hidden_size": 32, "num_attention_heads": 4}
    return Sam3Config(
        vision_config={
            "model_type": "sam3_vision_model",
            "fpn_hidden_size": 32,
            "scale_factors": [4.0, 2.0, 1.0, 0.5],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 64,
                "pretrain_image_size": 32,
                "patch_size": 8,
                "window_size": 4,
                "global_attn_indexes": [1, 3],
            },
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "hidden_size": 64,  # the width of the vision tower, as in the real model
            "intermediate_size": 128,
            "projection_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "hidden_act": "gelu",
            "pad_token_id": 0,
            "bos_token_id": BEGIN,
            "eos_token_id": END,
        },
        geometry_encoder_config={**small, "num_layers": 1, "intermediate_size": 64},
        detr_encoder_config={**small, "num_layers": 2, "intermediate_size": 64},
        detr_decoder_config={**small, "num_layers": 2, "num_queries": 10, "intermediate_size": 64},
        mask_decoder_config={**small, "num_upsampling_stages": 3},
    )


def build(seed: int = 0) -> Any:
    """Make the network, equal weights for equal seeds; the caller's random state stays."""
    from transformers import Sam3Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sam3Model(config()).eval().requires_grad_(False)
