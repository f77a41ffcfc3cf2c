"""CASS: CLIP's last attention completed by a second network's, and text moved toward the image.

Source: Kim et al., "Distilling Spectral Graph for Object-Context Aware Open-Vocabulary Semantic Segmentation" (CVPR 2025,
arXiv 2411.17150), code MICV-yonsei/CASS@228ecdd. Equations: `docs/methods.md#cass`. No run of the authors' code was at hand to
compare with. The released code draws a random low-rank factorisation; ours is the exact one, so results repeat. It also
pairs heads by rows and columns swapped; `swapped` does the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ovrs.methods.cass import Cass
from ovrs.model.clip.dense import DenseTokens, encode_prelude, gaussian_prior, last_block
from ovrs.model.clip.segmenter import Episodic

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.engine.arrays import Array
    from ovrs.engine.contract import TileScores
    from ovrs.model.clip.dense import Visual
    from ovrs.model.clip.parts import Parts
    from ovrs.scene.grid import Window

SPECTRUM, RANK, COUPLING, SIGMA = 20, 10, 10.0, 5.0
_HEAD_WIDTH = 64


def cass_tokens(
    visual: Visual, images: Tensor, keys: Tensor, key_grid: tuple[int, int], *, swapped: bool = False
) -> DenseTokens:
    """Patch features through the fused attention; `cls` is CLIP's own image embedding.

    Args:
        visual: open_clip `VisionTransformer`.
        images: float32 `(B, 3, H, W)`, CLIP-normalised.
        keys: `(B, N', Ce)`, keys of the second network's last block, class token left out.
        key_grid: Rows and columns of these keys.
        swapped: Read the pairing of heads as the released code does.
    """
    x, grid = encode_prelude(visual, images)
    attn = visual.transformer.resblocks[-1].attn
    y = visual.transformer.resblocks[-1].ln_1(x)
    batch, length, width = y.shape
    _, k, v = (
        F.linear(y, attn.in_proj_weight, attn.in_proj_bias)
        .reshape(batch, length, 3, attn.num_heads, -1)
        .permute(2, 0, 3, 1, 4)[..., 1:, :]
    )
    other = _on_grid(keys, key_grid, grid).to(k.dtype)
    prior = gaussian_prior(grid, SIGMA, k.device, k.dtype)[1:, 1:]
    mixed = torch.stack(
        [(fused_graph(k[b], other[b], swapped=swapped) + prior).softmax(dim=-1) @ v[b] for b in range(batch)]
    )
    out = attn.out_proj(mixed.transpose(1, 2).reshape(batch, length - 1, width))
    patches = visual.ln_post(out) @ visual.proj
    return DenseTokens(patches=patches, cls=last_block(visual, x, grid, "vanilla").cls, grid=grid)


def _on_grid(keys: Tensor, key_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Keys in heads of 64 channels on CLIP's grid, `(B, heads, N, 64)`."""
    maps = F.interpolate(keys.transpose(1, 2).unflatten(-1, key_grid), grid, mode="bilinear", align_corners=False)
    return maps.flatten(2).unflatten(1, (-1, _HEAD_WIDTH)).transpose(-1, -2)


def fused_graph(k: Tensor, other: Tensor, *, swapped: bool = False) -> Tensor:
    """Attention logits `(A, N, N)` of one image from CLIP's keys `(A, N, e)` and the other network's `(A', N, 64)`."""
    low, high = k.min(), k.max()
    spread = (other.max() - other.min()).clamp(min=1e-12)
    other = (other - other.min()) / spread * (high - low) + low
    own_graphs = k @ k.transpose(-1, -2) / math.sqrt(k.shape[-1])
    graphs = other @ other.transpose(-1, -2) / math.sqrt(other.shape[-1])
    pairs = pair_heads(_spectra(graphs), _spectra(own_graphs))
    out = own_graphs.clone()
    for row, column, distance in pairs:
        if swapped and row < len(own_graphs) and column < len(graphs):
            row, column = column, row
        if column < len(own_graphs):
            addition = _low_rank(graphs[row], own_graphs[column])
            weight = COUPLING * distance
            out[column] = (weight * addition + own_graphs[column]) / (weight + 1)
    return out


def _spectra(graphs: Tensor) -> Tensor:
    """Return the largest eigenvalues of each graph, descending, L2- then L1-normalised, `(A, 20)` in float64."""
    values = torch.linalg.eigvalsh(graphs.double())[:, -SPECTRUM:].flip(-1)
    return F.normalize(F.normalize(values, dim=-1), p=1, dim=-1)


def pair_heads(rows: Tensor, columns: Tensor) -> list[tuple[int, int, float]]:
    """Hungarian assignment of the most *dissimilar* spectra (row, column, distance): complementary heads meet."""
    from scipy.optimize import linear_sum_assignment

    distance = (rows[:, None] - columns[None]).abs().sum(dim=-1).cpu().numpy()
    chosen = zip(*linear_sum_assignment(1 - distance), strict=True)
    return [(int(i), int(j), float(distance[i, j])) for i, j in chosen]


def _low_rank(graph: Tensor, like: Tensor) -> Tensor:
    """Return the leading part of a graph, its singular values stretched, without self-loops, in the range of `like`."""
    left, strength, right = torch.linalg.svd(graph.double())
    left, strength, right = left[:, :RANK], strength[:RANK], right[:RANK]
    low, high = strength.min(), strength.max()
    share = (strength - low) / (high - low).clamp(min=1e-12)
    out = (left * (0.5 * low + share * (1.5 * high - 0.5 * low))) @ right
    out.fill_diagonal_(0)
    unit = (out - out.min()) / (out.max() - out.min()).clamp(min=1e-12)
    return (unit * (like.max() - like.min()) + like.min()).to(graph.dtype)


def cluster_classes(text: Tensor, height: float) -> list[int]:
    """Ward clusters of class vectors `(C, D)` by cosine distance, cut at `height`: the cluster of each class."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    if len(text) < 2:
        return [1] * len(text)
    tree = linkage(np.clip(pdist(text.double().cpu().numpy(), "cosine"), 0, None), method="ward")
    return [int(c) for c in fcluster(tree, t=height, criterion="distance")]


def move_text(text: Tensor, patches: Tensor, cls: Tensor, clusters: list[int], amount: float) -> Tensor:
    """In each cluster the vector most like the image goes toward its two most similar patches.

    Args:
        text: `(M, D)`, unit rows.
        patches: `(N, D)`, unit rows, of one image.
        cls: `(D,)`, unit: the image's embedding.
        clusters: Cluster of each row of `text`.
        amount: a in normalise((1 - a) t + a f).
    """
    moved = text.clone()
    likeness = text @ cls
    groups = torch.tensor(clusters, device=text.device)
    for cluster in sorted(set(clusters)):
        members = (groups == cluster).nonzero().flatten()
        chosen = members[likeness[members].argmax()]
        nearest = (patches @ text[chosen]).topk(min(2, len(patches))).indices
        toward = F.normalize(patches[nearest].mean(dim=0), dim=0)
        moved[chosen] = F.normalize((1 - amount) * text[chosen] + amount * toward, dim=0)
    return moved


class CassSegmenter(Episodic[Cass]):
    """CASS's text step: in each crop, some vectors move toward patches of that crop."""

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features, bank = self.frozen.encode(rgb, valid, crops), self.frozen.bank
        clusters = cluster_classes(bank.vectors, self.settings.cluster_height)
        texts = [
            move_text(bank.vectors, patches[ok], cls, clusters, self.settings.amount) if ok.any() else bank.vectors
            for patches, cls, ok in zip(features.patches, features.cls, features.patch_valid, strict=True)
        ]
        return self.frozen.classify(features, torch.stack(texts), bank.vectors, ("adapted",))


def segmenter(parts: Parts[Cass]) -> CassSegmenter:
    """CASS's text step on the vocabulary's queries."""
    return CassSegmenter(parts.frozen(parts.bank()), parts.settings)
