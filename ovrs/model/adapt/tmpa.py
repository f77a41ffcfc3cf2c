"""TMPA: test-time multi-prompt adaptation of the text side, one tile at a time.

Source: Yang, Wang, Hou, Hu, "Test-Time Multi-Prompt Adaptation for Open-Vocabulary Remote Sensing Image Segmentation",
CVPR 2026, pp. 10699-10709. Each query moves by α towards a visual prototype of its class found in the tile itself;
the α are optimised for low entropy and forgotten afterwards. Our choices and their reasons: `docs/methods.md`.

Nothing here runs the encoder or the upsampler: α acts through two precomputed cosine maps,
F̃ = normalise((1-α) t + α f̄)  gives  x·F̃ = ((1-α) x·t + α x·f̄) / ‖·‖,  ‖·‖² = (1-α)² + α² + 2 α (1-α) t·f̄.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from ovrs.methods.tmpa import Descent, TmpaShift
from ovrs.model.clip.head import class_scores, entropy, join_queries

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.text import TextBank

COLLAPSE_SHARE = 0.01
"""A class counts as present in a tile when it holds more than this share of the patches."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The text to classify a tile with."""

    text: Tensor
    """`(M, D)`, unit rows."""
    base_text: Tensor
    """`(M, D)`: what the global term uses."""
    alpha: Tensor
    """`(M,)`, 0 for queries of a class without prototype."""
    losses: tuple[float, ...] = ()
    """Mean entropy before each step."""
    events: tuple[str, ...] = field(default=())


class PatchSet(Protocol):
    """What calibration looks at: the patches of a tile, or of a sample of the scene's tiles."""

    @property
    def patches(self) -> Tensor:
        """`(B, N, D)`, unit vectors."""
        ...

    @property
    def cls(self) -> Tensor:
        """`(B, D)`, unit vectors."""
        ...

    @property
    def patch_valid(self) -> Tensor:
        """bool `(B, N)`."""
        ...


class Prototypes(NamedTuple):
    """Visual prototypes of one tile."""

    vectors: Tensor
    """`(C, D)`, unit rows, zero where there is none."""
    found: Tensor
    """bool `(C,)`."""


@torch.no_grad()
def find_prototypes(features: PatchSet, bank: TextBank, settings: Descent) -> Prototypes:
    """Per class, the mean of its lowest-entropy patches over all crops of the tile.

    A patch is a candidate when its entropy lies below the mean of the tile's valid patches and its best class has at
    least the uniform probability 1 / C. Ties go to the lowest flat index.
    """
    patches, valid = features.patches.flatten(0, 1), features.patch_valid.flatten()
    probabilities = (settings.scale * (bank.vectors @ patches.T)).softmax(dim=0)
    uncertainty = entropy(probabilities) / torch.log(torch.tensor(float(max(2, len(probabilities)))))
    best, winner = join_queries(probabilities, bank, settings.max_share).max(dim=0)
    vectors = patches.new_zeros(bank.class_count, patches.shape[1])
    found = torch.zeros(bank.class_count, dtype=torch.bool, device=patches.device)
    if not valid.any():
        return Prototypes(vectors, found)
    # the mean over queries dilutes a class of several, so its floor is diluted alike
    queries = torch.bincount(bank.class_of, minlength=bank.class_count)
    floor = (settings.max_share + (1 - settings.max_share) / queries[winner]) / bank.class_count
    candidate = valid & (uncertainty < uncertainty[valid].mean()) & (best >= floor)
    wanted = max(3, round(settings.anchors * len(patches) / 196))
    for index in range(bank.class_count):
        rows = (candidate & (winner == index)).nonzero().flatten()
        if len(rows):
            rows = rows[uncertainty[rows].argsort(stable=True)[:wanted]]
            vectors[index] = F.normalize(patches[rows].mean(dim=0), dim=0)
            found[index] = True
    if settings.absent == "mean" and found.any():
        vectors[~found] = F.normalize(patches[valid].mean(dim=0), dim=0)
        found[:] = True
    return Prototypes(vectors, found)


def calibrate(features: PatchSet, bank: TextBank, settings: Descent) -> Calibration:
    """Adapt the text of `bank` to one tile; the bank itself is not changed.

    Returns the plain text, with the reason as an event, where there is nothing to adapt: fewer than two classes, no
    valid patch, no prototype. Also when adaptation did harm: entropy did not fall, or the tile collapsed into one class.
    """
    plain = Calibration(bank.vectors, bank.vectors, bank.vectors.new_zeros(len(bank.vectors)))
    if bank.class_count < 2:
        return _with_event(plain, "single_class")
    if not features.patch_valid.any():
        return _with_event(plain, "no_valid_patch")
    prototypes = find_prototypes(features, bank, settings)
    if not prototypes.found.any():
        return _with_event(plain, "no_prototype")
    problem = _Problem(features, bank, prototypes, settings)
    theta, delta, losses = _optimise(problem, settings)
    with torch.no_grad():
        adapted = problem.calibration(theta, delta, tuple(losses))
        if settings.steps and (reason := _harm(problem, theta, delta)):
            return _with_event(plain, reason)
    return _with_event(adapted, "adapted")


def _with_event(calibration: Calibration, event: str) -> Calibration:
    return Calibration(calibration.text, calibration.base_text, calibration.alpha, calibration.losses, (event,))


class _Problem:
    """The entropy of a tile as a function of α (and δ), on precomputed maps of its valid patches."""

    def __init__(self, features: PatchSet, bank: TextBank, prototypes: Prototypes, settings: Descent) -> None:
        self.bank, self.settings = bank, settings
        self.anchored = prototypes.found[bank.class_of]
        self.target = prototypes.vectors[bank.class_of]
        keep = features.patch_valid.flatten()
        crop = torch.arange(len(features.patches), device=keep.device).repeat_interleave(features.patches.shape[1])
        self.patches = features.patches.flatten(0, 1)[keep]
        self.cls = features.cls[crop[keep]]
        self.text_map = self.patches @ bank.vectors.T
        self.prototype_map = self.patches @ self.target.T
        self.cls_map = settings.cls_weight * (self.cls @ bank.vectors.T)
        with torch.no_grad():
            self.shares = self.probabilities(torch.zeros_like(bank.vectors[:, 0]), None).mean(dim=1)

    def logits(self, theta: Tensor, delta: Tensor | None) -> Tensor:
        """`(M, valid patches)` without temperature."""
        alpha = theta * self.anchored
        text, text_map, cls_map = self.bank.vectors, self.text_map, self.cls_map
        if delta is not None:  # one small product per step: patches × D × M
            text = F.normalize(self.bank.vectors + delta, dim=-1)
            text_map, cls_map = self.patches @ text.T, self.settings.cls_weight * (self.cls @ text.T)
        cosine = (text * self.target).sum(dim=-1)
        norm = (
            ((1 - alpha).square() + self.anchored * (alpha.square() + 2 * alpha * (1 - alpha) * cosine))
            .clamp(min=1e-12)
            .sqrt()
        )
        return (((1 - alpha) * text_map + alpha * self.prototype_map) / norm + cls_map).T

    def probabilities(self, theta: Tensor, delta: Tensor | None) -> Tensor:
        """Class probabilities renormalised to sum one, `(C, valid patches)`."""
        scores = class_scores(self.logits(theta, delta), self.bank, self.settings.scale, self.settings.max_share)
        return scores / scores.sum(dim=0, keepdim=True)

    def loss(self, theta: Tensor, delta: Tensor | None) -> Tensor:
        probabilities = self.probabilities(theta, delta)
        loss = entropy(probabilities).mean()
        if self.settings.keep_shares:
            now = probabilities.mean(dim=1).clamp(min=1e-8)
            before = self.shares.clamp(min=1e-8)
            loss = loss + self.settings.keep_shares * (before * (before / now).log()).sum()
        return loss

    def calibration(self, theta: Tensor, delta: Tensor | None, losses: tuple[float, ...]) -> Calibration:
        alpha = (theta * self.anchored)[:, None]
        base = self.bank.vectors if delta is None else F.normalize(self.bank.vectors + delta, dim=-1)
        text = torch.where(alpha > 0, F.normalize((1 - alpha) * base + alpha * self.target, dim=-1), base)
        return Calibration(text, base, alpha[:, 0], losses)


def _optimise(problem: _Problem, settings: Descent) -> tuple[Tensor, Tensor | None, list[float]]:
    vectors = problem.bank.vectors
    theta = torch.full(
        (len(vectors),), min(settings.alpha_init, settings.alpha_max), device=vectors.device, requires_grad=True
    )
    delta = None
    groups = [{"params": [theta], "lr": settings.lr}]
    if isinstance(settings, TmpaShift):
        delta = torch.zeros_like(vectors, requires_grad=True)
        groups.append({"params": [delta], "lr": settings.lr_shift})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.999))
    losses = []
    with torch.enable_grad():
        for _ in range(settings.steps):
            loss = problem.loss(theta, delta)
            optimiser.zero_grad()
            loss.backward()
            losses.append(float(loss.detach()))
            if theta.grad is not None:  # Adam would blow rounding noise of queries without prototype up to a full step
                theta.grad *= problem.anchored
            optimiser.step()
            with torch.no_grad():  # projection, not a clamp in the forward pass: an entry at the bound can return
                theta.clamp_(0, settings.alpha_max)
    return theta.detach(), None if delta is None else delta.detach(), losses


def _harm(problem: _Problem, theta: Tensor, delta: Tensor | None) -> str | None:
    before = problem.probabilities(torch.zeros_like(theta), None)
    after = problem.probabilities(theta, delta)
    if not entropy(after).mean() < entropy(before).mean():
        return "reverted_entropy"
    present = [
        int((p.argmax(dim=0).bincount(minlength=len(p)) > COLLAPSE_SHARE * p.shape[1]).sum()) for p in (before, after)
    ]
    return "reverted_collapse" if present[0] > 1 and present[1] == 1 else None
