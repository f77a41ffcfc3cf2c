"""Patch-level features from a CLIP vision tower: the same weights, another last block.

Sources (equations in `docs/methods.md#dense-features`): SegEarth-OV (arXiv 2410.01768), SCLIP, ClearCLIP, NACLIP, MaskCLIP.
Only the last transformer block differs between the variants; everything before it is plain CLIP.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovrs.errors import OptionError, WeightsError
from ovrs.methods.clip import LAST_BLOCK_VARIANTS, DenseVariant
from ovrs.model.clip.towers import DenseTower, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

Visual: TypeAlias = Any
"""open_clip's `VisionTransformer`: its attributes are what `check_vit` looks for, but nn.Module hides their types."""

Mixing: TypeAlias = "Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]"

_NACLIP_SIGMA = 5.0
"""Standard deviation of NACLIP's Gaussian neighbourhood, in patches, whatever the window size."""


class DenseTokens(NamedTuple):
    """Features of one batch of crops in the joint embedding space, not normalised."""

    patches: Tensor
    """float32 `(B, N, D)`, patch `i * w + j` is grid row i, column j."""
    cls: Tensor
    """float32 `(B, D)`: token 0 of the same, modified branch. This, not CLIP's image embedding, is what
    SegEarth-OV subtracts (released code, `docs/methods.md#dense-features`)."""
    grid: tuple[int, int]
    """Rows and columns of patches, `h * w == N`."""


def check_vit(visual: Visual) -> None:
    """Refuse towers whose layout the dense variants do not fit.

    Raises:
        WeightsError: The tower is neither a plain open_clip ViT with a class token nor one of `ovrs.model.clip.towers`.
    """
    if isinstance(visual, DenseTower):
        return
    needed = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj")
    missing = [name for name in needed if getattr(visual, name, None) is None]
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    if missing or not blocks or not isinstance(getattr(blocks[-1], "attn", None), nn.MultiheadAttention):
        raise unsupported(
            f"this one ({type(visual).__name__}) lacks {', '.join(missing) or 'standard attention blocks'}"
        )
    if getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", "tok") != "tok":
        raise unsupported("this one is a ViT of open_clip that pools by attention or mean")


def encode_prelude(visual: Visual, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Run everything before the last block.

    Args:
        visual: open_clip `VisionTransformer`.
        images: float32 `(B, 3, H, W)`, CLIP-normalised, H and W multiples of the patch size.

    Returns:
        The token sequence entering the last block `(B, 1 + N, d)` and the patch grid `(h, w)`.
    """
    x = visual.conv1(images)
    grid = (x.shape[-2], x.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    x = torch.cat([cls, x], dim=1) + position_embedding(visual, grid).to(x.dtype)
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    return x, grid


def position_embedding(visual: Visual, grid: tuple[int, int]) -> Tensor:
    """Position embeddings for another patch grid, `(1 + N, d)`.

    The DINO recipe, which all the reproduced code bases use: bicubic with the scale factor (size + 0.1) / native
    and the sampling step taken from that factor. Resizing to the target size instead gives other features.
    """
    stored: Tensor = visual.positional_embedding
    native_h, native_w = visual.grid_size
    if grid == (native_h, native_w):
        return stored
    square = stored[1:].reshape(1, native_h, native_w, -1).permute(0, 3, 1, 2)
    factor = ((grid[0] + 0.1) / native_h, (grid[1] + 0.1) / native_w)
    resized = F.interpolate(
        square.float(), scale_factor=factor, mode="bicubic", align_corners=False, recompute_scale_factor=False
    )
    if resized.shape[-2:] != torch.Size(grid):
        raise WeightsError(f"position grid came out as {tuple(resized.shape[-2:])}, expected {grid}")
    patches = resized.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)
    return torch.cat([stored[:1], patches.to(stored.dtype)], dim=0)


def dense_tokens(visual: Visual, images: Tensor, variant: DenseVariant = "segearth") -> DenseTokens:
    """Patch features of a batch of crops through the chosen last block (arguments as `encode_prelude`).

    Towers without CLIP's last block have one way, whatever the variant (`ovrs.model.clip.towers.require_method`).
    """
    if isinstance(visual, DenseTower):
        return DenseTokens(*visual.dense(images))
    x, grid = encode_prelude(visual, images)
    return last_block(visual, x, grid, variant)


def last_block(visual: Visual, x: Tensor, grid: tuple[int, int], variant: DenseVariant) -> DenseTokens:
    """Apply the modified last block, `ln_post` and the projection to every token."""
    block = visual.transformer.resblocks[-1]
    if variant == "vanilla":
        out = block(x)
    else:
        attended = attend(block.attn, block.ln_1(x), grid, mixing(variant))
        if (
            variant in REDUCED
        ):  # no skip connection and no feed-forward: the skip carries a few huge channels (ClearCLIP)
            out = attended
        else:
            out = x + block.ls_1(attended)
            out = out + block.ls_2(block.mlp(block.ln_2(out)))
    out = visual.ln_post(out) @ visual.proj
    return DenseTokens(patches=out[:, 1:], cls=out[:, 0], grid=grid)


def attend(attn: nn.MultiheadAttention, x: Tensor, grid: tuple[int, int], mix: Mixing) -> Tensor:
    """Attention branch of a block on normalised tokens `(B, 1 + N, d)`, after the output projection."""
    batch, length, width = x.shape
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.reshape(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    out = mix(q, k, v, grid).transpose(1, 2).reshape(batch, length, width)
    return attn.out_proj(out)


def _self_self(u: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(u, u, v, attn_mask=bias)


def _mix_value(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    return v


def _mix_sclip(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    return _self_self(q, v) + _self_self(k, v)


def _mix_clearclip(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    return _self_self(q, v)


def _mix_naclip(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    return _self_self(k, v, gaussian_prior(grid, _NACLIP_SIGMA, k.device, k.dtype))


def _mix_segearth(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    # A plain sum: rows add to three. Dividing is not equivalent because out_proj has a bias.
    return _self_self(q, v) + _self_self(k, v) + _self_self(v, v)


def _mix_vanilla(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _mix_kk(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    return _self_self(k, v)


def _mix_neighbours_only(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    # The released code takes the mean length over the batch too; ours is each image's own, so that a crop's features
    # do not depend on what else is computed (the same for one image).
    length = (q.norm(dim=-1).mean(dim=-1) * k.norm(dim=-1).mean(dim=-1)).mean(dim=1) / math.sqrt(q.shape[-1])
    prior = gaussian_prior(grid, _NACLIP_SIGMA, k.device, k.dtype)
    return (length[:, None, None, None] * prior).softmax(dim=-1) @ v


_MIXING: dict[str, Mixing] = {
    "vanilla": _mix_vanilla,
    "maskclip": _mix_value,
    "sclip": _mix_sclip,
    "clearclip": _mix_clearclip,
    "naclip": _mix_naclip,
    "naclip_residual": _mix_naclip,
    "naclip_kk": _mix_kk,
    "naclip_nonly": _mix_neighbours_only,
    "naclip_vanilla": _mix_vanilla,
    "segearth": _mix_segearth,
}
"""Variants that change the last block alone and need nothing but the tower: what LayerNorm adapters can work with."""
REDUCED = frozenset({"clearclip", "naclip", "naclip_kk", "naclip_nonly", "naclip_vanilla", "segearth"})
"""Variants whose last block has neither skip connection nor feed-forward."""


def mixing(variant: str) -> Mixing:
    """How a variant mixes values: `(q, k, v, grid)` of one block, each `(B, heads, 1 + N, e)`, to the same shape.

    Raises:
        OptionError: Unknown variant.
    """
    try:
        return _MIXING[variant]
    except KeyError:
        raise OptionError(
            f"dense variant {variant!r} is no change of the last block alone; choose one of "
            f"{', '.join(LAST_BLOCK_VARIANTS)}"
        ) from None


def gaussian_prior(grid: tuple[int, int], sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """NACLIP's additive neighbourhood prior `(1 + N, 1 + N)`; the class token's row and column are zero."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    position = torch.stack([rows.flatten(), cols.flatten()], dim=1).to(torch.float64)
    square = (position[:, None] - position[None]).square().sum(-1)
    prior = torch.zeros(1 + len(position), 1 + len(position), dtype=torch.float64)
    prior[1:, 1:] = torch.exp(-square / (2 * sigma * sigma))
    return prior.to(device=device, dtype=dtype)


def patch_size(visual: Visual) -> int:
    """Side of a patch in pixels (square patches only)."""
    if isinstance(visual, DenseTower):
        return visual.patch
    height, width = visual.conv1.kernel_size
    if height != width:
        raise WeightsError(f"patches must be square, this tower has {height}x{width}")
    return int(height)


def native_size(visual: Visual) -> int:
    """Side of the tower's training image in pixels."""
    if isinstance(visual, DenseTower):
        return visual.native
    return int(math.sqrt(visual.grid_size[0] * visual.grid_size[1])) * patch_size(visual)
