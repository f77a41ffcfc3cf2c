"""GEM: self-self attention in the last blocks, gathered in a stream beside the unchanged one.

Source: Bousselham et al., "Grounding Everything" (CVPR 2024, arXiv 2312.00878), code WalBouss/GEM@5fa677c. Equations:
`docs/methods.md#dense-features`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ovrs.model.clip.dense import DenseTokens

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.dense import Visual


def gem_tokens(
    visual: Visual, images: Tensor, depth: int | None = None, iterations: int = 1, temperature: float | None = None
) -> DenseTokens:
    """Patch features of the GEM stream (arguments as `encode_prelude`).

    Args:
        visual: open_clip `VisionTransformer`.
        images: float32 `(B, 3, H, W)`.
        depth: The last `depth` - 1 blocks are changed, as the released code counts. Default: 7 of 12 blocks, in
            proportion for other towers.
        iterations: Rounds of clustering before the final attention.
        temperature: Inverse temperature τ; default: each image's mean token length over the root of the head width.
    """
    x = visual.conv1(images)
    grid = (x.shape[-2], x.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = visual.ln_pre(x + _position_embedding(visual, grid).to(x.dtype))
    blocks = visual.transformer.resblocks
    changed = len(blocks) // 2 if depth is None else min(depth - 1, len(blocks))
    first = len(blocks) - changed
    for block in blocks[:first]:
        x = block(x)
    gem = x
    for block in blocks[first:]:
        gem = gem + _self_self(block.attn, block.ln_1(x), iterations, temperature)
        x = block(x)
    out = visual.ln_post(gem) @ visual.proj
    return DenseTokens(patches=out[:, 1:], cls=out[:, 0], grid=grid)


def _self_self(attn: torch.nn.MultiheadAttention, y: Tensor, iterations: int, temperature: float | None) -> Tensor:
    batch, length, width = y.shape
    q, k, v = (
        F.linear(y, attn.in_proj_weight, attn.in_proj_bias)
        .reshape(batch, length, 3, attn.num_heads, -1)
        .permute(2, 0, 3, 1, 4)
    )
    if temperature is None:
        tau = (y.norm(dim=-1).mean(dim=-1) / math.sqrt(q.shape[-1]))[:, None, None, None]
    else:
        tau = y.new_full((1, 1, 1, 1), temperature)
    total = torch.zeros_like(v)
    for u in (v, k, q):
        for _ in range(iterations):
            u = F.normalize(u, dim=-1)
            u = (tau * u @ u.transpose(-1, -2)).softmax(dim=-1) @ u
        u = F.normalize(u, dim=-1)
        total = total + (tau * u @ u.transpose(-1, -2)).softmax(dim=-1) @ v
    return attn.out_proj((total / 3).transpose(1, 2).reshape(batch, length, width))


def _position_embedding(visual: Visual, grid: tuple[int, int]) -> Tensor:
    """GEM resizes the grid to the target size with antialiasing, unlike every other code base (`docs/methods.md#dense-features`)."""
    stored: Tensor = visual.positional_embedding
    native_h, native_w = visual.grid_size
    if grid == (native_h, native_w):
        return stored
    square = stored[1:].reshape(1, native_h, native_w, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square.float(), size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([stored[:1], resized.permute(0, 2, 3, 1).flatten(1, 2)[0].to(stored.dtype)], dim=0)
