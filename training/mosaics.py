"""Labelled images made of unlabelled ones: scenes that show one ground, cut into cells of one picture.

A network that has only seen whole tiles of forest or farmland leans on what surrounds a patch. Here it meets fields beside
water beside houses of other continents, with labels of every patch, and has to look at the patch itself. A scene's label is
its class's ground, but not where the network is already sure of another one (a house in a field). Buildings are asked for and
never shown: a street of houses is no surface of one kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.crops import PATCH

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from training.texts import Texts

SHOWS = {
    "forest": "tree",
    "farmland": "field",
    "agricultural": "field",
    "meadow": "low_vegetation",
    "bare land": "soil",
    "desert": "land",
    **dict.fromkeys(("pond", "river", "beach", "port", "lake", "island", "harbor"), "water"),
    **dict.fromkeys(("parking", "parking lot", "runway"), "paved"),
}
"""The ground that most of a scene of this class shows, or that is worth taking from it."""
OTHERS = {"eurosat"}
"""Sets whose scenes have too coarse pixels to lie beside others."""
CONCEPTS = ["building", "paved", "water", "tree", "low_vegetation", "field", "soil", "land"]
ALIKE = {"low_vegetation": {"field"}, "field": {"low_vegetation", "soil"}, "soil": {"land", "field"}, "land": {"soil"}}
"""What the network may take a ground for without being contradicted: the scene's class knows better."""
MUST_SEE = {"water", "paved"}
"""Grounds that share their scenes with others: only patches that the network takes for them count."""
SURE = 0.6
LEAST_SHARE = 0.25
"""Scenes of which less is kept are left out."""
UNKNOWN = 255


class Mosaics:
    """Scenes of one ground each, with the patches that count, and pictures laid out of them."""

    def __init__(self, scenes: np.ndarray, found: dict[str, list[tuple[int, np.ndarray]]]) -> None:
        self.scenes, self.found = scenes, found
        self.grounds = [c for c in CONCEPTS if found.get(c)]

    def draw(self, bare: str, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """RGB `(h, w, 3)` and labels `(h, w)` of two to four scenes of different grounds.

        `bare`: "soil" or "land". They share names, so a picture has only one of the two.
        """
        names = names_with(bare)
        grounds = [c for c in self.grounds if c in names]
        chosen = rng.sample(grounds, min(len(grounds), rng.randint(2, 4)))
        side = self.scenes.shape[1]
        cells = _cells(side, len(chosen), rng)
        rgb, labels = np.zeros((side, side, 3), np.uint8), np.full((side, side), UNKNOWN, np.uint8)
        for k, concept in enumerate(chosen):
            index, counts = rng.choice(self.found[concept])
            quarter, here = rng.randrange(4), cells == k
            rgb[here] = np.rot90(self.scenes[index], quarter)[here]
            mask = np.rot90(np.kron(counts, np.ones((PATCH, PATCH), bool)), quarter)
            labels[here & mask] = names.index(concept)
        return rgb, labels


def names_with(bare: str) -> list[str]:
    """The concepts that a mosaic's labels number."""
    return [c for c in CONCEPTS if c not in {"soil", "land"} - {bare}]


def _cells(side: int, count: int, rng: random.Random) -> np.ndarray:
    """Which of `count` cells each pixel `(side, side)` lies in: nearest points, with frayed borders."""
    draw = np.random.default_rng(rng.randrange(2**32))
    noise = torch.from_numpy(draw.normal(size=(2, 1, 12, 12)).astype(np.float32))
    shift = F.interpolate(noise, (side, side), mode="bicubic")[:, 0].numpy() * draw.choice([0.0, 0.02, 0.06]) * side
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")) + shift
    points = draw.uniform(0, side, (count, 2))
    return np.stack([(at[0] - y) ** 2 + (at[1] - x) ** 2 for y, x in points]).argmin(0)


@torch.no_grad()
def find(
    encode: Callable[[Tensor], Tensor],
    scale: float,
    texts: Texts,
    concepts: dict[str, dict[str, list[str]]],
    scenes: np.ndarray,
    sets: list[str],
    usable: np.ndarray,
) -> Mosaics:
    """Ask the network which patches of the scenes of `SHOWS` may stand for their ground.

    Args:
        encode: RGB `(n, 3, h, w)` in 0..1 to patch vectors `(n, N, D)`.
        scale: Of cosines.
        texts: Vectors of words, and the scenes' classes.
        concepts: Names of each concept.
        scenes: uint8 `(n, h, w, 3)`.
        sets: Where each scene comes from.
        usable: bool `(n,)`, false for held-out scenes.
    """
    vectors = torch.stack([F.normalize(sum(texts.ensemble[n] for n in concepts[c]["names"]), dim=0) for c in CONCEPTS])
    found: dict[str, list[tuple[int, np.ndarray]]] = {c: [] for c in CONCEPTS}
    rows = [i for i, cls in enumerate(texts.classes) if cls in SHOWS and usable[i] and sets[i] not in OTHERS]
    for part in (rows[i : i + 32] for i in range(0, len(rows), 32)):
        images = torch.from_numpy(np.stack([scenes[i] for i in part])).permute(0, 3, 1, 2).float() / 255
        chances = (scale * encode(images).cpu() @ vectors.T).softmax(-1)
        grid = images.shape[-1] // PATCH
        for i, chance in zip(part, chances, strict=True):
            concept = SHOWS[texts.classes[i]]
            best, guess = chance.max(-1)
            own = CONCEPTS.index(concept)
            if concept in MUST_SEE:
                keep = (guess == own) & (best > SURE)
            else:
                agrees = [CONCEPTS.index(c) for c in {concept} | ALIKE.get(concept, set())]
                keep = torch.isin(guess, torch.tensor(agrees)) | (best < SURE)
            if keep.float().mean() > LEAST_SHARE:
                found[concept].append((i, keep.view(grid, grid).numpy()))
    print("mosaics of", {c: len(v) for c, v in found.items()}, flush=True)
    return Mosaics(scenes, found)
