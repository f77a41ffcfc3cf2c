"""Vectors of the phrases that the vision tower is compared with, and what the captions name."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES as TEMPLATES
from torch import Tensor

from training import phrases
from training.text_tower import encode_all, text_tower

FAR_OFF = """airplane|ship|snow|runway|stadium|storage tank|swimming pool|beach|harbor|cloud|helicopter|shipping container|train|glacier|
solar panel|wind turbine|tennis court|cemetery|greenhouse|people""".replace("\n", "").split("|")
"""Things that the pixel-labelled sets hardly show: some stand among the candidates as wrong answers."""
VEHICLES = ("car", "truck", "bus")
"""They are on roads in every set and cover little of them: a road is to be a road, whatever is said of cars."""
SHOWS_VEHICLES = {"mosaic_soil", "mosaic_land", "hand", "fields"}
"""Sets with vehicles of their own, or whose paved ground is parking lots."""

ASTRAY = 0.4
"""Greatest length of what is added to a class's unit vector."""


class Texts:
    """The student text tower's vectors; single sentences, and the template ensemble for names as at run time."""

    def __init__(self, work: Path) -> None:
        self.captions: list[list[str]] = json.loads((work / "scenes.json").read_text())
        self.classes: list[str] = json.loads((work / "classes.json").read_text())
        far_off = phrases.contexts_of([*FAR_OFF, *VEHICLES])
        self.far_off = [far_off[name] for name in FAR_OFF]
        self.vehicles = [far_off[name] for name in VEHICLES]
        named = phrases.concept_phrases() + phrases.noun_phrases() + [n for c in far_off.values() for n in c["names"]]
        said = {c for group in self.captions for c in group} | {c for c in self.classes if c}
        concepts = [*phrases.concepts().values(), *far_off.values()]
        both = {f"{a} and {b}" for c in concepts for a in c["names"] for b in c["names"] if a != b}
        everything = sorted({*named, *phrases.named_descriptions(concepts), *phrases.context_phrases(), *said, *both})
        single = sorted(set(named) | {c for c in self.classes if c})
        self.plain, self.ensemble = _encoded(work, everything, single)

    def astray(self, vectors: Tensor, rng: random.Random) -> Tensor:
        """Each vector led a little toward some caption: nobody's words are exactly the ones that were trained with."""
        others = torch.stack([self.plain[rng.choice(rng.choice(self.captions))] for _ in vectors])
        return F.normalize(vectors + torch.rand(len(vectors), 1) * ASTRAY * others, dim=-1)

    def __getitem__(self, phrase: str) -> Tensor:
        if phrase in self.ensemble and random.random() < 0.6:
            return self.ensemble[phrase]
        return self.plain[phrase]


def _encoded(work: Path, everything: list[str], single: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Vectors of phrases as they are, and of names in all templates; kept in `words.pt` beside the text tower.

    They are made anew when the text tower, the phrases or the templates differ from those of the file.
    """
    template_text = [t("x") for t in TEMPLATES]
    told = json.dumps([everything, single, template_text]).encode()
    key = hashlib.sha256((work / "text.pt").read_bytes() + told).hexdigest()
    kept = work / "words.pt"
    if kept.exists() and (found := torch.load(kept, weights_only=True))["key"] == key:
        plain, ensemble = found["plain"], found["ensemble"]
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = text_tower(work / "text.pt").to(device)
        plain = encode_all(model, everything)
        inside = encode_all(model, [t(phrase) for phrase in single for t in TEMPLATES])
        ensemble = F.normalize(inside.view(len(single), len(TEMPLATES), -1).mean(1), dim=-1)
        torch.save({"key": key, "plain": plain, "ensemble": ensemble}, kept)
    return dict(zip(everything, plain, strict=True)), dict(zip(single, ensemble, strict=True))


def draw_phrase(concept: dict[str, list[str]], rng: random.Random) -> str:
    """A name, two of them, a sentence, or a sentence behind a name."""
    r = rng.random()
    if r < 0.4:
        return rng.choice(concept["names"])
    if r < 0.5 and len(concept["names"]) > 1:
        return " and ".join(rng.sample(concept["names"], 2))
    sentence = rng.choice(concept["descriptions"])
    return sentence if r < 0.7 else f"{rng.choice(concept['names'])} {sentence}"


def wrong_answers(texts: Texts, shown: str, rng: random.Random) -> list[str]:
    """What patches of this set are not: up to three far-off things, and vehicles every other time."""
    wrong = rng.sample(texts.far_off, rng.randint(0, 3))
    if shown not in SHOWS_VEHICLES and rng.random() < 0.5:
        wrong += rng.sample(texts.vehicles, 1)
    return [draw_phrase(concept, rng) for concept in wrong]


class Named:
    """For every scene: the concepts that its captions name, and those that may count as absent."""

    def __init__(self, captions: list[list[str]], classes: list[str], sets: list[str]) -> None:
        table = phrases.nouns()
        self.names = [n["names"] for n in table.values()]
        said = phrases.context_sentences()
        self.sentences = [said.get(noun, n["names"]) for noun, n in table.items()]
        self._means: Tensor | None = None
        groups = [n["group"] for n in table.values()]
        same = torch.tensor([[a == b for b in groups] for a in groups])
        patterns = [re.compile(r"\b(" + "|".join(n["words"]) + r")\b") for n in table.values()]
        self.present = torch.zeros(len(captions), len(table), dtype=torch.bool)
        for i, (said, cls) in enumerate(zip(captions, classes, strict=True)):
            if sets[i] in ("rsicd", "ucmerced"):
                text = " ; ".join([*said, cls])
                self.present[i] = torch.tensor([bool(p.search(text)) for p in patterns])
        self.absent = ~(self.present.float() @ same.float()).bool() & self.present.any(1, keepdim=True)

    def to(self, device: torch.device) -> Named:
        """What captions say, moved to a device; words stay where they are."""
        self.present, self.absent = self.present.to(device), self.absent.to(device)
        return self

    def vectors(self, texts: Texts, rng: random.Random) -> Tensor:
        """One name or, three in ten, one sentence for each noun."""
        return torch.stack(
            [texts[rng.choice(s if rng.random() < 0.3 else n)] for n, s in zip(self.names, self.sentences, strict=True)]
        )

    def mean_vectors(self, texts: Texts) -> Tensor:
        if self._means is None:
            self._means = torch.stack([F.normalize(sum(texts.ensemble[w] for w in n), dim=0) for n in self.names])
        return self._means
