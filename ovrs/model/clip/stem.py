"""A convolutional stem in the place of a ViT's patch embedding.

"Early convolutions help transformers see better" (Xiao et al., 2021), and a small transformer has no other way to profit
from a network that has learned what things look like. The class stands where open_clip's `conv1` stands and gives what
that gives, one vector per 16 px patch, so attention variants, layer fusion and adaptation apply as to any ViT.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ovrs.model.clip.lite import SCALES, LiteFeatures
from ovrs.model.clip.singles import COLOUR_MEAN, COLOUR_STD

if TYPE_CHECKING:
    from collections.abc import Iterator

PATCH = 16


class ConvStem(nn.Module):
    """CLIP-normalised float32 `(n, 3, h, w)` to `(n, width, h/16, w/16)`.

    A timm network of the EfficientNet-Lite family gives maps at strides 16 and 32; a small head joins them.
    """

    kernel_size = (PATCH, PATCH)
    gain: Tensor
    offset: Tensor

    def __init__(self, timm_model: str, width: int, hidden: int = 512) -> None:
        super().__init__()
        net, joined = _features(timm_model)
        self.net = net
        for bn in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            bn.eps = 1e-3  # TensorFlow's, with which these networks were trained
        _centre(net)
        self.head = nn.Sequential(
            nn.BatchNorm2d(joined),
            nn.Conv2d(joined, hidden, 1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )
        mean, std = (torch.tensor(v, device="cpu")[:, None, None] for v in (COLOUR_MEAN, COLOUR_STD))
        self.register_buffer("gain", std * 255 / 128)
        self.register_buffer("offset", (mean * 255 - 127) / 128)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.addcmul(self.offset, images, self.gain).contiguous(memory_format=torch.channels_last)
        fine, coarse = self.net(x)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        out: Tensor = self.head(torch.cat([fine, coarse], 1))
        return out

    def fuse(self) -> None:
        """Fold the batch norms into the convolutions before them: the same numbers in fewer passes over memory."""
        for parent, convolution, norm in list(_followed_by_norm(self.net)):
            bn = getattr(parent, norm)
            setattr(parent, convolution, _fused(getattr(parent, convolution), bn))
            setattr(parent, norm, nn.Sequential(bn.drop, bn.act))


def _features(name: str) -> tuple[Any, int]:
    """Return the network by timm's name, random weights, and the channels of its two maps together."""
    if name in SCALES:
        own = LiteFeatures(name)
        return own, sum(own.channels)
    import timm

    net: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=(3, 4))
    return net, sum(net.feature_info.channels())


def _centre(net: Any) -> None:
    """Let the step from stride 8 to 16 look one pixel further down and right.

    Symmetric padding centres the output i of a strided convolution at input 2i, half a pixel before the middle of the
    two it stands for; after four of them that is 7.5 px, half a patch. Turning the last one leaves half a pixel.
    """
    block = net.blocks[3][0]
    convolution = block.conv_dw
    before, after = convolution.padding[0] - 1, convolution.padding[0]
    convolution.padding = (0, 0)
    block.conv_dw = nn.Sequential(nn.ZeroPad2d((before, after, before, after)), convolution)


def _followed_by_norm(net: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, convolution, batch norm) by their names."""
    for parent in net.modules():
        names = [n for n, _ in parent.named_children()]
        for first, second in itertools.pairwise(names):
            if isinstance(getattr(parent, second), nn.BatchNorm2d):
                yield parent, first, second


def _fused(convolution: nn.Module, bn: nn.BatchNorm2d) -> nn.Module:
    if isinstance(convolution, nn.Sequential):
        return nn.Sequential(*convolution[:-1], _fused(convolution[-1], bn))
    if not isinstance(convolution, nn.Conv2d):
        raise TypeError(f"a batch norm follows {type(convolution).__name__}, not a convolution")
    return fuse_conv_bn_eval(convolution, bn)
