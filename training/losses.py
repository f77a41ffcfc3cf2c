"""What is asked of patches and of whole images."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from training.crops import patch_targets
from training.texts import draw_phrase, wrong_answers

if TYPE_CHECKING:
    import numpy as np

    from training.material import Material

CAPTION_ODDS = 1.5
"""Log odds that a patch shows a thing that a caption of its scene names."""
SHARPEN = 0.7
"""Temperature of the averaged model's answers."""


def dense_loss(m: Material, z: Tensor, crops: list, pairs: list, scale: Tensor, rng: random.Random) -> Tensor:
    """Cross-entropy of patches over the classes of their set (freshly drawn words) and some far-off things."""
    total = z.new_zeros(())
    for i, (pair, (_, labels)) in enumerate(zip(pairs, crops, strict=True)):
        classes = len(pair[3])
        words = [draw_phrase(m.concepts[c], rng) for c in pair[3]] + wrong_answers(m.texts, pair[0], rng)
        vectors = m.texts.astray(torch.stack([m.texts[w] for w in words]), rng)
        target, known = patch_targets(labels, classes)
        weight = (target * m.weights[pair[0]]).sum(-1) * (known > 0.5)
        chance = (scale.exp() * z[i] @ vectors.T).log_softmax(-1)
        total = total - ((target * chance[:, :classes]).sum(-1) * weight).mean()
    return total / len(pairs)


def noun_loss(m: Material, z: Tensor, rows: np.ndarray, scale: Tensor, rng: random.Random) -> Tensor:
    """What a caption names must be somewhere in the image: the patches most like it answer for it."""
    present, absent = m.named.present[rows], m.named.absent[rows]
    likeness = z @ m.named.vectors(m.texts, rng).T
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
    answer = sum(seen) / len(seen) @ m.named.mean_vectors(m.texts).T
    target = ((scale.detach().exp() * answer + likely) / SHARPEN).softmax(-1)
    vectors = m.texts.astray(m.named.vectors(m.texts, rng), rng)
    chance = (scale.exp() * z @ vectors.T).log_softmax(-1)
    return -(target * chance).sum(-1).mean()


def caption_loss(m: Material, vectors: list[Tensor], rows: np.ndarray, scale: Tensor, rng: random.Random) -> Tensor:
    """Contrast of whole images with one of their captions or their class; like sentences share the target."""
    texts, said = m.texts, []
    for r in rows:
        cls = texts.classes[r]
        said.append(cls if cls and rng.random() < 0.4 else rng.choice(texts.captions[r]))
    text = torch.stack([texts[s] for s in said])
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
    for i, r in enumerate(rows):
        if own := m.texts.classes[r]:
            names = m.set_classes[m.sets[r]]
            text = torch.stack([m.texts[name] for name in names])
            target = torch.tensor([names.index(own)])
            for z in vectors:
                loss = loss + F.cross_entropy(scale.exp() * z[i : i + 1] @ text.T, target)
            counted += 1
    return loss / max(counted, 1)
