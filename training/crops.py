"""What happens to crops: where they are cut, how they are photographed anew, and what their patches show."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.bank import Boxes

PATCH = 16
SMALLEST = 72
"""Pixels of a scene that fill a crop: maps are made of enlarged windows (`WINDOWS` in `export.py`)."""
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def scene_boxes(rows: Tensor, whole: int, smallest: int = SMALLEST) -> tuple[Boxes, Boxes, Tensor]:
    """Turned squares of scenes `whole` pixels wide, the whole scenes turned alike, and where the former lie in the latter.

    Args:
        rows: Numbers of the scenes `(B,)`.
        whole: Side of the scenes in pixels.
        smallest: Least side of a square in pixels.

    Returns:
        Squares, wholes, and `(B, 3)`: first row, first column and side in shares of the turned scene's side.
    """
    count, device = len(rows), rows.device
    side = smallest + torch.rand(count, device=device) * (whole - smallest)
    top, left = ((whole - side) * torch.rand(count, device=device) for _ in range(2))
    turn = torch.randint(0, 8, (count,), device=device)
    zero = torch.zeros(count, device=device)
    part = Boxes(rows, top, left, side, turn)
    return part, Boxes(rows, zero, zero, zero + whole, turn), _in_turned(part, whole)


def _in_turned(boxes: Boxes, whole: int) -> Tensor:
    """First row, first column and side of squares in their turned pictures, in shares of the picture's side `(B, 3)`."""
    y, x = ((begin + boxes.side / 2) / whole for begin in (boxes.top, boxes.left))
    quarter, half = boxes.turn % 4, boxes.side / whole / 2
    v = torch.where(quarter == 0, y, torch.where(quarter == 1, 1 - x, torch.where(quarter == 2, 1 - y, x)))
    u = torch.where(quarter == 0, x, torch.where(quarter == 1, y, torch.where(quarter == 2, 1 - x, 1 - y)))
    u = torch.where(boxes.turn >= 4, 1 - u, u)
    return torch.stack([v - half, u - half, 2 * half], -1)


def looked_up(patches: Tensor, boxes: Tensor) -> Tensor:
    """What patches `(B, N, D)` of whole pictures say of the patches of a part of each, linearly between their centres.

    Args:
        patches: Of square pictures.
        boxes: `(B, 3)`, first row, first column and side of each part in shares of the picture's side.
    """
    grid = math.isqrt(patches.shape[1])
    maps = patches.transpose(1, 2).unflatten(2, (grid, grid))
    centres = (torch.arange(grid, device=patches.device) + 0.5) / grid
    y, x = (boxes[:, k, None] + boxes[:, 2, None] * centres for k in (0, 1))
    at = torch.stack([x[:, None, :].expand(-1, grid, -1), y[:, :, None].expand(-1, -1, grid)], -1)
    found = F.grid_sample(maps, 2 * at.to(maps.dtype) - 1, align_corners=False, padding_mode="border")
    return found.flatten(2).transpose(1, 2)


def photometric(x: Tensor) -> Tensor:
    """RGB in 0..1 photographed anew, another draw for each image, then CLIP-normalised.

    Light, air, lens and sensor, in this order. Seven in ten are mild; the others are as bad as the worse corruptions of
    the benchmark.
    """
    harsh = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.3
    return normalised(_sensor(_lens(_air(_light(x, harsh), harsh), harsh), harsh).clamp(0, 1))


def normalised(x: Tensor) -> Tensor:
    return (x - MEAN.to(x.device)) / STD.to(x.device)


def _draw(x: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    return torch.empty(len(x), channels, 1, 1, device=x.device).uniform_(low, high)


def _chance(x: Tensor, share: float) -> Tensor:
    return _draw(x, 0, 1) < share


def _light(x: Tensor, harsh: Tensor) -> Tensor:
    """Colours on the way to those of another image of the batch; exposure, colour cast, saturation, contrast."""
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True) + 1e-3
    other = torch.randperm(len(x), device=x.device)
    share = _draw(x, 0, 1) * _chance(x, 0.5)
    x = (x - mean) / std * torch.lerp(std, std[other], share) + torch.lerp(mean, mean[other], share)
    x = x.clamp(1e-4, 1) ** _draw(x, 0.7, 1.4)
    x = x * _draw(x, 0.75, 1.25) * _draw(x, 0.88, 1.12, 3)
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    x = grey + (x - grey) * torch.where(harsh, _draw(x, 0.1, 2.0), _draw(x, 0.5, 1.4))
    return mean + (x - mean) * torch.where(harsh, _draw(x, 0.06, 1.2), _draw(x, 0.6, 1.4))


def _air(x: Tensor, harsh: Tensor) -> Tensor:
    """Haze, even or in drifts, and now and then a faint other image over this one, as frost or dirt on a window."""
    drift = (
        sum(
            F.interpolate(torch.rand(len(x), 1, n, n, device=x.device), x.shape[2:], mode="bicubic")
            for n in (2, 4, 8, 16)
        )
        / 2
    )
    haze = torch.where(harsh, _draw(x, -0.4, 0.75), _draw(x, -0.3, 0.35)).clamp(min=0)
    haze = (haze * torch.where(_chance(x, 0.5), drift, torch.ones((), device=x.device))).clamp(0, 0.9)
    x = x * (1 - haze) + _draw(x, 0.6, 1.0) * haze
    over = _draw(x, 0, 0.45) * (harsh & _chance(x, 0.25))
    return x * (1 - over) + x[torch.randperm(len(x), device=x.device)] * over


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
    """Share of each class per patch `(B, N, classes)`, and the share of labelled pixels `(B, N)`.

    Args:
        labels: Integers `(B, h, w)`; from `classes` on nothing is labelled.
        classes: How many labels there are.
    """
    one_hot = F.one_hot(labels.long().clamp(max=classes), classes + 1).permute(0, 3, 1, 2).float()
    share = F.avg_pool2d(one_hot, PATCH).flatten(2).transpose(1, 2)
    known = 1 - share[..., classes]
    return share[..., :classes] / known[..., None].clamp(min=1e-6), known
