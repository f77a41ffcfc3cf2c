"""TMPA: test-time multi-prompt adaptation of the text side, several tiles in one pass, each for itself.

Source: Yang, Wang, Hou, Hu, "Test-Time Multi-Prompt Adaptation for Open-Vocabulary Remote Sensing Image Segmentation",
CVPR 2026, pp. 10699-10709. Each query moves by α towards a visual prototype of its class found in the tile itself;
the α are optimised for low entropy and forgotten afterwards.
Our choices and their reasons: `docs/methods.md#tmpa-tmpa_shift-and-tmpa_compat`.

Nothing here runs the encoder or the upsampler: α acts through two precomputed cosine maps,
F̃ = normalise((1-α) t + α f̄)  gives  x·F̃ = ((1-α) x·t + α x·f̄) / ‖·‖,  ‖·‖² = (1-α)² + α² + 2 α (1-α) t·f̄.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from ovrs.methods.tmpa import Descent, TmpaShift
from ovrs.model.clip.head import class_scores, entropy, join_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        """Whether a patch is valid ground, bool `(B, N)`."""
        ...


class Prototypes(NamedTuple):
    """Visual prototypes of T tiles."""

    vectors: Tensor
    """`(T, C, D)`, unit rows, zero where there is none."""
    found: Tensor
    """bool `(T, C)`."""


class Stack(NamedTuple):
    """Patches of T tiles, made up to the same number by patches that are not valid."""

    patches: Tensor
    """`(T, N, D)`, unit vectors."""
    cls: Tensor
    """`(T, B, D)`: one for `N / B` patches."""
    valid: Tensor
    """bool `(T, N)`."""
    real: Tensor
    """`(T,)`: patches that the tile has, valid or not."""

    @classmethod
    def of(cls, tiles: Sequence[PatchSet]) -> Stack:
        """Put tiles side by side."""
        inputs = max(len(t.patches) for t in tiles)

        def side_by_side(values: list[Tensor]) -> Tensor:
            if len(values) == 1:
                return values[0][None]
            return torch.stack([F.pad(v, (0, 0) * (v.ndim - 1) + (0, inputs - len(v))) for v in values])

        patches = side_by_side([t.patches for t in tiles])
        real = torch.tensor([t.patches.shape[0] * t.patches.shape[1] for t in tiles], device=patches.device)
        valid = side_by_side([t.patch_valid for t in tiles])
        return cls(patches.flatten(1, 2), side_by_side([t.cls for t in tiles]), valid.flatten(1), real)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean `(…, T)` of `(…, T, N)` over the valid patches of each tile; 0 where there are none."""
        return torch.where(self.valid, values, 0).sum(dim=-1) / self.valid.sum(dim=-1).clamp(min=1)


@torch.no_grad()
def find_prototypes(stack: Stack, bank: TextBank, settings: Descent) -> Prototypes:
    """Per tile and class, the mean of its lowest-entropy patches over all crops of the tile.

    A patch is a candidate when its entropy lies below the mean of the tile's valid patches and its best class has at
    least the uniform probability 1 / C. Ties go to the lowest flat index.
    """
    probabilities = (settings.scale * _products(bank.vectors, stack.patches)).softmax(dim=0)
    uncertainty = entropy(probabilities) / math.log(max(2, len(probabilities)))
    best, winner = join_queries(probabilities, bank, settings.max_share).max(dim=0)
    # the mean over queries dilutes a class of several, so its floor is diluted alike
    floor = (settings.max_share + (1 - settings.max_share) / bank.sizes[winner]) / bank.class_count
    candidate = stack.valid & (uncertainty < stack.mean(uncertainty)[:, None]) & (best >= floor)
    wanted = (settings.anchors * stack.real / 196).round().clamp(min=3)
    order = torch.where(candidate, uncertainty, torch.inf).argsort(dim=1, stable=True)
    groups = F.one_hot(winner.gather(1, order), bank.class_count) * candidate.gather(1, order)[..., None]
    first = groups * (groups.cumsum(dim=1) <= wanted[:, None, None])  # the surest of each class
    chosen = torch.zeros_like(first).scatter_(1, order[..., None].expand_as(first), first).to(stack.patches)
    count = chosen.sum(dim=1)
    vectors = F.normalize(chosen.transpose(1, 2) @ stack.patches / count.clamp(min=1)[..., None], dim=-1)
    found = count > 0
    if settings.absent == "mean":
        some = found.any(dim=1, keepdim=True)
        middle = F.normalize(stack.mean(stack.patches.movedim(-1, 0)).T, dim=-1)
        vectors = torch.where((some & ~found)[..., None], middle[:, None], vectors)
        found = found | some
    return Prototypes(vectors, found)


def _products(text: Tensor, patches: Tensor) -> Tensor:
    """`(M, D)` and `(T, N, D)` to `(M, T, N)`."""
    return (text @ patches.flatten(0, 1).T).unflatten(1, patches.shape[:2])


EVENTS = ("adapted", "no_valid_patch", "no_prototype", "reverted_entropy", "reverted_collapse")


class Calibrations(NamedTuple):
    """The text to classify each of T tiles with. Nothing of it was brought to the host."""

    text: Tensor
    """`(T, M, D)`, unit rows."""
    base_text: Tensor
    """`(T, M, D)`: what the global term uses."""
    alpha: Tensor
    """`(T, M)`, 0 for queries of a class without prototype."""
    losses: Tensor
    """`(steps, T)`: mean entropy before each step."""
    event: Tensor
    """int64 `(T,)`: index into `EVENTS`."""


def calibrate(features: PatchSet, bank: TextBank, settings: Descent) -> Calibration:
    """Adapt the text of `bank` to one tile; the bank itself is not changed.

    Returns the plain text, with the reason as an event, where there is nothing to adapt: fewer than two classes, no
    valid patch, no prototype. Also when adaptation did harm: entropy did not fall, or the tile collapsed into one class.
    """
    if bank.class_count < 2:
        zeros = bank.vectors.new_zeros(len(bank.vectors))
        return Calibration(bank.vectors, bank.vectors, zeros, events=("single_class",))
    found = calibrate_tiles([features], bank, settings)
    event = EVENTS[int(found.event[0])]
    losses = tuple(found.losses[:, 0].tolist()) if event == "adapted" else ()
    return Calibration(found.text[0], found.base_text[0], found.alpha[0], losses, (event,))


def calibrate_tiles(tiles: Sequence[PatchSet], bank: TextBank, settings: Descent) -> Calibrations:
    """`calibrate` for several tiles in one pass, with the result of one by one, for at least two classes."""
    stack = Stack.of(tiles)
    prototypes = find_prototypes(stack, bank, settings)
    problem = _Problem(stack, bank, prototypes, settings)
    theta, delta, losses = _optimise(problem, settings)
    with torch.no_grad():
        text, base, alpha = problem.text(theta, delta)
        event = torch.where(prototypes.found.any(dim=1), 0, 2)
        event = torch.where(stack.valid.any(dim=1), event, 1)
        if settings.steps:
            event = torch.where(event == 0, _harm(problem, theta, delta), event)
        plain = event != 0
        text, base = (torch.where(plain[:, None, None], bank.vectors, t) for t in (text, base))
        return Calibrations(text, base, torch.where(plain[:, None], 0, alpha), losses, event)


class _Problem:
    """The entropy of each tile as a function of α (and δ), on precomputed maps of its patches."""

    def __init__(self, stack: Stack, bank: TextBank, prototypes: Prototypes, settings: Descent) -> None:
        self.stack, self.bank, self.settings = stack, bank, settings
        self.anchored = prototypes.found[:, bank.class_of]
        self.target = prototypes.vectors[:, bank.class_of]
        self.text_map = _products(bank.vectors, stack.patches)
        self.prototype_map = torch.einsum("tmd,tnd->mtn", self.target, stack.patches)
        self.cls_map = self._global(_products(bank.vectors, stack.cls))
        with torch.no_grad():
            zeros = torch.zeros_like(self.target[..., 0])
            self.shares = stack.mean(self.probabilities(zeros, None))

    def _global(self, low: Tensor) -> Tensor:
        """Repeat the global term `(M, T, B)` for every patch, `(M, T, N)`."""
        each = self.stack.patches.shape[1] // self.stack.cls.shape[1]
        return self.settings.cls_weight * low.repeat_interleave(each, dim=-1)

    def logits(self, theta: Tensor, delta: Tensor | None) -> Tensor:
        """`(M, T, N)` without temperature, from α `(T, M)` and δ `(T, M, D)`."""
        alpha = theta * self.anchored
        text, text_map, cls_map = self.bank.vectors, self.text_map, self.cls_map
        if delta is not None:  # one small product per step: patches × D × M
            text = F.normalize(self.bank.vectors + delta, dim=-1)
            text_map = torch.einsum("tmd,tnd->mtn", text, self.stack.patches)
            cls_map = self._global(torch.einsum("tmd,tbd->mtb", text, self.stack.cls))
        cosine = (text * self.target).sum(dim=-1)
        norm = (
            ((1 - alpha).square() + self.anchored * (alpha.square() + 2 * alpha * (1 - alpha) * cosine))
            .clamp(min=1e-12)
            .sqrt()
        )
        own, toward, length = ((1 - alpha).T[..., None], alpha.T[..., None], norm.T[..., None])
        return (own * text_map + toward * self.prototype_map) / length + cls_map

    def probabilities(self, theta: Tensor, delta: Tensor | None) -> Tensor:
        """Class probabilities renormalised to sum one, `(C, T, N)`."""
        scores = class_scores(self.logits(theta, delta), self.bank, self.settings.scale, self.settings.max_share)
        return scores / scores.sum(dim=0, keepdim=True)

    def loss(self, theta: Tensor, delta: Tensor | None) -> Tensor:
        """Of each tile, `(T,)`."""
        probabilities = self.probabilities(theta, delta)
        loss = self.stack.mean(entropy(probabilities))
        if self.settings.keep_shares:
            now = self.stack.mean(probabilities).clamp(min=1e-8)
            before = self.shares.clamp(min=1e-8)
            loss = loss + self.settings.keep_shares * (before * (before / now).log()).sum(dim=0)
        return loss

    def text(self, theta: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Calibrated text and base text `(T, M, D)`, and α `(T, M)`."""
        alpha = (theta * self.anchored)[..., None]
        base = self.bank.vectors.expand_as(self.target)
        if delta is not None:
            base = F.normalize(self.bank.vectors + delta, dim=-1)
        moved = F.normalize((1 - alpha) * base + alpha * self.target, dim=-1)
        return torch.where(alpha > 0, moved, base), base, alpha[..., 0]


def _optimise(problem: _Problem, settings: Descent) -> tuple[Tensor, Tensor | None, Tensor]:
    """α, δ and the losses `(steps, T)`: one optimiser for all tiles, which is element-wise."""
    shape, like = problem.target.shape, problem.target
    theta = torch.full_like(like[..., 0], min(settings.alpha_init, settings.alpha_max)).requires_grad_(True)
    delta = (
        torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)
        if isinstance(settings, TmpaShift)
        else None
    )
    groups = [{"params": [theta], "lr": settings.lr}]
    if delta is not None and isinstance(settings, TmpaShift):
        groups.append({"params": [delta], "lr": settings.lr_shift})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.999))
    losses = []
    with torch.enable_grad():
        for _ in range(settings.steps):
            each = problem.loss(theta, delta)
            optimiser.zero_grad()
            each.sum().backward()  # a sum, not a mean: every tile gets the gradient it would get alone
            losses.append(each.detach())
            if theta.grad is not None:  # Adam would blow rounding noise of queries without prototype up to a full step
                theta.grad *= problem.anchored
            optimiser.step()
            with torch.no_grad():  # projection, not a clamp in the forward pass: an entry at the bound can return
                theta.clamp_(0, settings.alpha_max)
    told = torch.stack(losses) if losses else like.new_zeros(0, shape[0])
    return theta.detach(), None if delta is None else delta.detach(), told


def _harm(problem: _Problem, theta: Tensor, delta: Tensor | None) -> Tensor:
    """Per tile the event, `(T,)`: 0 where adaptation did no harm."""
    stack = problem.stack
    before = problem.probabilities(torch.zeros_like(theta), None)
    after = problem.probabilities(theta, delta)
    fell = stack.mean(entropy(after)) < stack.mean(entropy(before))
    present = []
    for p in (before, after):
        held = F.one_hot(p.argmax(dim=0), len(p)) * stack.valid[..., None]
        present.append((held.sum(dim=1) > COLLAPSE_SHARE * stack.valid.sum(dim=1, keepdim=True)).sum(dim=1))
    collapsed = (present[0] > 1) & (present[1] == 1)
    return torch.where(fell, torch.where(collapsed, 4, 0), 3)
