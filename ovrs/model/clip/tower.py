"""CLIP's two towers in open_clip's layout: the same names, shapes and numbers, without the seconds of its import.

open_clip brings CoCa, transformers and torchvision. A plain ViT with a causal text tower needs none of them; every other
description is built by open_clip itself (`ovrs.model.clip.architecture`).
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Mapping

VISION_DEFAULTS: dict[str, Any] = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
}
TEXT_DEFAULTS: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
"""Sizes that open_clip takes where a description has none."""
VISION_REST: dict[str, Any] = {
    **dict.fromkeys(("ls_init_value", "act_kwargs", "norm_kwargs", "block_type", "timm_model_name", "timm_drop_path")),
    **dict.fromkeys(("attentional_pool", "no_ln_pre", "final_ln_after_pool", "output_tokens", "qk_norm"), False),
    **dict.fromkeys(("scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False),
    **dict.fromkeys(("timm_model_pretrained", "timm_proj_bias"), False),
    "patch_dropout": 0.0,
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_drop": 0.0,
}
TEXT_REST: dict[str, Any] = {
    **dict.fromkeys(("ls_init_value", "act_kwargs", "norm_kwargs", "block_type", "tokenizer_mode", "tokenizer_kwargs")),
    **dict.fromkeys(("hf_tokenizer_name", "hf_model_name")),
    **dict.fromkeys(
        ("embed_cls", "no_causal_mask", "final_ln_after_pool", "proj_bias", "output_tokens", "qk_norm"), False
    ),
    **dict.fromkeys(("scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False),
    "pad_id": 0,
    "eos_id": 2,
    "pool_type": "argmax",
    "proj_type": "linear",
    "hf_model_pretrained": True,
    "hf_proj_type": "mlp",
    "hf_pooler_type": "mean_pooler",
}
"""What open_clip's descriptions hold besides, in towers like ours: part of a model's digest."""
_MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_TEXT_ONLY = {"hf_tokenizer_name"}


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether open_clip's `model_cfg` describes these towers: known sizes alone, of the right types."""
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys() <= _MODEL_KEYS:
        return False
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision, dict) or not isinstance(text, dict) or type(config["embed_dim"]) is not int:
        return False
    if type(config.get("quick_gelu", False)) is not bool or not vision.keys() <= VISION_DEFAULTS.keys():
        return False
    if not text.keys() <= TEXT_DEFAULTS.keys() | _TEXT_ONLY or not isinstance(text.get("hf_tokenizer_name", ""), str):
        return False
    sizes = [(n, v) for tower in (vision, text) for n, v in tower.items() if n not in _TEXT_ONLY]
    return all(type(v) is int or (n == "mlp_ratio" and type(v) is float and math.isfinite(v)) for n, v in sizes)


def is_clip(clip: Any) -> bool:
    """Whether a network is CLIP's own pair of towers, ours or open_clip's."""
    other = sys.modules.get("open_clip")
    return isinstance(clip, Clip) or (other is not None and type(clip) is other.CLIP)


def _random(scale: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=scale))


class Unfilled(TorchFunctionMode):
    """Inside, parameters get no random values: what is filled from a file, or has no memory, needs none.

    On the meta device, random numbers would import PyTorch's compiler.
    """

    _FILLS = frozenset({"uniform_", "normal_", "fill_", "zero_", "trunc_normal_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in self._FILLS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class QuickGELU(nn.Module):
    """OpenAI's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerNorm(nn.LayerNorm):
    """In the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and beside a skip connection."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: type[nn.Module]) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = nn.Identity()
        self.ln_2 = LayerNorm(width)
        parts = [("c_fc", nn.Linear(width, hidden)), ("gelu", activation()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.ls_2 = nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        mask = None if attn_mask is None else attn_mask.to(y.dtype)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """Blocks one after another."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, activation: type[nn.Module]) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.ModuleList([Block(width, heads, mlp_ratio, activation) for _ in range(layers)])

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


class VisionTransformer(nn.Module):
    """A ViT with a class token; normalised images float32 `(B, 3, side, side)` to `(B, D)`."""

    pool_type = "tok"
    attn_pool = None

    def __init__(self, dim: int, config: Mapping[str, Any], activation: type[nn.Module]) -> None:
        super().__init__()
        c = {**VISION_DEFAULTS, **config}
        width, patch, side = c["width"], c["patch_size"], c["image_size"]
        self.image_size, self.patch_size = (side, side), (patch, patch)
        self.grid_size, self.output_dim = (side // patch, side // patch), dim
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        scale = width**-0.5
        self.class_embedding = _random(scale, width)
        self.positional_embedding = _random(scale, self.grid_size[0] * self.grid_size[1] + 1, width)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, c["layers"], width // c["head_width"], c["mlp_ratio"], activation)
        self.ln_post = LayerNorm(width)
        self.proj = _random(scale, width, dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding.to(x.dtype)))
        return self.ln_post(x)[:, 0] @ self.proj


class Clip(nn.Module):
    """Both towers, the text tower's parts at the top as in open_clip's `CLIP`."""

    text_pool_type = "argmax"
    text_eos_id = 2
    logit_bias = None
    attn_mask: Tensor

    def __init__(
        self, embed_dim: int, vision_cfg: Mapping[str, Any], text_cfg: Mapping[str, Any], quick_gelu: bool = False
    ) -> None:
        super().__init__()
        activation: type[nn.Module] = QuickGELU if quick_gelu else nn.GELU
        c = {**TEXT_DEFAULTS, **text_cfg}
        width, length = c["width"], c["context_length"]
        self.visual = VisionTransformer(embed_dim, vision_cfg, activation)
        self.transformer = Transformer(width, c["layers"], c["heads"], c["mlp_ratio"], activation)
        self.context_length, self.vocab_size = length, c["vocab_size"]
        self.token_embedding = nn.Embedding(c["vocab_size"], width)
        self.positional_embedding = _random(0.01, length, width)
        self.ln_final = LayerNorm(width)
        self.text_projection = _random(width**-0.5, width, embed_dim)
        # on the processor also where the parameters have no memory yet: no file of weights holds it
        self.register_buffer(
            "attn_mask", torch.full((length, length), -math.inf, device="cpu").triu(1), persistent=False
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features: Tensor = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        x = x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)] @ self.text_projection
        return F.normalize(x, dim=-1) if normalize else x
