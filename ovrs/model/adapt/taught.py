"""Text calibrated to a scene, taught further by labelled places: one shift and one offset per class.

Per class c, all its queries move by Δ_c and gain the offset β_c. Both minimise the weighted surprise of the examples plus
λ/2 (|u|² + β²), where u is Δ in a metric in which the scene's own patches, within the classes that the calibration gives
them, vary alike in all directions (the discriminant's metric of `scene_text`). So few examples move the text where
the scene leaves room, and none where it does not.

*Weights.* Examples are no random sample. All examples of a class together weigh like the share of the scene that the
calibration gives this class, over the whole sample; where examples of a class are missing, the others share its weight.
A class that the calibration hardly knows (`lost`: it misses most of the examples) has a share that means nothing: fields
called bare soil would weigh like the few fields that it finds. It weighs like a class among equals at first, then, as
teaching is repeated, like the share of the scene that was taught.

*Strength.* λ is chosen by leaving out regions: each region's examples are judged by what the others teach. The mean
intersection over union of these judgements, weighted as above, decides, with a lead for the strengths that gained most
elsewhere: some fifty examples judge roughly. "No change" is among the choices, and is taken where no example is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.text import TextBank


_ALL_RIGHT = 1 - 1e-6
"""Judgement of examples none of which is wrong."""


@dataclass(frozen=True, kw_only=True)
class TeachSettings:
    """Constants; figures behind them: `python -m benchmarks.teach`."""

    strengths: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003)
    """λ, from little change to much."""
    shrinkage: float = 1.0
    """Share of the isotropic part in the metric's covariance."""
    least_share: float = 0.02
    """Weight of a class with examples is at least this."""
    leads: tuple[float, ...] = (0.0, 0.05, 0.12, 0.2, 0.18)
    """Added to the judgement, 0..1, of no change and of each strength."""
    folds: int = 10
    """Regions are joined to at most so many parts."""
    lost: float = 0.25
    """A class of whose examples a smaller share is right before teaching is lost."""
    rounds: int = 2
    """How often teaching is repeated for lost classes."""


class Examples(NamedTuple):
    """Labelled places."""

    features: Tensor
    """`(E, D)`: mean of the patch features that give the place its scores."""
    labels: Tensor
    """int64 `(E,)`, class numbers."""
    regions: Tensor
    """int64 `(E,)`: examples of one region are left out together."""


class Taught(NamedTuple):
    """What the examples made of the text."""

    text: Tensor
    """`(M, D)`."""
    offsets: Tensor
    """`(M,)`."""
    strength: float
    """λ; infinite for no change."""
    judged: Tensor
    """`(1 + strengths,)`: mean intersection over union of examples left out, 0..1; the first without change."""
    event: str
    """`taught`, or why nothing changed."""


@torch.no_grad()
def teach(
    text: Tensor,
    bank: TextBank,
    patches: Tensor,
    examples: Examples,
    settings: TeachSettings,
    scale: float,
) -> Taught:
    """Fit shifts and offsets to examples.

    Args:
        text: `(M, D)`, calibrated.
        bank: The queries' classes and calibrated offsets.
        patches: `(N, D)` of the scene's sample.
        examples: Labelled places.
        settings: Constants.
        scale: Inverse temperature of the logits.
    """
    offsets = torch.zeros_like(text[:, 0]) if bank.offsets is None else bank.offsets
    known = torch.unique(examples.labels)
    same = Taught(text, offsets, float("inf"), torch.zeros(0), "")
    if len(known) < 2:
        return same._replace(event="one_class")
    metric = _Metric.of(text, offsets, bank, patches, scale, settings.shrinkage)
    z, base = metric.seen(examples.features), scale * examples.features @ text.T + offsets
    folds = _folds(examples.regions, settings.folds)
    if len(folds) < 2:
        return same._replace(event="one_region")
    problem = _Problem(z, base, examples.labels, bank.class_of, bank.class_count)
    scene = _Problem(metric.seen(patches), scale * patches @ text.T + offsets, None, bank.class_of, bank.class_count)
    lost = _lost(problem, settings.lost)
    shares = torch.where(lost, metric.shares.clamp(min=1 / bank.class_count), metric.shares)
    for _ in range(1 + (settings.rounds if lost.any() else 0)):
        weights = _weights(examples.labels, shares, settings.least_share)
        found, chosen, judged = _best(problem, weights, folds, settings)
        if chosen == 0 or float(judged[0]) > _ALL_RIGHT:
            return same._replace(judged=judged, event="no_gain")
        taught = scene.chances(found).mean(dim=0)
        shares = torch.where(lost, taught.maximum(metric.shares), metric.shares)
    shift, constant = metric.carried(found)
    return Taught(
        text + shift[bank.class_of] / scale,
        offsets + constant[bank.class_of],
        settings.strengths[chosen - 1],
        judged,
        "taught",
    )


def _best(
    problem: _Problem, weights: Tensor, folds: list[Tensor], settings: TeachSettings
) -> tuple[Tensor, int, Tensor]:
    """Shifts and offsets `(C, D + 1)` of the best strength, its number (0: no change), and all judgements."""
    guesses = torch.zeros(1 + len(settings.strengths), len(weights), dtype=torch.long)
    guesses[0] = problem.base.argmax(dim=1)
    nothing = torch.zeros(problem.base.shape[1], problem.z.shape[1])
    for own in folds:
        found = nothing
        for index, strength in enumerate(settings.strengths, start=1):
            found = problem.fitted(weights * ~own, strength, found)
            guesses[index, own] = problem.guesses(found)[own]
    assert problem.labels is not None
    judged = torch.stack([_overlap(guess, problem.labels, weights, len(nothing)) for guess in guesses])
    chosen = int((judged + torch.tensor(settings.leads)).argmax())  # the first of equal ones
    found = nothing
    for strength in settings.strengths[:chosen]:
        found = problem.fitted(weights, strength, found)
    return found, chosen, judged


def _lost(problem: _Problem, least: float) -> Tensor:
    """Which classes with examples have fewer than this share of them right before teaching, bool `(C,)`."""
    assert problem.labels is not None
    classes = problem.base.shape[1]
    of_class = torch.bincount(problem.labels, minlength=classes)
    right = torch.bincount(problem.labels[problem.base.argmax(dim=1) == problem.labels], minlength=classes)
    return (of_class > 0) & (right < least * of_class)


class _Metric(NamedTuple):
    """Where the scene's patches vary alike in all directions."""

    middle: Tensor
    turn: Tensor
    """`(D, D)`."""
    shares: Tensor
    """`(C,)`: of the scene by the calibration."""

    @classmethod
    def of(
        cls, text: Tensor, offsets: Tensor, bank: TextBank, patches: Tensor, scale: float, shrinkage: float
    ) -> _Metric:
        logits = scale * patches @ text.T + offsets
        classes = _joined(logits, bank.class_of, bank.class_count)
        winner, middle = classes.argmax(dim=1), patches.mean(dim=0)
        counts = torch.bincount(winner, minlength=bank.class_count).to(patches)
        means = patches.new_zeros(bank.class_count, patches.shape[1]).index_add_(0, winner, patches)
        means = means / counts.clamp(min=1)[:, None]
        covariance = (patches.T @ patches - (means * counts[:, None]).T @ means) / max(1, len(patches))
        level = covariance.diagonal().mean().clamp(min=1e-12)
        eye = torch.eye(len(covariance), dtype=patches.dtype)
        values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * level * eye)
        turn = vectors * values.clamp(min=1e-12).rsqrt() @ vectors.T
        size = ((patches[:: max(1, len(patches) // 4000)] - middle) @ turn).square().sum(dim=1).mean().sqrt()
        return cls(middle, turn / size, classes.softmax(dim=1).mean(dim=0))

    def seen(self, features: Tensor) -> Tensor:
        """Features in the metric, `(E, D)`, of about unit length."""
        return (features - self.middle) @ self.turn

    def carried(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts `(C, D)` and constants `(C,)` of scaled logits on plain features."""
        shift = found[:, :-1] @ self.turn.T
        return shift, found[:, -1] - shift @ self.middle


class _Problem:
    """The weighted surprise of examples under shifts and offsets; without labels, patches of the scene."""

    def __init__(self, z: Tensor, base: Tensor, labels: Tensor | None, class_of: Tensor, classes: int) -> None:
        self.z = torch.cat([z, torch.ones(len(z), 1)], dim=1)
        self.base = _joined(base, class_of, classes)
        self.labels = labels

    def surprise(self, found: Tensor) -> Tensor:
        """Of each example, `(E,)`."""
        assert self.labels is not None
        return F.cross_entropy(self.base + self.z @ found.T, self.labels, reduction="none")

    def guesses(self, found: Tensor) -> Tensor:
        """Class of each example, int64 `(E,)`."""
        return (self.base + self.z @ found.T).argmax(dim=1)

    def chances(self, found: Tensor) -> Tensor:
        """Probabilities of the classes, `(E, C)`."""
        return (self.base + self.z @ found.T).softmax(dim=1)

    def fitted(self, weights: Tensor, strength: float, start: Tensor) -> Tensor:
        """Return the minimum, `(C, D + 1)`, by L-BFGS from `start`."""
        weights = weights / weights.sum().clamp(min=1e-12)
        found = start.clone().requires_grad_(True)
        steps = torch.optim.LBFGS([found], max_iter=20, history_size=8, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            loss = (weights * self.surprise(found)).sum() + 0.5 * strength * found.square().sum()
            (found.grad,) = torch.autograd.grad(loss, [found])
            return loss

        with torch.enable_grad():
            steps.step(closure)
        return found.detach()


def _joined(logits: Tensor, class_of: Tensor, classes: int) -> Tensor:
    """Logits of queries `(N, M)` to one per class `(N, C)`: the logarithm of the sum."""
    if logits.shape[1] == classes:
        return logits
    counts = torch.bincount(class_of, minlength=classes).tolist()
    return torch.stack([part.logsumexp(dim=1) for part in logits.split(counts, dim=1)], dim=1)


def _weights(labels: Tensor, shares: Tensor, least: float) -> Tensor:
    """Weight of each example, `(E,)`: all of a class together like its share of the scene."""
    counts = torch.bincount(labels, minlength=len(shares)).to(shares)
    of_class = torch.where(counts > 0, shares.clamp(min=least), torch.zeros_like(shares))
    return (of_class / of_class.sum() / counts.clamp(min=1))[labels]


def _folds(regions: Tensor, most: int) -> list[Tensor]:
    """Which examples are left out together: masks `(E,)`, at most so many."""
    names = torch.unique(regions)
    part = torch.arange(len(names)) % min(most, len(names))
    of = part[torch.searchsorted(names, regions)]
    return [of == number for number in range(min(most, len(names)))]


def _overlap(guess: Tensor, labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Mean intersection over union of weighted examples over the classes that they have, 0..1."""
    table = torch.zeros(classes * classes).index_add_(0, labels * classes + guess, weights).view(classes, classes)
    right, own, told = table.diagonal(), table.sum(dim=1), table.sum(dim=0)
    return (right / (own + told - right).clamp(min=1e-12))[own > 0].mean()
