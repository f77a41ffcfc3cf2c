"""Everything that training draws from, in memory or mapped: scenes with captions, pixel-labelled images, words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import phrases
from training.crops import dense_crop, patch_targets
from training.mosaics import CONCEPTS, Mosaics
from training.prepare import dense_pairs
from training.texts import Named, Texts

DRAW_SET = {"czortho": 0.28, "dubai": 0.3, "synth": 0.18, "chesapeake": 0.1, "mosaic": 0.14}
SOUGHT = 0.4
"""Share of crops that are laid around a pixel of a class drawn evenly: rare classes would hardly be seen otherwise."""
PLACES = 400
"""Pixels remembered per image and class."""

Place = tuple[int, int] | None


class Material:
    """Scenes, pixel-labelled pairs by set, words, and what is held out."""

    def __init__(self, data: Path, work: Path) -> None:
        self.texts = Texts(work)
        self.concepts = phrases.concepts()
        self.scenes = np.load(work / "scenes.npy", mmap_mode="r")
        held = np.array(json.loads((work / "held_scenes.json").read_text()))
        self.usable = ~held
        sets = json.loads((work / "scene_sets.json").read_text())
        share = np.where([s != "eurosat" for s in sets], 1.0, 0.25) * ~held  # 64 px satellite scenes teach less
        self.scene_share = share / share.sum()
        self.named = Named(self.texts.captions, self.texts.classes, sets)
        self.sets = sets
        self.set_classes = {
            s: sorted({c for c, own in zip(self.texts.classes, sets, strict=True) if c and own == s}) for s in set(sets)
        }
        self.by_set: dict[str, list[tuple]] = {}
        for pair in dense_pairs(data, "train"):
            self.by_set.setdefault(pair[0], []).append(pair)
        self.weights = {name: class_weights(pairs) for name, pairs in self.by_set.items()}
        self.weights["mosaic"] = torch.ones(len(CONCEPTS) - 1)
        self.mosaics: Mosaics | None = None
        self.places = {name: class_places(pairs) for name, pairs in self.by_set.items()}
        held_rng = random.Random(5)
        self.held = [(p, *dense_crop(p, 160, held_rng)) for p in dense_pairs(data, "held") for _ in range(4)]
        print({k: len(v) for k, v in self.by_set.items()}, len(held) - held.sum(), "scenes", flush=True)

    def draw_pairs(self, count: int, rng: random.Random) -> tuple[list[tuple], list[Place]]:
        """Labelled images, and for some of them a pixel that the crop must show."""
        pairs, places = [], []
        share = {name: s for name, s in DRAW_SET.items() if self.mosaics or name != "mosaic"}
        for name in rng.choices(list(share), list(share.values()), k=count):
            if name == "mosaic":
                assert self.mosaics is not None
                pairs.append(self.mosaics.draw(rng))
                places.append(None)
                continue
            if rng.random() < SOUGHT:
                k, place = rng.choice(self.places[name][rng.choice(list(self.places[name]))])
            else:
                k, place = rng.randrange(len(self.by_set[name])), None
            pairs.append(self.by_set[name][k])
            places.append(place)
        return pairs, places

    def held_score(self, encode: Callable[[Tensor], Tensor]) -> str:
        """Patch-level mIoU and IoU per class on images never trained on; `encode` takes RGB in 0..1 and gives patches."""
        out = []
        for name in ("czortho", "dubai"):
            mine = [c for c in self.held if c[0][0] == name]
            text = torch.stack([self.texts.ensemble[self.concepts[c]["names"][0]] for c in mine[0][0][3]])
            z = torch.cat([encode(torch.stack([c[1] for c in part])) for part in _parts(mine, 18)])
            guess = (z @ text.T).argmax(-1).flatten()
            target = [patch_targets(c[2], len(text)) for c in mine]
            truth, known = torch.cat([t[0] for t in target]).argmax(-1), torch.cat([t[1] for t in target]) > 0.5
            index = truth[known] * len(text) + guess[known]
            matrix = torch.bincount(index, minlength=len(text) ** 2).view(len(text), -1).float()
            iou = matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())
            each = " ".join(f"{100 * v:.0f}" for v in iou)
            out.append(f"{name} {100 * iou[matrix.sum(1) > 0].mean():.1f} ({each})")
        return " ".join(out)


def _parts(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def class_weights(pairs: list) -> Tensor:
    """Inverse fourth root of the class shares of one set, mean one over its pixels.

    With square roots, and rare classes drawn more often besides, houses swallowed their gardens.
    """
    count = sum(np.bincount(p[2].ravel(), minlength=256)[: len(p[3])] for p in pairs).astype(np.float64)
    share = np.maximum(count / count.sum(), 2e-3)
    weight = share**-0.25
    return torch.from_numpy(weight / (weight * share).sum()).float()


def class_places(pairs: list) -> dict[int, list[tuple[int, tuple[int, int]]]]:
    """For each class of a set some of its pixels: (image, (row, column))."""
    rng = np.random.default_rng(0)
    found: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    for k, (_, _, labels, names, _) in enumerate(pairs):
        for c in range(len(names)):
            pixels = np.flatnonzero(labels == c)
            for p in rng.choice(pixels, min(PLACES, len(pixels)), replace=False).tolist():
                found.setdefault(c, []).append((k, divmod(p, labels.shape[1])))
    return found
