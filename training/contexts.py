"""Which sentences speak of which class: what the teacher of sentence vectors says too little about."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import phrases
from training.text_tower import encode_short, tokens_of

CLASSES = 48
SHARPNESS = 20.0

OVERLAPS = """water: river, lake, pond, sea, canal, swimming pool, flood, harbor
vegetation: forest, tree, shrubland, meadow, lawn, park, farmland, orchard, vineyard, hedge, rice paddy, plantation, mangrove
pavement: road, highway, parking lot, sidewalk, square, runway, courtyard
building: warehouse, church, school, hospital, mosque, castle, greenhouse, farm, residential area, industrial area
building: commercial area, city, village
bare soil: barren land, construction site, sand, desert
barren land: desert, rock
tree: forest, orchard, plantation
road: highway, unpaved road, intersection
railway: train, railway station
coast: sea, beach
sand: beach, desert
airport: airplane, runway
harbor: ship, pier
residential area: village, city
commercial area: city
meadow: lawn
park: lawn
car: parking lot
snow: glacier
stadium: sports field
power plant: chimney"""
"""Classes whose sentences may speak of each other: they are not set apart."""


class Contexts:
    """Classes, their names and what may be said of them (`contexts.yaml`), as a contrast of sentences with names."""

    def __init__(self, seed: int = 0) -> None:
        table = phrases.contexts()
        self.rng = random.Random(seed)
        self.names = [tokens_of(list(names)) for names in table]
        self.said = [tokens_of(said) for said in table.values()]
        order = {names[0]: i for i, names in enumerate(table)}
        self.overlap = torch.zeros(len(order), len(order), dtype=torch.bool)
        for line in OVERLAPS.splitlines():
            one, others = line.split(": ")
            for other in others.split(", "):
                i, j = order[one], order[other]
                self.overlap[i, j] = self.overlap[j, i] = True

    def loss(self, model: nn.Module) -> Tensor:
        """Cross-entropy, both ways, of one sentence for each of `CLASSES` classes drawn anew."""
        chosen = self.rng.sample(range(len(self.names)), CLASSES)
        tokens = torch.stack([self.rng.choice(table[i]) for table in (self.said, self.names) for i in chosen])
        said, names = encode_short(model, tokens).chunk(2)
        logits = (SHARPNESS * said @ names.T).masked_fill(self.overlap[chosen][:, chosen], -1e4)
        own = torch.arange(CLASSES)
        return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
