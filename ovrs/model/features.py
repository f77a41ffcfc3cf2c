"""Features of one tile, and their projection onto text: all that heads and adapters work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ovrs.model.cass import cass_tokens
from ovrs.model.dense import DenseTokens, DenseVariant, dense_tokens, patch_size
from ovrs.model.gem import gem_tokens
from ovrs.model.proxy import ExternalViT, proxy_tokens
from ovrs.tiling import taper

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.grid import Window
    from ovrs.model.loading import LoadedModel

EXTERNAL_VARIANTS = frozenset({"proxyclip", "cass"})
"""Dense variants that need a second network."""

VALID_SHARE = 0.5
"""Patches with less valid ground than this neither give prototypes nor enter the loss (`methods` 6.5)."""


@dataclass(frozen=True, eq=False)
class TileFeatures:
    """What the frozen encoder says about one tile. B crops of one size, a grid of h × w patches each."""

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

    @property
    def crop_shape(self) -> tuple[int, int]:
        return self.crops[0].shape

    @property
    def input_shape(self) -> tuple[int, int]:
        """Rows and columns of the network's inputs."""
        return (self.images.shape[-2], self.images.shape[-1])


@dataclass(frozen=True, eq=False)
class CropInputs:
    """The crops of one tile as the network's inputs."""

    images: Tensor
    """float32 `(B, 3, h, w)`, enlarged, then padded with mean colour to whole patches on all sides."""
    pad: tuple[int, int]
    inner: tuple[int, int]
    """Rows and columns between the padding."""
    crops: tuple[Window, ...]
    valid: Tensor
    """bool `(height, width)` of the tile."""
    crop_valid: Tensor
    """float32 `(B, 1, h, w)`, 0 or 1."""

    def features(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> TileFeatures:
        """Attach what a network said about these crops: `(B, N, D)` and `(B, D)`, of any length."""
        share = F.adaptive_avg_pool2d(self.crop_valid, grid).flatten(1)
        patches = patches.float()
        return TileFeatures(
            F.normalize(patches, dim=-1),
            F.normalize(cls.float(), dim=-1),
            grid,
            self.pad,
            self.inner,
            self.crops,
            (self.valid.shape[0], self.valid.shape[1]),
            share >= VALID_SHARE,
            self.valid,
            self.images,
            patches.norm(dim=-1),
        )


def crop_inputs(
    model: LoadedModel, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...], zoom: float = 1.0
) -> CropInputs:
    """Cut a tile into the network's inputs, each crop `zoom` times as large as it is."""
    patch = patch_size(model.clip.visual)
    image = normalise(model, rgb, valid)
    mask = torch.from_numpy(np.ascontiguousarray(valid)).to(model.device)
    windows = [(slice(c.row_off, c.row_end), slice(c.col_off, c.col_end)) for c in crops]
    stack = torch.stack([image[(slice(None), *w)] for w in windows])
    share = torch.stack([mask[w] for w in windows]).float()[:, None]
    if zoom != 1:
        stack, share = (F.interpolate(x, _enlarged(crops[0].shape, zoom), mode="bilinear") for x in (stack, share))
    height, width = stack.shape[2:]
    lack = (-height % patch, -width % patch)
    pad = (lack[0] // 2, lack[1] // 2)
    sides = (pad[1], lack[1] - pad[1], pad[0], lack[0] - pad[0])
    return CropInputs(F.pad(stack, sides), pad, (height, width), crops, mask, F.pad(share, sides))


def _enlarged(shape: tuple[int, int], zoom: float) -> tuple[int, int]:
    return (max(1, round(shape[0] * zoom)), max(1, round(shape[1] * zoom)))


@dataclass(frozen=True, eq=False)
class Encoder:
    """The frozen vision tower behind its dense variant."""

    model: LoadedModel
    variant: DenseVariant
    external: ExternalViT | None = None
    """The second network that `proxyclip` and `cass` lean on."""
    zoom: float = 1.0
    """How many times crops are enlarged before the network sees them."""

    def inputs(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> CropInputs:
        """The crops of a tile as this network wants them."""
        return crop_inputs(self.model, rgb, valid, crops, self.zoom)

    def tokens(self, images: Tensor) -> DenseTokens:
        """Dense tokens of one batch of inputs, whatever the variant."""
        visual = self.model.clip.visual
        given = images.to(self.model.dtype)
        if self.variant == "gem":
            return gem_tokens(visual, given)
        if self.variant in EXTERNAL_VARIANTS:
            assert self.external is not None  # `ovrs.model.build` sees to it
            normalisation = (self.model.mean, self.model.std)
            if self.variant == "proxyclip":
                return proxy_tokens(visual, given, self.external.features(images, *normalisation))
            return cass_tokens(visual, given, *self.external.keys(images, *normalisation))
        return dense_tokens(visual, given, self.variant)

    @torch.no_grad()  # not inference mode: adapters build graphs on these tensors
    def encode(
        self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...], batch: int
    ) -> TileFeatures:
        """Run the vision tower once over the crops of a tile, `batch` at a time.

        The last batch is padded with repeats to full size: its make-up depends on the plan alone, so a tile's numbers do
        not depend on what else is computed.
        """
        inputs = self.inputs(rgb, valid, crops)
        patches, cls, grid = [], [], (0, 0)
        for start in range(0, len(crops), batch):
            part = inputs.images[start : start + batch]
            full = torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1)]) if len(part) < batch else part
            tokens = self.tokens(full)
            grid = tokens.grid
            patches.append(tokens.patches[: len(part)].float())
            cls.append(tokens.cls[: len(part)].float())
        return inputs.features(torch.cat(patches), torch.cat(cls), grid)


def normalise(model: LoadedModel, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Tensor:
    """CLIP-normalised float32 `(3, H, W)`; pixels that are not valid get the mean colour, which is 0."""
    image = torch.from_numpy(rgb).to(model.device, torch.float32) / 255
    mean = torch.tensor(model.mean, device=model.device)[:, None, None]
    std = torch.tensor(model.std, device=model.device)[:, None, None]
    return torch.where(torch.from_numpy(np.ascontiguousarray(valid)).to(model.device), (image - mean) / std, 0.0)


def accumulate(features: TileFeatures, maps: Tensor, ramp: int = 0) -> tuple[Tensor, Tensor]:
    """Weighted sum of the crops' maps `(B, K, ch, cw)` on the tile `(K, H, W)`, and the sum of weights `(H, W)`.

    Args:
        features: Of one tile.
        maps: One per crop.
        ramp: Pixels over which a crop's weight rises from its border (the overlap of neighbours). 0 counts every crop
            alike, as the papers do; crops then show as boxes where they disagree.
    """
    total = maps.new_zeros((maps.shape[1], *features.shape))
    weights = maps.new_zeros(features.shape)
    for crop, values in zip(features.crops, maps, strict=True):
        part = (slice(crop.row_off, crop.row_end), slice(crop.col_off, crop.col_end))
        weight = torch.from_numpy(taper(crop, ramp)).to(maps.device) if ramp else maps.new_ones(crop.shape)
        total[(slice(None), *part)] += values * weight
        weights[part] += weight
    return total, weights


def cosines(features: TileFeatures, text: Tensor, base_text: Tensor, cls_weight: float) -> Tensor:
    """Low-resolution logits without temperature `(B, M, N)`: patch · text + λ · (cls · base text).

    Args:
        features: Of one tile.
        text: `(M, D)`, or `(B, M, D)` when every crop has its own.
        base_text: `(M, D)`, the uncalibrated text that the global term uses (`methods` 2.8 and 6.5).
        cls_weight: λ.
    """
    low = text @ features.patches.transpose(1, 2)
    if cls_weight:
        low = low + cls_weight * (features.cls @ base_text.T)[:, :, None]
    return low
