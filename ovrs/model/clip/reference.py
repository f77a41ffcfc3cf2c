"""CLIP's forward pass in plain functions on a file's own tensors: what an imported network is compared with.

Written from OpenAI's description, apart from open_clip's modules, so that a wrong name, order or activation shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ovrs.model.clip.layouts import KEPT_POSITIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@torch.no_grad()
def image_vectors(plain: Mapping[str, Tensor], images: Tensor, heads: int, *, quick: bool) -> Tensor:
    """Return unit vectors `(B, D)` of normalised images, float32 `(B, 3, side, side)`, by `bare` tensors."""
    conv = plain["visual.conv1.weight"].float()
    x = F.conv2d(images, conv, stride=conv.shape[-1]).flatten(2).transpose(1, 2)
    start = plain["visual.class_embedding"].float().expand(len(x), 1, -1)
    x = torch.cat([start, x], dim=1) + plain["visual.positional_embedding"].float()
    x = _norm(plain, "visual.ln_pre", x)
    x = _blocks(plain, "visual.", x, heads, None, quick=quick)
    return F.normalize(_norm(plain, "visual.ln_post", x[:, 0]) @ plain["visual.proj"].float(), dim=-1)


@torch.no_grad()
def text_vectors(plain: Mapping[str, Tensor], tokens: Tensor, heads: int, *, quick: bool) -> Tensor:
    """Return unit vectors `(B, D)` of token numbers, int64 `(B, length)`, read at the highest token."""
    x = F.embedding(tokens, plain["token_embedding.weight"].float()) + _table(plain)[: tokens.shape[1]]
    mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
    x = _norm(plain, "ln_final", _blocks(plain, "", x, heads, mask, quick=quick))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(dim=1)] @ plain["text_projection"].float(), dim=-1)


def _table(plain: Mapping[str, Tensor]) -> Tensor:
    first, second = plain["positional_embedding"].float(), plain.get("positional_embedding_res")
    if second is None:
        return first
    if "mask1" in plain:
        return first * plain["mask1"].float() + second.float() * plain["mask2"].float()
    return torch.cat([first[:KEPT_POSITIONS], second[KEPT_POSITIONS:].float()])


def _norm(plain: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], plain[f"{name}.weight"].float(), plain[f"{name}.bias"].float(), 1e-5)


def _linear(plain: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, plain[f"{name}.weight"].float(), plain[f"{name}.bias"].float())


def _blocks(
    plain: Mapping[str, Tensor], tower: str, x: Tensor, heads: int, mask: Tensor | None, *, quick: bool
) -> Tensor:
    layer = 0
    while f"{tower}transformer.resblocks.{layer}.ln_1.weight" in plain:
        name = f"{tower}transformer.resblocks.{layer}"
        x = x + _attention(plain, f"{name}.attn", _norm(plain, f"{name}.ln_1", x), heads, mask)
        hidden = _linear(plain, f"{name}.mlp.c_fc", _norm(plain, f"{name}.ln_2", x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if quick else F.gelu(hidden)
        x = x + _linear(plain, f"{name}.mlp.c_proj", hidden)
        layer += 1
    return x


def _attention(plain: Mapping[str, Tensor], name: str, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    batch, length, width = x.shape
    mixed = F.linear(x, plain[f"{name}.in_proj_weight"].float(), plain[f"{name}.in_proj_bias"].float())
    q, k, v = mixed.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    weights = q @ k.transpose(-1, -2) / (width // heads) ** 0.5
    if mask is not None:
        weights = weights + mask
    found = (weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, width)
    return _linear(plain, f"{name}.out_proj", found)
