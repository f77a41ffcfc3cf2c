"""Features of one tile, and their projection onto text: all that heads and adapters work with."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.grid import Window
    from ovrs.model.loading import LoadedModel
    from ovrs.model.windows import Views

EXTERNAL_VARIANTS = frozenset({"proxyclip", "cass"})
"""Dense variants that need a second network."""

VALID_SHARE = 0.5
"""Patches with less valid ground than this neither give prototypes nor enter the loss (`methods` 6.5)."""


@dataclass(frozen=True)
class WideWindows:
    """Wider windows of one shape, among the inputs of a tile (`ovrs.model.windows`)."""

    size: int
    """Side in crops."""
    rows: slice
    """Where they stand among the tile's inputs."""
    crops: tuple[Window, ...]
    pad: tuple[int, int]
    inner: tuple[int, int]


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
        """The crops alone, then wider windows of one shape each, as (side in crops, rows, features of these inputs)."""
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


@dataclass(frozen=True, eq=False)
class CropInputs:
    """The crops of one tile as the network's inputs."""

    images: Tensor
    """float32 `(B, 3, h, w)`, enlarged, then padded with mean colour to whole patches on all sides: crops, then wider windows."""
    pad: tuple[int, int]
    inner: tuple[int, int]
    """Rows and columns between the padding."""
    crops: tuple[Window, ...]
    valid: Tensor
    """bool `(height, width)` of the tile."""
    crop_valid: Tensor
    """float32 `(B, 1, h, w)`, 0 or 1."""
    wide: tuple[WideWindows, ...] = ()

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
            self.wide,
        )


def crop_inputs(
    model: LoadedModel, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...], views: Views
) -> CropInputs:
    """Cut a tile into the network's inputs: its crops and its wider windows, all of one shape."""
    patch = patch_size(model.clip.visual)
    image = normalise(model, rgb, valid)
    mask = torch.from_numpy(np.ascontiguousarray(valid)).to(model.device)
    both = torch.cat([image, mask[None].float()])
    stack = _shown(both, crops, views.zoom)
    height, width = stack.shape[2:]
    shape = (height + -height % patch, width + -width % patch)
    inputs, pad = _padded(stack, shape)
    stacks, wide, count = [inputs], [], len(crops)
    for size, windows in views.wide_windows(crops):
        part = _shown(both, windows, views.wide_zoom(size))
        inner = (part.shape[2], part.shape[3])
        part, own_pad = _padded(part, shape)
        wide.append(WideWindows(size, slice(count, count + len(windows)), windows, own_pad, inner))
        stacks.append(part)
        count += len(windows)
    images = torch.cat(stacks)
    return CropInputs(images[:, :3], pad, (height, width), crops, mask, images[:, 3:], tuple(wide))


def _shown(image: Tensor, windows: tuple[Window, ...], zoom: float) -> Tensor:
    """`(windows, channels, h, w)`: windows of one shape, `zoom` times as large as they are."""
    stack = torch.stack([image[:, w.row_off : w.row_end, w.col_off : w.col_end] for w in windows])
    if zoom == 1:
        return stack
    size = (max(1, round(windows[0].height * zoom)), max(1, round(windows[0].width * zoom)))
    return F.interpolate(stack, size, mode="bilinear", antialias=zoom < 1)


def _padded(stack: Tensor, shape: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Mean colour, not valid, on all sides up to `shape`; and its rows and columns before the first pixel."""
    lack = (shape[0] - stack.shape[2], shape[1] - stack.shape[3])
    pad = (lack[0] // 2, lack[1] // 2)
    return F.pad(stack, (pad[1], lack[1] - pad[1], pad[0], lack[0] - pad[0])), pad


@dataclass(frozen=True, eq=False)
class Encoder:
    """The frozen vision tower behind its dense variant."""

    model: LoadedModel
    variant: DenseVariant
    external: ExternalViT | None
    """The second network that `proxyclip` and `cass` lean on."""
    views: Views
    """The windows that a tile is looked at through."""

    def inputs(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> CropInputs:
        """The crops of a tile as this network wants them."""
        return crop_inputs(self.model, rgb, valid, crops, self.views)

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
    def encode(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileFeatures:
        """Run the vision tower once over the windows of a tile, as many at a time as a full tile has.

        The last batch is padded with repeats to full size: its make-up depends on the plan alone, so a tile's numbers do
        not depend on what else is computed.
        """
        inputs, batch = self.inputs(rgb, valid, crops), self.views.batch
        patches, cls, grid = [], [], (0, 0)
        for start in range(0, len(inputs.images), batch):
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
