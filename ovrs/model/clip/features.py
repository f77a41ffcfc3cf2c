"""Features of one tile, and their projection onto text: all that heads and adapters work with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from ovrs.scene.grid import Window


@dataclass(frozen=True)
class WideWindows:
    """Wider windows of one shape, among the inputs of a tile (`ovrs.model.clip.windows`)."""

    size: int
    """Side in crops."""
    rows: slice
    """Where they stand among the tile's inputs."""
    crops: tuple[Window, ...]
    pad: tuple[int, int]
    inner: tuple[int, int]
    flip: tuple[int, ...] = ()
    """Axes (-2 rows, -1 columns) along which the network saw them flipped; features lie as the ground does."""


@dataclass(frozen=True, eq=False)
class TileFeatures:
    """What the frozen encoder says about one tile: B inputs, a grid of h × w patches each.

    The inputs show the crops, all of one size, and after them the wider windows, if there are any.
    """

    patches: Tensor
    """float32 `(B, N, D)`, unit vectors."""
    cls: Tensor
    """float32 `(B, D)`, unit vectors: token 0 of the modified branch."""
    grid: tuple[int, int]
    pad: tuple[int, int]
    """Rows and columns of padding in the network's input before the crop's first pixel."""
    inner: tuple[int, int]
    """Rows and columns of the network's input that show the crop: more than the crop has, if windows are enlarged."""
    crops: tuple[Window, ...]
    """Crop windows relative to the tile."""
    shape: tuple[int, int]
    """Height and width of the tile."""
    patch_valid: Tensor
    """bool `(B, N)`: patches with enough valid ground."""
    valid: Tensor
    """bool `(height, width)`."""
    images: Tensor
    """float32 `(B, 3, h, w)`: the network's inputs, padding included; guide of the joint bilateral upsampler."""
    lengths: Tensor
    """float32 `(B, N)`: lengths of the patch features before normalisation."""
    wide: tuple[WideWindows, ...] = ()

    def parts(self) -> Iterator[tuple[int, slice, TileFeatures]]:
        """Return the crops alone, then wider windows of one shape each, as (side in crops, rows, features of these inputs)."""
        yield 1, slice(len(self.crops)), self._part(slice(len(self.crops)), self.crops, self.pad, self.inner)
        for w in self.wide:
            yield w.size, w.rows, self._part(w.rows, w.crops, w.pad, w.inner)

    def _part(
        self, rows: slice, crops: tuple[Window, ...], pad: tuple[int, int], inner: tuple[int, int]
    ) -> TileFeatures:
        if not self.wide:
            return self
        return replace(
            self,
            patches=self.patches[rows],
            cls=self.cls[rows],
            pad=pad,
            inner=inner,
            crops=crops,
            patch_valid=self.patch_valid[rows],
            images=self.images[rows],
            lengths=self.lengths[rows],
            wide=(),
        )

    @property
    def crop_shape(self) -> tuple[int, int]:
        return self.crops[0].shape

    @property
    def input_shape(self) -> tuple[int, int]:
        """Rows and columns of the network's inputs."""
        return (self.images.shape[-2], self.images.shape[-1])


def together(tiles: Sequence[TileFeatures]) -> TileFeatures:
    """Features of tiles whose crops lie alike, as if their inputs, tile after tile, were one tile's."""
    if len(tiles) == 1:
        return tiles[0]
    return replace(
        tiles[0],
        patches=torch.cat([t.patches for t in tiles]),
        cls=torch.cat([t.cls for t in tiles]),
        patch_valid=torch.cat([t.patch_valid for t in tiles]),
        images=torch.cat([t.images for t in tiles]),
        lengths=torch.cat([t.lengths for t in tiles]),
    )


def cosines(features: TileFeatures, text: Tensor, base_text: Tensor, cls_weight: float) -> Tensor:
    """Low-resolution logits without temperature `(B, M, N)`: patch · text + λ · (cls · base text).

    Args:
        features: Of one tile.
        text: `(M, D)`, or `(B, M, D)` when every crop has its own.
        base_text: `(M, D)` or `(B, M, D)`, the uncalibrated text that the global term uses (`docs/methods.md#dense-features`).
        cls_weight: λ.
    """
    low = text @ features.patches.transpose(1, 2)
    if cls_weight:
        low = low + cls_weight * of_whole(features, base_text)[:, :, None]
    return low


def of_whole(features: TileFeatures, base_text: Tensor) -> Tensor:
    """Cosines of the inputs' global tokens with the text, `(B, M)`; `base_text` as in `cosines`."""
    if base_text.ndim == 2:
        return features.cls @ base_text.T
    return (base_text @ features.cls[..., None])[..., 0]
