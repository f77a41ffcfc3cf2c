"""Augmented crops: pixels and labels, cut, scaled, turned and photographed anew."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

PATCH = 16
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


def scene_crop(pixels: np.ndarray, size: int, smallest: int, rng: random.Random) -> Tensor:
    """Image `(3, size, size)` in 0..1 of a part of a scene, at least `smallest` of its pixels wide."""
    side = rng.randint(smallest, pixels.shape[0])
    y, x = rng.randint(0, pixels.shape[0] - side), rng.randint(0, pixels.shape[1] - side)
    return turn(resized(pixels[y : y + side, x : x + side], size), torch.zeros(size, size), rng)[0]


def resized(rgb: np.ndarray, size: int) -> Tensor:
    image = torch.from_numpy(rgb.copy()).permute(2, 0, 1).float()[None] / 255
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def turn(image: Tensor, target: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    quarter, mirror = rng.randrange(4), rng.random() < 0.5
    image, target = (torch.rot90(t, quarter, (-2, -1)) for t in (image, target))
    return (image.flip(-1), target.flip(-1)) if mirror else (image, target)


def photometric(x: Tensor) -> Tensor:
    """Exposure, colour cast, contrast, saturation, haze, blur, lost resolution and noise, another draw for each image.

    Seven in ten are mild; the others are as bad as the worse corruptions of the benchmark.
    """
    b = x.shape[0]
    harsh = torch.rand(b, 1, 1, 1) < 0.3

    def draw(low: float, high: float, c: int = 1) -> Tensor:
        return torch.empty(b, c, 1, 1).uniform_(low, high)

    x = x.clamp(1e-4, 1) ** draw(0.7, 1.4)
    x = x * draw(0.75, 1.25) * draw(0.88, 1.12, 3)
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    x = grey + (x - grey) * draw(0.5, 1.4)
    x = mean + (x - mean) * torch.where(harsh, draw(0.2, 1.2), draw(0.6, 1.4))
    haze = torch.where(harsh, draw(-0.4, 0.7), draw(-0.3, 0.35)).clamp(min=0)
    x = x * (1 - haze) + draw(0.6, 1.0) * haze
    for width, mild, bad in ((3, 0.25, 0.4), (5, 0.0, 0.3), (7, 0.0, 0.15)):
        half = width // 2
        soft = F.avg_pool2d(F.pad(x, (half,) * 4, mode="reflect"), width, 1)
        x = torch.where(draw(0, 1) < torch.where(harsh, bad, mild), soft, x)
    coarse = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="nearest")
    x = torch.where(harsh & (draw(0, 1) < 0.2), coarse, x)
    x = x + torch.randn_like(x) * torch.where(harsh, draw(-0.15, 0.2), draw(-0.04, 0.06)).clamp(min=0)
    return (x.clamp(0, 1) - MEAN) / STD


def patch_targets(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Share of each class per patch `(N, classes)` and the share of labelled pixels `(N,)`."""
    one_hot = F.one_hot(labels.clamp(max=classes), classes + 1).permute(2, 0, 1).float()
    share = F.avg_pool2d(one_hot, PATCH).flatten(1).T
    known = 1 - share[:, classes]
    return share[:, :classes] / known[:, None].clamp(min=1e-6), known
