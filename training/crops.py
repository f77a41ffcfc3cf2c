"""Augmented crops: pixels and labels, cut, scaled, turned and photographed anew."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 16
SMALLEST = 72
"""Pixels of a scene that fill a crop: maps are made of enlarged windows (`WINDOWS` in `export.py`)."""
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def dense_crop(
    pair: tuple, size: int, rng: random.Random, place: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Image `(3, size, size)` in 0..1 and labels `(size, size)`.

    `place`: a pixel (row, column) that the crop must show, anywhere in it.
    """
    _, rgb, labels, _, (low, high) = pair
    limit = min(rgb.shape[:2])
    side = int(min(limit, size * math.exp(rng.uniform(math.log(low), math.log(high)))))
    y, x = rng.randint(0, rgb.shape[0] - side), rng.randint(0, rgb.shape[1] - side)
    if place is not None:
        y, x = (
            min(max(p - rng.randrange(side), 0), length - side) for p, length in zip(place, rgb.shape[:2], strict=True)
        )
    image = resized(rgb[y : y + side, x : x + side], size)
    target = torch.from_numpy(labels[y : y + side, x : x + side].copy()).float()[None, None]
    target = F.interpolate(target, (size, size), mode="nearest-exact")[0, 0].long()
    return turn(image, target, rng)


Box = tuple[float, float, float]
"""First row, first column and side of a part of a picture, in shares of its side."""


def scene_crop(pixels: np.ndarray, size: int, smallest: int, rng: random.Random) -> tuple[Tensor, Tensor, Box]:
    """A part of a turned scene, at least `smallest` of its pixels wide, and the whole, `(3, size, size)` in 0..1 each."""
    pixels = np.rot90(pixels, rng.randrange(4))
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    whole = pixels.shape[0]
    side = rng.randint(smallest, whole)
    y, x = rng.randint(0, whole - side), rng.randint(0, whole - side)
    part = resized(pixels[y : y + side, x : x + side], size)
    return part, resized(pixels, size), (y / whole, x / whole, side / whole)


def looked_up(patches: Tensor, boxes: list[Box]) -> Tensor:
    """What patches `(n, N, D)` of whole pictures say of the patches of a part of each, linearly between their centres."""
    grid = math.isqrt(patches.shape[1])
    maps = patches.transpose(1, 2).unflatten(2, (grid, grid))
    centres = (torch.arange(grid) + 0.5) / grid
    at = torch.stack(
        [
            torch.stack(torch.meshgrid(y + side * centres, x + side * centres, indexing="ij")[::-1], -1)
            for y, x, side in boxes
        ]
    )
    found = F.grid_sample(maps, 2 * at - 1, align_corners=False, padding_mode="border")
    return found.flatten(2).transpose(1, 2)


def resized(rgb: np.ndarray, size: int) -> Tensor:
    image = torch.from_numpy(rgb.copy()).permute(2, 0, 1).float()[None] / 255
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def turn(image: Tensor, target: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    quarter, mirror = rng.randrange(4), rng.random() < 0.5
    image, target = (torch.rot90(t, quarter, (-2, -1)) for t in (image, target))
    return (image.flip(-1), target.flip(-1)) if mirror else (image, target)


def photometric(x: Tensor) -> Tensor:
    """RGB in 0..1 photographed anew, another draw for each image, then CLIP-normalised.

    Light, air, lens and sensor, in this order. Seven in ten are mild; the others are as bad as the worse corruptions of
    the benchmark.
    """
    harsh = torch.rand(len(x), 1, 1, 1) < 0.3
    return normalised(_sensor(_lens(_air(_light(x, harsh), harsh), harsh), harsh).clamp(0, 1))


def normalised(x: Tensor) -> Tensor:
    return (x - MEAN) / STD


def _draw(x: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    return torch.empty(len(x), channels, 1, 1).uniform_(low, high)


def _chance(x: Tensor, share: float) -> Tensor:
    return _draw(x, 0, 1) < share


def _light(x: Tensor, harsh: Tensor) -> Tensor:
    """Colours on the way to those of another image of the batch; exposure, colour cast, saturation, contrast."""
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True) + 1e-3
    other = torch.randperm(len(x))
    share = _draw(x, 0, 1) * _chance(x, 0.5)
    x = (x - mean) / std * torch.lerp(std, std[other], share) + torch.lerp(mean, mean[other], share)
    x = x.clamp(1e-4, 1) ** _draw(x, 0.7, 1.4)
    x = x * _draw(x, 0.75, 1.25) * _draw(x, 0.88, 1.12, 3)
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    x = grey + (x - grey) * torch.where(harsh, _draw(x, 0.1, 2.0), _draw(x, 0.5, 1.4))
    return mean + (x - mean) * torch.where(harsh, _draw(x, 0.06, 1.2), _draw(x, 0.6, 1.4))


def _air(x: Tensor, harsh: Tensor) -> Tensor:
    """Haze, even or in drifts, and now and then a faint other image over this one, as frost or dirt on a window."""
    drift = sum(F.interpolate(torch.rand(len(x), 1, n, n), x.shape[2:], mode="bicubic") for n in (2, 4, 8, 16)) / 2
    haze = torch.where(harsh, _draw(x, -0.4, 0.75), _draw(x, -0.3, 0.35)).clamp(min=0)
    haze = (haze * torch.where(_chance(x, 0.5), drift, torch.ones(()))).clamp(0, 0.9)
    x = x * (1 - haze) + _draw(x, 0.6, 1.0) * haze
    over = _draw(x, 0, 0.45) * (harsh & _chance(x, 0.25))
    return x * (1 - over) + x[torch.randperm(len(x))] * over


def _lens(x: Tensor, harsh: Tensor) -> Tensor:
    for width, mild, bad in ((3, 0.25, 0.4), (5, 0.0, 0.3), (7, 0.0, 0.15)):
        soft = F.avg_pool2d(F.pad(x, (width // 2,) * 4, mode="reflect"), width, 1)
        x = torch.where(_draw(x, 0, 1) < torch.where(harsh, bad, mild), soft, x)
    coarse = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="nearest")
    return torch.where(harsh & _chance(x, 0.2), coarse, x)


def _sensor(x: Tensor, harsh: Tensor) -> Tensor:
    x = x + torch.randn_like(x) * torch.where(harsh, _draw(x, -0.15, 0.2), _draw(x, -0.04, 0.06)).clamp(min=0)
    dead = torch.rand_like(x) < _draw(x, -0.2, 0.12) * harsh
    return torch.where(dead, (torch.rand_like(x) < 0.5).float(), x)


def patch_targets(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Share of each class per patch `(N, classes)` and the share of labelled pixels `(N,)`."""
    one_hot = F.one_hot(labels.clamp(max=classes), classes + 1).permute(2, 0, 1).float()
    share = F.avg_pool2d(one_hot, PATCH).flatten(1).T
    known = 1 - share[:, classes]
    return share[:, :classes] / known[:, None].clamp(min=1e-6), known
