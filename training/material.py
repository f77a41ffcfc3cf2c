"""Everything that training draws from: labelled pictures and scenes on the training device, words, and what is held out."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import bank, phrases
from training.bank import Boxes, Labels, Pictures
from training.crops import patch_targets
from training.mosaics import Mosaics, names_with
from training.sets import LabelledSet, load_sets
from training.texts import Named, Texts

SCENE_SIDE = 176
SOUGHT = 0.4
"""Share of crops that are laid around a pixel of a class drawn evenly: rare classes would hardly be seen otherwise."""
PLACES = 400
"""Pixels remembered per picture and class."""
MOSAICS = 400
"""Mosaics that are laid of each kind, once, before training begins."""
MOSAIC_SHARE = 0.06
HELD_WINDOWS = 120
"""Windows of each held-out set that are scored."""
SEEN_METRES = 0.3
"""Held-out pictures are scored at their own resolution, but not finer than this many metres per pixel."""
ENLARGED = 5 / 3
"""How much maps enlarge their windows (`WINDOWS` in `export.py`)."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The crops of one set within a batch."""

    set: LabelledSet
    rows: slice
    """Which crops of the batch."""
    labels: Tensor
    """uint8 `(B, h, w)`; from `len(set.concepts)` on a number denies a concept."""


class Material:
    """Scenes, pixel-labelled pictures by set, words, and what is held out."""

    def __init__(self, work: Path, device: torch.device, hold: Sequence[str] = ()) -> None:
        """`hold`: sets that no crop is drawn from; they are scored with the held-out pictures of the other sets."""
        self.device = device
        self.texts = Texts(work)
        self.concepts = phrases.concepts()
        self._scenes(work)
        self.sets = load_sets()
        if unknown := set(hold) - set(self.sets):
            raise SystemExit(f"no such sets: {', '.join(sorted(unknown))}; choose from {', '.join(self.sets)}")
        pictures, labels, self.of_set, self.held = [], [], {}, {}
        for told, picture, mask in bank.load(work, "labelled"):
            record = json.loads(told)
            held = record["held"] or record["set"] in hold
            (self.held if held else self.of_set).setdefault(record["set"], []).append(len(pictures))
            pictures.append(bank.decoded(picture))
            labels.append(bank.decoded(mask))
        if not pictures:
            raise SystemExit(f"{work} has no labelled pictures: run python -m training.prepare --only bank")
        self._numbers = pictures, labels
        self._keep(pictures, labels)
        print(
            {k: len(v) for k, v in self.of_set.items()}, "held", {k: len(v) for k, v in self.held.items()}, flush=True
        )

    def _scenes(self, work: Path) -> None:
        records = [json.loads(told) for told, _, _ in bank.load(work, "scenes")]
        self.scenes = Pictures(
            [bank.decoded(picture, SCENE_SIDE) for _, picture, _ in bank.load(work, "scenes")], self.device, levels=1
        )
        self.scene_pixels = self.scenes.pixels.view(-1, SCENE_SIDE, SCENE_SIDE, 3).cpu().numpy()
        held = np.array([r["held"] for r in records])
        self.usable = ~held
        self.scene_sets = [r["set"] for r in records]
        share = np.where([s != "eurosat" for s in self.scene_sets], 1.0, 0.25) * ~held  # coarse scenes teach less
        self.scene_share = share / share.sum()
        self.named = Named(self.texts.captions, self.texts.classes, self.scene_sets).to(self.device)
        self.set_classes = {
            s: sorted({c for c, own in zip(self.texts.classes, self.scene_sets, strict=True) if c and own == s})
            for s in set(self.scene_sets)
        }

    def _keep(self, pictures: list[np.ndarray], labels: list[np.ndarray]) -> None:
        self.pictures, self.labels = Pictures(pictures, self.device), Labels(labels, self.device)
        self.weights, self.places = {}, {}
        for name, rows in self.of_set.items():
            own = [labels[k] for k in rows]
            self.weights[name] = class_weights(own, len(self.sets[name].concepts)).to(self.device)
            self.places[name] = class_places(dict(zip(rows, own, strict=True)), len(self.sets[name].concepts))

    def add_mosaics(self, mosaics: Mosaics, rng: random.Random) -> None:
        """Lay mosaics of scenes and draw from them like from any set."""
        pictures, labels = self._numbers
        for bare in ("soil", "land"):
            name = f"mosaic_{bare}"
            low, high = (
                0.45 / SCENE_SIDE,
                1.1 / SCENE_SIDE,
            )  # crops show half a mosaic or all of it; metres mean nothing
            self.sets[name] = LabelledSet(
                name=name,
                concepts=tuple(names_with(bare)),
                values={},
                metres=1 / SCENE_SIDE,
                scale=(low, high),
                share=MOSAIC_SHARE,
            )
            self.of_set[name] = list(range(len(pictures), len(pictures) + MOSAICS))
            drawn = [mosaics.draw(bare, rng) for _ in range(MOSAICS)]
            pictures += [rgb for rgb, _ in drawn]
            labels += [mask for _, mask in drawn]
        self._keep(pictures, labels)

    def draw(self, count: int, size: int, rng: random.Random) -> tuple[Tensor, list[Group]]:
        """A batch: RGB `(count, 3, size, size)` in 0..1, and its labels set by set."""
        names = sorted(self.of_set)
        drawn = sorted(rng.choices(names, [self.sets[n].share for n in names], k=count))
        boxes, groups, begin = [], [], 0
        for name in dict.fromkeys(drawn):
            own = self._boxes(self.sets[name], drawn.count(name), size, rng)
            rows = slice(begin, begin + drawn.count(name))
            groups.append(Group(set=self.sets[name], rows=rows, labels=self.labels.crops(own, size)))
            boxes.append(own)
            begin = rows.stop
        joined = Boxes(*(torch.cat([getattr(b, f) for b in boxes]) for f in Boxes.__dataclass_fields__))
        return self.pictures.crops(joined, size), groups

    def _boxes(self, given: LabelledSet, count: int, size: int, rng: random.Random) -> Boxes:
        found = []
        for _ in range(count):
            place = None
            if rng.random() < SOUGHT:
                own = self.places[given.name]
                picture, *place = rng.choice(own[rng.choice(list(own))])
            else:
                picture = rng.choice(self.of_set[given.name])
            rows, columns = self.sizes(picture)
            low, high = (math.log(size * metres / given.metres) for metres in given.scale)
            side = min(rows, columns, math.exp(rng.uniform(low, high)))
            top, left = (
                min(max(place[k] - rng.random() * side, 0), length - side) if place else rng.random() * (length - side)
                for k, length in enumerate((rows, columns))
            )
            found.append((picture, top, left, side, rng.randrange(8)))
        return boxes_of(found, self.device)

    def sizes(self, picture: int) -> tuple[int, int]:
        return self._numbers[0][picture].shape[:2]

    def score(self, encode: Callable[[Tensor], Tensor], size: int) -> dict[str, float]:
        """Patch-level mIoU of each held-out set, asked for by plain names; `encode` takes RGB in 0..1 and gives patches."""
        out = {}
        for name, rows in self.held.items():
            given = self.sets[name]
            text = torch.stack([self.texts.ensemble[self.concepts[c]["names"][0]] for c in given.concepts])
            matrix = torch.zeros(len(text), len(text))
            windows = self._windows(given, rows, size)
            for part in torch.arange(len(windows.picture), device=self.device).split(24):
                own = Boxes(*(getattr(windows, f)[part] for f in Boxes.__dataclass_fields__))
                guess = (encode(self.pictures.crops(own, size)) @ text.T.to(self.device)).argmax(-1).flatten().cpu()
                share, known = patch_targets(self.labels.crops(own, size), len(text))
                truth, sure = share.argmax(-1).flatten().cpu(), known.flatten().cpu() > 0.5
                matrix += torch.bincount(truth[sure] * len(text) + guess[sure], minlength=len(text) ** 2).view_as(
                    matrix
                )
            iou = matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag()).clamp(min=1)
            out[name] = round(100 * iou[matrix.sum(1) > 0].mean().item(), 2)
        return out

    def _windows(self, given: LabelledSet, rows: list[int], size: int) -> Boxes:
        """Windows side by side over the pictures of a set, at most `HELD_WINDOWS`, spread evenly."""
        side = size / ENLARGED * max(1.0, SEEN_METRES / given.metres)
        found = []
        for picture in rows:
            height, width = self.sizes(picture)
            own = min(side, height, width)
            found += [
                (picture, top * own, left * own, own, 0)
                for top in range(int(height / own))
                for left in range(int(width / own))
            ]
        return boxes_of(found[:: max(1, math.ceil(len(found) / HELD_WINDOWS))], self.device)


def boxes_of(found: list[tuple[int, float, float, float, int]], device: torch.device) -> Boxes:
    picture, top, left, side, turn = zip(*found, strict=True)
    whole = [torch.tensor(v, device=device) for v in (picture, turn)]
    real = [torch.tensor(v, dtype=torch.float32, device=device) for v in (top, left, side)]
    return Boxes(whole[0], *real, whole[1])


def class_weights(labels: list[np.ndarray], classes: int) -> Tensor:
    """Inverse fourth root of the class shares of one set, mean one over its pixels.

    With square roots, and rare classes drawn more often besides, houses swallowed their gardens.
    """
    count = sum(np.bincount(v.ravel(), minlength=256)[:classes] for v in labels).astype(np.float64)
    share = np.maximum(count / max(count.sum(), 1), 2e-3)
    weight = share**-0.25
    return torch.from_numpy(weight / (weight * share).sum()).float()


def class_places(labels: dict[int, np.ndarray], classes: int) -> dict[int, list[tuple[int, int, int]]]:
    """For each class of a set some of its pixels: (picture, row, column)."""
    draw = np.random.default_rng(0)
    found: dict[int, list[tuple[int, int, int]]] = {}
    for picture, mask in labels.items():
        for c in range(classes):
            pixels = np.flatnonzero(mask == c)
            for p in draw.choice(pixels, min(PLACES, len(pixels)), replace=False).tolist():
                found.setdefault(c, []).append((picture, *divmod(p, mask.shape[1])))
    return found
