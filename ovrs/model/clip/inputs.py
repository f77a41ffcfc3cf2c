"""From the pixels of a tile to the network's inputs, and from what a network says of these to features of the tile."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ovrs.model.clip.dense import patch_size
from ovrs.model.clip.features import TileFeatures, WideWindows

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.engine.arrays import Array
    from ovrs.model.clip.loading import LoadedModel
    from ovrs.model.clip.windows import Views
    from ovrs.scene.grid import Window

VALID_SHARE = 0.5
"""Patches with less valid ground than this neither give prototypes nor enter the loss
(`docs/methods.md#tmpa-tmpa_shift-and-tmpa_compat`)."""


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
    """Of these the images are as the network sees them, turned if they are to be; `crop_valid` lies as the ground does."""

    def features(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> TileFeatures:
        """Attach what a network said about these crops: `(B, N, D)` and `(B, D)`, of any length."""
        share = F.adaptive_avg_pool2d(self.crop_valid, grid).flatten(1)
        patches = self._turned_back(patches.float().unflatten(1, grid), (1, 2)).flatten(1, 2)
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
            self._turned_back(self.images, (2, 3)),
            patches.norm(dim=-1),
            self.wide,
        )

    def _turned_back(self, of_inputs: Tensor, axes: tuple[int, int]) -> Tensor:
        """Lay a value per pixel or patch of each input as the ground lies; `axes` are its rows and columns."""
        if not any(w.flip for w in self.wide):
            return of_inputs
        parts = [of_inputs[: len(self.crops)]]
        parts += [of_inputs[w.rows].flip([axes[axis] for axis in w.flip]) for w in self.wide]
        return torch.cat(parts)


def crop_inputs(model: LoadedModel, rgb: Array, valid: Array, crops: tuple[Window, ...], views: Views) -> CropInputs:
    """Cut a tile into the network's inputs: its crops and its wider windows, all of one shape."""
    patch = patch_size(model.clip.visual)
    image = normalise(model, rgb, valid)
    mask = _tensor(valid).to(model.device)
    both = torch.cat([image, mask[None].float()])
    stack = _shown(both, crops, views.zoom)
    height, width = stack.shape[2:]
    shape = (height + -height % patch, width + -width % patch)
    stack, pad = _padded(stack, shape)
    images, validity, wide, count = [stack[:, :3]], [stack[:, 3:]], [], len(crops)
    for size, windows in views.wide_windows(crops):
        part = _shown(both, windows, views.wide_zoom(windows[0]))
        inner = (part.shape[2], part.shape[3])
        part, own_pad = _padded(part, shape)
        flip = views.turn(size)
        wide.append(WideWindows(size, slice(count, count + len(windows)), windows, own_pad, inner, flip))
        images.append(part[:, :3].flip(flip))
        validity.append(part[:, 3:])
        count += len(windows)
    return CropInputs(_joined(images), pad, (height, width), crops, mask, _joined(validity), tuple(wide))


def _joined(stacks: list[Tensor]) -> Tensor:
    """Join stacks in one piece of memory, each copied once."""
    return stacks[0].contiguous() if len(stacks) == 1 else torch.cat(stacks)


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
    if not any(lack):
        return stack, pad
    return F.pad(stack, (pad[1], lack[1] - pad[1], pad[0], lack[0] - pad[0])), pad


def normalise(model: LoadedModel, rgb: Array, valid: Array) -> Tensor:
    """CLIP-normalised float32 `(3, H, W)`; pixels that are not valid get the mean colour, which is 0."""
    image = _tensor(rgb).to(model.device, torch.float32) / 255
    mean, std = (_of_channels(tuple(values), model.device) for values in (model.mean, model.std))
    return torch.where(_tensor(valid).to(model.device), (image - mean) / std, 0.0)


@functools.lru_cache(maxsize=16)
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`(3, 1, 1)` on a device, brought there once."""
    return torch.tensor(values, device=device)[:, None, None]


def _tensor(values: Array) -> Tensor:
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
