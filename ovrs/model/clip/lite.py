"""EfficientNet-Lite as features at strides 16 and 32, in timm's layout: the same names, shapes and numbers.

Source: EfficientNet-Lite (tensorflow/tpu); names of timm's `EfficientNetFeatures`, whose import takes seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}
"""Factors of channels and of blocks in a stage, by timm's names."""
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, side of the kernel, stride, expansion, channels."""
_TAPS = (4, 6)
"""Stages whose output is given: the last ones at strides 16 and 32."""


class _Norm(nn.BatchNorm2d):
    """Batch norm with its activation."""

    def __init__(self, channels: int, *, active: bool = True) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act: nn.Module = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


class _Separable(nn.Module):
    """The first stage's block."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.skip = stride == 1 and inputs == outputs
        self.conv_dw: nn.Module = _depthwise(inputs, kernel, stride)
        self.bn1: nn.Module = _Norm(inputs)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2: nn.Module = _Norm(outputs, active=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return y + x if self.skip else y


class _Inverted(nn.Module):
    """Expand, convolve each channel, and bring back."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.skip = stride == 1 and inputs == outputs
        hidden = _channels(inputs * expansion)
        self.conv_pw = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1: nn.Module = _Norm(hidden)
        self.conv_dw: nn.Module = _depthwise(hidden, kernel, stride)
        self.bn2: nn.Module = _Norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3: nn.Module = _Norm(outputs, active=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        out: Tensor = self.bn3(self.conv_pwl(y))
        return out + x if self.skip else out


class LiteFeatures(nn.Module):
    """Images float32 `(n, 3, h, w)` to two maps, at strides 16 and 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        wide, deep = SCALES[name]
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1: nn.Module = _Norm(32)
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in _stages(wide, deep)))
        self.channels = [_channels(_STAGES[tap][4] * wide) for tap in _TAPS]

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.bn1(self.conv_stem(x)), []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in _TAPS:
                found.append(x)
        return found


def _stages(wide: float, deep: float) -> Iterator[list[nn.Module]]:
    inputs = 32
    for index, (count, kernel, stride, expansion, channels) in enumerate(_STAGES):
        outer = index in (0, len(_STAGES) - 1)  # the first and the last stage keep their depth
        outputs, stage = _channels(channels * wide), list[nn.Module]()
        for number in range(count if outer else math.ceil(count * deep)):
            own = stride if number == 0 else 1
            block = (
                _Separable(inputs, outputs, kernel, own)
                if expansion == 1
                else _Inverted(inputs, outputs, kernel, own, expansion)
            )
            stage.append(block)
            inputs = outputs
        yield stage


def _channels(wanted: float) -> int:
    """Return the nearest multiple of 8, at most a tenth less than wanted."""
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * wanted else nearest
