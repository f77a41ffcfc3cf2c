"""Joint bilateral upsampling of dense features, guided by the image (SimFeatUp, FeatUp).

Source: SegEarth-OV (arXiv 2410.01768) and FeatUp (arXiv 2403.10516), code likyoo/SegEarth-OV@3e22a96. Equations:
`docs/methods.md#upsampler`. The kernel of a pixel is the same for every channel, so upsampling is linear in the features: callers
upsample a few score maps instead of D channels (`ovrs.model.clip.upsample`).

Neighbourhoods are never unfolded. A row is cut into strips; for each row offset, one batched matrix product gives all
products of a strip's pixels with the strip's surroundings, and the wanted ones lie on diagonals, which a strided view
reads without copying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

RADIUS = {"jbu_one": 5, "jbu_stack": 3}
STAGES = 4
_STRIP = 16
"""Pixels per strip: with a radius of 5, 16 × 26 products are computed for 16 × 11 wanted ones."""


class JbuStage(nn.Module):
    """Doubles the grid once. Parameter names are those of published SimFeatUp checkpoints."""

    def __init__(self, radius: int, key_dim: int = 32) -> None:
        super().__init__()
        self.radius, self.diameter = radius, 2 * radius + 1
        taps = self.diameter**2
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        # positions 1 and 2 are an activation and, in training, a channel dropout
        self.range_proj = nn.Sequential(
            nn.Conv2d(3, key_dim, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(key_dim, key_dim, 1)
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(taps + 3, taps, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(taps, taps, 1)
        )

    def kernel(self, guide: Tensor) -> Tensor:
        """Taps of every pixel from the image at this stage's size `(B, 3, H, W)`, in the layout of `correlate`.

        Raises:
            ValueError: Fewer than radius + 1 rows or columns: reflection has nothing to reflect.
        """
        if min(guide.shape[-2:]) <= self.radius:
            raise ValueError(f"joint bilateral upsampling needs more than {self.radius} pixels, got {guide.shape[-2:]}")
        near = correlate(self.range_proj(guide), self.radius)
        weight = (self.range_temp.exp().clamp(1e-4, 1e4) * near).softmax(dim=-1) * self.spatial().flatten()
        weight = weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-7)
        return weight + 0.1 * self._correction(weight, guide)

    def _correction(self, weight: Tensor, guide: Tensor) -> Tensor:
        """`fixup_proj` of taps and guide together, as matrix products on the taps' layout (its dropout is left out)."""
        first, second = self.fixup_proj[0], self.fixup_proj[3]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        matrix = first.weight[:, :, 0, 0]
        taps = weight.shape[-1]
        colour = F.pad(guide, (0, weight.shape[2] - guide.shape[-1])).permute(0, 2, 3, 1)
        hidden = F.linear(weight, matrix[:, :taps]) + F.linear(colour, matrix[:, taps:], first.bias)
        return F.linear(F.gelu(hidden), second.weight[:, :, 0, 0], second.bias)

    def spatial(self) -> Tensor:
        """Gaussian over the taps `(1, Δ², 1, 1)`, in normalised coordinates: -1 to 1 across the window."""
        axis = torch.linspace(-1, 1, self.diameter, device=self.sigma_spatial.device)
        square = axis[:, None].square() + axis[None, :].square()
        return torch.exp(-square / (2 * self.sigma_spatial.square())).reshape(1, -1, 1, 1)

    def forward(self, source: Tensor, guide: Tensor) -> Tensor:
        """`(B, C, h, w)` and the image `(B, 3, H, W)` to `(B, C, 2h, 2w)`."""
        size = (source.shape[-2] * 2, source.shape[-1] * 2)
        taps = self.kernel(F.adaptive_avg_pool2d(guide, size))
        return apply_kernel(F.interpolate(source, size=size, mode="bicubic", align_corners=False), taps, self.radius)


class Jbu(nn.Module):
    """Four stages, 16 times the grid: one set of weights for all (`jbu_one`) or one per stage (`jbu_stack`)."""

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind, self.dim = kind, dim
        if kind == "jbu_one":
            self.up = JbuStage(RADIUS[kind])
        else:
            self.up1, self.up2, self.up3, self.up4 = (JbuStage(RADIUS[kind]) for _ in range(STAGES))
        self.fixup_proj = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(dim, dim, 1))

    def stages(self) -> list[JbuStage]:
        """Return the stages in order of use."""
        return [self.up] * STAGES if self.kind == "jbu_one" else [self.up1, self.up2, self.up3, self.up4]

    def expand(self, maps: Tensor, image: Tensor) -> Tensor:
        """Apply the linear part alone: any channels `(B, C, h, w)` to `(B, C, 16 h, 16 w)`, guided by `image`."""
        for stage in self.stages():
            maps = stage(maps, image)
        return maps

    def final(self) -> tuple[Tensor, Tensor]:
        """Return the last 1 × 1 convolution with its skip connection as a matrix `(D, D)` and an offset `(D,)`."""
        conv = self.fixup_proj[1]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        identity = torch.eye(self.dim, device=conv.weight.device, dtype=conv.weight.dtype)
        return identity + 0.1 * conv.weight[:, :, 0, 0], 0.1 * conv.bias

    def forward(self, source: Tensor, image: Tensor) -> Tensor:
        """All D channels `(B, D, h, w)`, as the reference does it: dear, for checks and training."""
        x = self.expand(source, image)
        return x + 0.1 * self.fixup_proj(x)


def correlate(x: Tensor, radius: int) -> Tensor:
    """Dot products of every pixel with its reflect-padded neighbours.

    Args:
        x: `(B, C, H, W)`.
        radius: r, for Δ = 2 r + 1.

    Returns:
        `(B, H, W', Δ²)`, W' being W made up to whole strips; what lies beyond W means nothing.
    """
    batch, _, height, width = x.shape
    diameter, strips = 2 * radius + 1, -(-width // _STRIP)
    rest = strips * _STRIP - width
    centre = _strips(F.pad(x, (0, rest)), 0)  # (B, H, strips, 16, C)
    around = _strips(
        F.pad(F.pad(x, (radius,) * 4, mode="reflect"), (0, rest)), radius
    )  # (B, H + 2r, strips, 16 + 2r, C)
    turned = around.transpose(-1, -2)
    rows = [_diagonals(centre @ turned[:, dy : dy + height], diameter) for dy in range(diameter)]
    return torch.stack(rows, dim=-2).view(batch, height, strips * _STRIP, diameter**2)


def apply_kernel(x: Tensor, taps: Tensor, radius: int) -> Tensor:
    """Weighted sums of the reflect-padded neighbours: `(B, C, H, W)` and taps as `correlate` lays them out."""
    batch, channels, height, width = x.shape
    diameter, strips = 2 * radius + 1, -(-width // _STRIP)
    padded = F.pad(x, (radius,) * 4, mode="reflect")
    around = _strips(F.pad(padded, (0, strips * _STRIP - width)), radius)
    weights = taps.view(batch, height, strips, _STRIP, diameter, diameter).transpose(-2, -3)
    bands = _bands(weights)  # (B, H, strips, Δ, 16, 16 + 2r)
    total = x.new_zeros(batch * height * strips, _STRIP, channels)
    for dy in range(diameter):
        total = torch.baddbmm(total, bands[..., dy, :, :].flatten(0, 2), around[:, dy : dy + height].flatten(0, 2))
    return total.view(batch, height, strips * _STRIP, channels)[:, :, :width].permute(0, 3, 1, 2)


def _strips(x: Tensor, radius: int) -> Tensor:
    """`(B, C, H, W)` to overlapping strips `(B, H, W / 16, 16 + 2 radius, C)`, contiguous."""
    return x.unfold(-1, _STRIP + 2 * radius, _STRIP).permute(0, 2, 3, 4, 1).contiguous()


def _diagonals(products: Tensor, diameter: int) -> Tensor:
    """Of `(…, 16, 16 + 2r)`, entries (i, i + j) for j below the diameter: `(…, 16, Δ)`."""
    width = products.shape[-1]
    flat = products.flatten(-2)
    # reading rows one longer than they are shifts each by one more: the band becomes columns
    skewed = F.pad(flat, (0, _STRIP)).unflatten(-1, (_STRIP, width + 1))
    return skewed[..., :diameter]


def _bands(weights: Tensor) -> Tensor:
    """Invert `_diagonals`: `(…, 16, Δ)` to `(…, 16, 16 + 2r)`, zero off the band."""
    diameter = weights.shape[-1]
    width = _STRIP + diameter - 1
    skewed = F.pad(weights, (0, width + 1 - diameter)).flatten(-2)
    return skewed[..., : _STRIP * width].unflatten(-1, (_STRIP, width))
