"""What is asked of patches and of whole images."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from training.crops import patch_targets
from training.texts import draw_phrase, wrong_answers

if TYPE_CHECKING:
    import numpy as np

    from training.material import Group, Material

CAPTION_ODDS = 1.5
"""Log odds that a patch shows a thing that a caption of its scene names."""
SHARPEN = 0.7
"""Temperature of the averaged model's answers."""


def dense_loss(m: Material, z: Tensor, groups: list[Group], scale: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Patches against the classes of their set, and how far two wordings of these classes disagree.

    Cross-entropy over the classes (words are drawn anew for each set) and some far-off things; where a label only denies
    a class, the logarithm of not being it. The second loss is the Kullback-Leibler divergence of either wording's answer
    from the mean of both, over labelled and unlabelled patches alike.

    Args:
        m: Words, concepts and class weights.
        z: Normalised patch vectors `(B, N, D)`.
        groups: The sets of the batch's crops, with labels.
        scale: Logarithm of the factor of cosines.
        rng: Draws words.
    """
    total, apart = z.new_zeros(()), z.new_zeros(())
    for group in groups:
        own, classes = group.set, len(group.set.concepts)
        share, known = patch_targets(group.labels, classes + len(own.denied))
        weight = (share[..., :classes] * m.weights[own.name]).sum(-1) * (known > 0.5)
        said = []
        for _ in range(2):
            chance = (scale.exp() * z[group.rows] @ _candidates(m, group, rng).T).log_softmax(-1)
            loss = -(share[..., :classes] * chance[..., :classes]).sum(-1) * weight
            for k, concept in enumerate(own.denied):
                never = torch.log1p(-chance[..., concept].exp().clamp(max=1 - 1e-4))
                loss = loss - share[..., classes + k] * never * (known > 0.5)
            total = total + loss.mean(1).sum() / 2
            said.append(chance[..., : classes + len(own.among)].log_softmax(-1))
        between = torch.logsumexp(torch.stack(said), 0) - math.log(2)
        apart = apart + sum((s.exp() * (s - between)).sum(-1).mean(1).sum() / 2 for s in said)
    return total / len(z), apart / len(z)


def _candidates(m: Material, group: Group, rng: random.Random) -> Tensor:
    """Vectors of freshly drawn words of a set's classes, what stands among them, and wrong answers `(n, D)`."""
    concepts = (*group.set.concepts, *group.set.among)
    words = [draw_phrase(m.concepts[c], rng) for c in concepts] + wrong_answers(m.texts, group.set.name, rng)
    return m.texts.astray(torch.stack([m.texts[w] for w in words]), rng).to(m.device)


def noun_loss(m: Material, z: Tensor, rows: np.ndarray, scale: Tensor, rng: random.Random) -> Tensor:
    """What a caption names must be somewhere in the image: the patches most like it answer for it."""
    present, absent = m.named.present[rows], m.named.absent[rows]
    likeness = z @ m.named.vectors(m.texts, rng).T.to(z.device)
    pooled = ((10 * likeness).softmax(1) * likeness).sum(1) * scale.exp()
    against = pooled.masked_fill(~absent, -1e4).logsumexp(-1, keepdim=True)
    loss = F.softplus(against - pooled)
    return (loss * present).sum() / present.sum().clamp(min=1)


def agreement_loss(
    m: Material, z: Tensor, seen: list[Tensor], rows: np.ndarray, scale: Tensor, rng: random.Random
) -> Tensor:
    """What the averaged model says of every patch of the clean image, this one should say of the spoilt image.

    The averaged model answers with the mean of what it says of the same ground in several windows (`seen`): the wider ones
    know more of what surrounds a patch, as the mean of scales does at run time.

    "Mean teachers are better role models" (Tarvainen and Valpola, 2017), here over the things that captions name: those
    of this scene's captions are likelier, the averaged model is asked with all names of a thing, this one with one.
    """
    likely = CAPTION_ODDS * m.named.present[rows].float()[:, None]
    answer = sum(seen) / len(seen) @ m.named.mean_vectors(m.texts).T.to(z.device)
    target = ((scale.detach().exp() * answer + likely) / SHARPEN).softmax(-1)
    vectors = m.texts.astray(m.named.vectors(m.texts, rng), rng).to(z.device)
    chance = (scale.exp() * z @ vectors.T).log_softmax(-1)
    return -(target * chance).sum(-1).mean()


def caption_loss(m: Material, vectors: list[Tensor], rows: np.ndarray, scale: Tensor, rng: random.Random) -> Tensor:
    """Contrast of whole images with one of their captions or their class; like sentences share the target."""
    texts, said = m.texts, []
    for r in rows:
        cls = texts.classes[r]
        said.append(cls if cls and rng.random() < 0.4 else rng.choice(texts.captions[r]))
    text = torch.stack([texts[s] for s in said]).to(m.device)
    same = (text @ text.T > 0.98).float()
    same = same / same.sum(-1, keepdim=True)
    loss = text.new_zeros(())
    for z in vectors:
        logits = scale.exp() * z @ text.T
        loss = loss - (same * logits.log_softmax(-1)).sum(-1).mean() - (same * logits.T.log_softmax(-1)).sum(-1).mean()
    return loss


def class_loss(m: Material, vectors: list[Tensor], rows: np.ndarray, scale: Tensor) -> Tensor:
    """Cross-entropy of whole images over the names of all scene classes of their set."""
    loss, counted = vectors[0].new_zeros(()), 0
    for name, names in m.set_classes.items():
        own = [i for i, r in enumerate(rows) if m.scene_sets[r] == name and m.texts.classes[r]]
        if not own:
            continue
        text = torch.stack([m.texts[n] for n in names]).to(m.device)
        target = torch.tensor([names.index(m.texts.classes[rows[i]]) for i in own], device=m.device)
        for z in vectors:
            loss = loss + F.cross_entropy(scale.exp() * z[own] @ text.T, target, reduction="sum")
        counted += len(own)
    return loss / max(counted, 1)
