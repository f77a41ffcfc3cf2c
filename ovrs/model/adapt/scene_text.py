"""Text calibrated to a whole scene without learning: prototypes, a discriminant, and a bias by entropy.

Three steps, all on the patches of a sample of the scene, all without labels:

1. *Prototypes* (TMPA, CVPR 2026, section VGTA): per class, the mean of the patches that the text calls this class and of
   which it is surer than of the mean patch. Each query moves toward its class's prototype by a bias a.
2. *A Gaussian discriminant* with these classes and one covariance (Fisher 1936; with shrinkage, Friedman 1989): what tells
   the classes apart in this scene, in the metric of its own patches. Its scores are brought to the entropy of the text's
   and mixed in with weight w.
3. *The bias by the entropy rule*: a = H r and w = 2 H r, at most 0.7. H is the mean entropy of the patches under the text
   alone, in 0..1: how unsure the words are of this scene. r = K / (K + 100) says how much ground the sample shows:
   K counts crops without overlap.

The result stays linear in a patch: one vector and one offset per query, used everywhere in the scene.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from ovrs.model.clip.head import entropy, join_queries

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.methods.clip import Head
    from ovrs.model.clip.text import TextBank


HALF_CROPS = 100.0
"""Crops without overlap at which the scene has half of its full weight; figures: `python -m benchmarks.left_out`."""
PRIOR_PATCHES = 10.0
"""A class mean counts like so many patches of its prior, which follows from the text."""
SHRINKAGE = 0.5
"""Share of the isotropic part in the discriminant's covariance."""
MOST_WEIGHT = 0.7
"""Upper bound of the discriminant's weight w."""


class SceneText(NamedTuple):
    """The text for a scene, and what it was made by."""

    text: Tensor
    """`(M, D)`; rows are no unit vectors."""
    offsets: Tensor
    """`(M,)`, added to the scaled logits."""
    bias: float
    """a, toward the prototypes."""
    weight: float
    """w, of the discriminant."""
    entropy: float
    """H, in 0..1."""
    support: Tensor
    """`(C,)`: patches behind each class's prototype, overlap taken off."""
    event: str
    """`adapted`, or why the text stays as it is."""


@torch.no_grad()
def calibrate_scene(patches: Tensor, bank: TextBank, settings: Head, *, crops: float, per_crop: int) -> SceneText:
    """Calibrate the text to a scene.

    Args:
        patches: `(N, D)`, unit vectors, of the sample's valid patches.
        bank: The queries; not changed.
        settings: Inverse temperature and how queries are joined.
        crops: K, valid ground of the sample in areas of one crop.
        per_crop: Patches of one crop; with K it says how many of the patches do not overlap.
    """
    if bank.class_count < 2:
        return _plain(bank, "single_class")
    if not len(patches):
        return _plain(bank, "no_valid_patch")
    logits = settings.scale * (bank.vectors @ patches.T)
    queries = (logits if bank.offsets is None else logits + bank.offsets[:, None]).softmax(dim=0)
    uncertainty = entropy(queries) / torch.log(torch.tensor(float(len(queries))))
    classes = join_queries(queries, bank, settings.max_share)
    classes = classes / classes.sum(dim=0, keepdim=True)
    sure = uncertainty < uncertainty.mean()
    if not sure.any():
        return _plain(bank, "no_prototype")
    unsure, shown = float(uncertainty.mean()), crops / (crops + HALF_CROPS)
    groups = _Groups.of(patches[sure], classes[:, sure].argmax(dim=0), bank)
    support = groups.counts * min(1.0, crops * per_crop / len(patches))
    means = _class_means(groups, support, bank, shown)
    bias, weight = unsure * shown, min(MOST_WEIGHT, 2 * unsure * shown)
    prototypes = F.normalize(means, dim=-1)[bank.class_of]
    moved = F.normalize((1 - bias) * bank.vectors + bias * prototypes, dim=-1)
    directions, constants = _discriminant(means, groups.covariance, SHRINKAGE)
    sharp = weight * _sharpness(patches @ directions.T + constants, float(entropy(classes).mean()))
    own = torch.zeros_like(bank.vectors[:, 0]) if bank.offsets is None else bank.offsets
    return SceneText(
        (1 - weight) * moved + sharp / settings.scale * directions[bank.class_of],
        (1 - weight) * own + sharp * constants[bank.class_of],
        bias,
        weight,
        unsure,
        support,
        "adapted",
    )


def _plain(bank: TextBank, event: str) -> SceneText:
    zeros = torch.zeros_like(bank.vectors[:, 0])
    offsets = zeros if bank.offsets is None else bank.offsets
    return SceneText(bank.vectors, offsets, 0.0, 0.0, 0.0, zeros.new_zeros(bank.class_count), event)


class _Groups(NamedTuple):
    """Patches by the class that the text gives them."""

    means: Tensor
    """`(C, D)`, zero for a class without patches."""
    counts: Tensor
    """`(C,)`."""
    covariance: Tensor
    """`(D, D)`, within classes."""

    @classmethod
    def of(cls, patches: Tensor, winner: Tensor, bank: TextBank) -> _Groups:
        counts = torch.bincount(winner, minlength=bank.class_count).to(patches)
        sums = patches.new_zeros(bank.class_count, patches.shape[1]).index_add_(0, winner, patches)
        means = sums / counts.clamp(min=1)[:, None]
        # Σ (x - μ)(x - μ)ᵀ = Σ x xᵀ - Σ n μ μᵀ: no second copy of the patches
        scatter = patches.T @ patches - (means * counts[:, None]).T @ means
        return cls(means, counts, scatter / counts.sum())


def _class_means(groups: _Groups, support: Tensor, bank: TextBank, shown: float) -> Tensor:
    """Class means `(C, D)`, each drawn to a prior: the mean of all classes, moved along the text.

    A class with few patches has no mean that one could trust, and one without any must not lose to those that have one.
    The less ground the sample shows, the further the prior follows the text.
    """
    count = torch.bincount(bank.class_of, minlength=bank.class_count).to(bank.vectors)
    text = torch.zeros_like(groups.means).index_add_(0, bank.class_of, bank.vectors) / count[:, None]
    trust = support / (support + PRIOR_PATCHES)
    share = (trust / trust.sum())[:, None]
    middle, text = (share * groups.means).sum(dim=0), text - (share * text).sum(dim=0)
    apart = groups.means - middle
    slope = float((share * apart * text).sum() / (share * text * text).sum().clamp(min=1e-12))
    prior = middle + (1 - shown) * max(0.0, slope) * text
    return trust[:, None] * groups.means + (1 - trust)[:, None] * prior


def _discriminant(means: Tensor, covariance: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Directions `(C, D)` and constants `(C,)` of the linear discriminant of classes that are equally frequent."""
    level = covariance.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(len(covariance), device=means.device, dtype=means.dtype)
    middle = means.mean(dim=0)
    apart = means - middle
    directions = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * level * eye, apart.T).T
    return directions, -(directions @ middle) - 0.5 * (directions * apart).sum(dim=1)


def _sharpness(scores: Tensor, wanted: float) -> float:
    """Return the factor by which scores `(N, C)` have the mean entropy `wanted`, in nats; by bisection."""
    scores = scores[:: max(1, len(scores) // 20000)]
    low, high = 1e-4, 1e4
    for _ in range(40):
        middle = (low * high) ** 0.5
        if float(entropy((middle * scores).softmax(dim=1), dim=1).mean()) > wanted:
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5
