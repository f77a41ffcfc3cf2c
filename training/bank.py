"""Pictures in one flat tensor on the training device, and crops of them gathered by index.

A bank on disk is a few `.npz` files below `LIMIT` bytes each, which hold pictures as JPEG and labels as PNG: they travel to a
machine with an accelerator one at a time. In memory all pixels of all pictures follow each other, at full, half and quarter
resolution, so that one gather makes a batch of crops of pictures of any size.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LIMIT = 50_000_000
"""Bytes of a file of a bank."""
LEVELS = 3
"""Resolutions that are kept: a crop is taken from the coarsest that is still finer than the crop."""


@dataclass(frozen=True)
class Boxes:
    """Squares of pictures: tensors `(B,)` of picture numbers, first row, first column and side, in pixels of level 0."""

    picture: Tensor
    top: Tensor
    left: Tensor
    side: Tensor
    turn: Tensor
    """0 to 7: quarter turns, and from 4 on mirrored too."""


class Pictures:
    """Pixels of many pictures of any size, uint8, on one device."""

    def __init__(self, pictures: Sequence[np.ndarray], device: torch.device, levels: int = LEVELS) -> None:
        """Args: pictures: uint8 `(h, w, 3)`; levels: how many resolutions are kept."""
        flat: list[np.ndarray] = []
        table = np.zeros((levels, len(pictures), 3), np.int64)
        begin = 0
        for level in range(levels):
            for number, rgb in enumerate(pictures):
                if level:
                    size = (max(1, rgb.shape[1] >> level), max(1, rgb.shape[0] >> level))
                    rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))
                table[level, number] = begin, rgb.shape[0], rgb.shape[1]
                begin += rgb.shape[0] * rgb.shape[1]
                flat.append(rgb.reshape(-1, 3))
        self.pixels = torch.from_numpy(np.concatenate(flat)).to(device)
        self.table = torch.from_numpy(table).to(device)
        self.sizes = self.table[0, :, 1:]
        """Rows and columns of each picture `(n, 2)`."""

    def crops(self, boxes: Boxes, size: int) -> Tensor:
        """RGB `(B, 3, size, size)` in 0..1, linearly between pixels."""
        level = (boxes.side / size).clamp(min=1).log2().floor().long().clamp(max=len(self.table) - 1)
        begin, rows, columns = self.table[level, boxes.picture].unbind(-1)
        shrink = 2.0 ** -level.float()
        y, x = (v * shrink[:, None, None] - 0.5 for v in positions(boxes, size))
        y0, x0 = y.floor(), x.floor()
        out = torch.zeros(*y.shape, 3, device=y.device)
        for dy in (0, 1):
            for dx in (0, 1):
                part = (1 - (y - y0 - dy).abs()) * (1 - (x - x0 - dx).abs())
                row = (y0.long() + dy).clamp(min=0).minimum(rows[:, None, None] - 1)
                column = (x0.long() + dx).clamp(min=0).minimum(columns[:, None, None] - 1)
                found = self.pixels[begin[:, None, None] + row * columns[:, None, None] + column]
                out += part[..., None] * found.float()
        return out.permute(0, 3, 1, 2).div(255).contiguous()


class Labels:
    """Labels of the same pictures, uint8, at full resolution."""

    def __init__(self, labels: Sequence[np.ndarray], device: torch.device) -> None:
        sizes = np.array([(v.shape[0], v.shape[1]) for v in labels], np.int64).reshape(-1, 2)
        begin = np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]])
        self.values = torch.from_numpy(np.concatenate([v.ravel() for v in labels])).to(device)
        self.table = torch.from_numpy(np.column_stack([begin, sizes])).to(device)

    def crops(self, boxes: Boxes, size: int) -> Tensor:
        """uint8 `(B, size, size)`, the nearest pixel."""
        begin, rows, columns = (v[:, None, None] for v in self.table[boxes.picture].unbind(-1))
        y, x = (v.floor().long().clamp(min=0) for v in positions(boxes, size))
        return self.values[begin + y.minimum(rows - 1) * columns + x.minimum(columns - 1)]


def positions(boxes: Boxes, size: int) -> tuple[Tensor, Tensor]:
    """Row and column `(B, size, size)` in the picture of the centre of each pixel of a turned crop."""
    at = (torch.arange(size, device=boxes.side.device) + 0.5) / size
    v, u = torch.meshgrid(at, at, indexing="ij")
    v, u = v.expand(len(boxes.side), -1, -1), u.expand(len(boxes.side), -1, -1)
    quarter, mirror = (boxes.turn % 4)[:, None, None], (boxes.turn >= 4)[:, None, None]
    u = torch.where(mirror, 1 - u, u)
    turned_v = torch.where(quarter == 1, u, torch.where(quarter == 2, 1 - v, torch.where(quarter == 3, 1 - u, v)))
    turned_u = torch.where(quarter == 1, 1 - v, torch.where(quarter == 2, 1 - u, torch.where(quarter == 3, v, u)))
    side = boxes.side[:, None, None]
    return boxes.top[:, None, None] + side * turned_v, boxes.left[:, None, None] + side * turned_u


def save(folder: Path, stem: str, records: Iterable[tuple[str, bytes, bytes]]) -> list[Path]:
    """Write `stem_000.npz` and so on of (JSON text, JPEG, PNG or nothing) records, each file below `LIMIT`."""
    written: list[Path] = []
    part: list[tuple[str, bytes, bytes]] = []
    size = 0
    for record in records:
        if part and size + len(record[1]) + len(record[2]) > LIMIT:
            written.append(_write(folder, stem, len(written), part))
            part, size = [], 0
        part.append(record)
        size += len(record[1]) + len(record[2])
    if part:
        written.append(_write(folder, stem, len(written), part))
    return written


def load(folder: Path, stem: str) -> Iterator[tuple[str, bytes, bytes]]:
    """The records that `save` was given, in their order."""
    for path in sorted(folder.glob(f"{stem}_*.npz")):
        with np.load(path, allow_pickle=False) as held:
            told, ends = held["told"], np.cumsum(held["lengths"], axis=0)
            pictures, labels = held["pictures"].tobytes(), held["labels"].tobytes()
            begins = np.vstack([[0, 0], ends[:-1]])
            for text, begin, end in zip(told, begins.tolist(), ends.tolist(), strict=True):
                yield str(text), pictures[begin[0] : end[0]], labels[begin[1] : end[1]]


def _write(folder: Path, stem: str, number: int, part: list[tuple[str, bytes, bytes]]) -> Path:
    path = folder / f"{stem}_{number:03}.npz"
    np.savez(
        path,
        told=np.array([p[0] for p in part]),
        lengths=np.array([(len(p[1]), len(p[2])) for p in part], np.int64),
        pictures=np.frombuffer(b"".join(p[1] for p in part), np.uint8),
        labels=np.frombuffer(b"".join(p[2] for p in part), np.uint8),
    )
    return path


def jpeg(rgb: np.ndarray, quality: int = 92) -> bytes:
    held = io.BytesIO()
    Image.fromarray(rgb).save(held, "JPEG", quality=quality)
    return held.getvalue()


def png(labels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(labels).save(held, "PNG", optimize=True)
    return held.getvalue()


def decoded(held: bytes, side: int | None = None) -> np.ndarray:
    """Pixels of a JPEG or PNG; with `side` a JPEG is resized to that square."""
    image = Image.open(io.BytesIO(held))
    if side is not None:
        image = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)
