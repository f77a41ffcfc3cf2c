"""CLIPArTT and WATT: LayerNorm parameters adapted by agreement between patches and the texts of their own predictions.

Sources: CLIPArTT (arXiv 2405.00754, code dosowiechi/CLIPArTT@6f439ba), WATT (arXiv 2406.13875, code
Mehrdad-Noori/WATT@40e3fae), both made for image classification, and their segmentation form in dosowiechi/MLMP@2a887de,
where every patch is a sample. That form mixes up its axes; `compat` does the same, for comparison with published figures
only (`docs/methods.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F

from ovrs.model.tuning import NormState, forward, initial_norms, project

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ovrs.model.dense import DenseVariant, Visual

TARGET_TEMPERATURE = 0.01
WATT_EXTRA_TEMPLATE = "a photo of a {}"
"""The original WATT has this one beside MLMP's seven."""


@dataclass(frozen=True, kw_only=True)
class PseudoSettings:
    """Defaults are those of the papers' segmentation form."""

    variant: DenseVariant = "naclip"
    scale: float = 100.0
    lr: float = 1e-3
    joint: bool = False
    """Adapt one set of parameters to all images together: their patches then form one set of samples."""
    compat: bool = False
    """The released layout: ranks of neighbouring patches share a prompt, and the softmax runs over patches."""
    steps: int = 10
    """CLIPArTT: optimisation steps."""
    top: int = 3
    """CLIPArTT: classes joined in a prompt."""
    inner_steps: int = 2
    """WATT: steps per template (l)."""
    rounds: int = 5
    """WATT: rounds over all templates (m)."""
    mode: Literal["sequential", "parallel"] = "sequential"
    """WATT: whether a template starts from its predecessor's weights or from the last round's mean."""


class PseudoAdapted(NamedTuple):
    """Result for B images."""

    patches: Tensor
    """`(B, N, D)`, unit vectors."""
    grid: tuple[int, int]
    norms: NormState
    losses: Tensor
    """`(steps or rounds, groups)`; one group when joint."""


class _Tower:
    """Patch features of B images under changing norms, grouped into sets of samples."""

    def __init__(self, visual: Visual, images: Tensor, settings: PseudoSettings) -> None:
        self.visual, self.images, self.settings = visual, images, settings
        self.norms = initial_norms(visual, 1 if settings.joint else len(images), dtype=images.dtype)
        self.optimiser = torch.optim.Adam(self.norms.parameters(), lr=settings.lr, betas=(0.9, 0.999))
        self.last = (len(visual.transformer.resblocks) - 1,)

    def samples(self) -> Tensor:
        """`(groups, n, D)`."""
        patches, _ = self.patches(self.norms)
        return patches.flatten(0, 1)[None] if self.settings.joint else patches

    def patches(self, norms: NormState) -> tuple[Tensor, tuple[int, int]]:
        branches = forward(self.visual, self.images, norms, self.settings.variant, self.last)
        return project(self.visual, branches.layers[0], norms)[:, 1:], branches.grid

    def step(self, features: Tensor, texts: Tensor) -> Tensor:
        """One update toward agreement; returns each group's loss before it."""
        each = agreement(features, texts, self.settings.scale, compat=self.settings.compat)
        self.optimiser.zero_grad()
        each.sum().backward()  # a sum, not a mean: every group gets the gradient it would get alone
        self.optimiser.step()
        return each.detach()

    def result(self, losses: list[Tensor]) -> PseudoAdapted:
        with torch.no_grad():
            frozen = self.norms.detached()
            patches, grid = self.patches(frozen)
        return PseudoAdapted(patches, grid, frozen, torch.stack(losses))


def agreement(features: Tensor, texts: Tensor, scale: float, *, compat: bool = False) -> Tensor:
    """Cross-entropy between the texts a patch is like and those that its relations ask for, `(groups,)`.

    Args:
        features: `(G, n, D)`, unit rows.
        texts: `(G, n, D)`: the pseudo-label's text of every sample.
        scale: Inverse temperature of the prediction.
        compat: Softmax over patches instead of texts, the target not transposed.
    """
    relations = (features @ features.transpose(1, 2) + texts @ texts.transpose(1, 2)) / 2
    target = (relations / TARGET_TEMPERATURE).softmax(dim=-1)  # gradients flow through it, as in the sources
    logits = scale * texts @ features.transpose(1, 2)
    axis = 2 if compat else 1  # texts are rows, patches columns
    return -(target * logits.log_softmax(dim=axis)).sum(dim=axis).mean(dim=-1)


def clipartt(
    visual: Visual,
    images: Tensor,
    reference: Tensor,
    names: list[str],
    encode: Callable[[list[str]], Tensor],
    settings: PseudoSettings,
) -> PseudoAdapted:
    """Adapt B images with prompts that join each patch's most likely classes.

    Args:
        visual: The frozen tower.
        images: float32 `(B, 3, H, W)`, CLIP-normalised.
        reference: `(C, D)`, unit rows: "a photo of a {name}".
        names: Of the C classes.
        encode: Sentences to unit vectors `(n, D)`; each distinct sentence is asked for once.
        settings: See there.
    """
    tower, known = _Tower(visual, images, settings), dict[tuple[int, ...], int]()
    vectors = reference.new_zeros(0, reference.shape[1])
    losses = []
    count = min(settings.top, len(names))
    with torch.enable_grad():
        for _ in range(settings.steps):
            features = tower.samples()
            chosen = (features.detach() @ reference.T).topk(count, dim=-1).indices
            if settings.compat:  # ranks first, then positions, read as if positions came first
                chosen = chosen.transpose(1, 2).reshape(chosen.shape)
            combinations = [tuple(row) for row in chosen.flatten(0, 1).tolist()]
            new = sorted(set(combinations) - known.keys())
            if new:
                known.update({c: len(known) + i for i, c in enumerate(new)})
                sentences = ["a photo of a " + " or ".join(names[i] for i in c) for c in new]
                vectors = torch.cat([vectors, encode(sentences).to(vectors)])
            rows = torch.tensor([known[c] for c in combinations], device=vectors.device)
            losses.append(tower.step(features, vectors[rows].view(*chosen.shape[:2], -1)))
    return tower.result(losses)


def watt(visual: Visual, images: Tensor, prompts: Tensor, settings: PseudoSettings) -> PseudoAdapted:
    """Adapt B images template by template and average the weights (`prompts`: `(T, C, D)`, unit rows)."""
    tower = _Tower(visual, images, settings)
    parameters = tower.norms.parameters()
    losses = []
    with torch.enable_grad():
        for _ in range(settings.rounds):
            start = [p.detach().clone() for p in parameters]
            snapshots, last = [], []
            for text in prompts:
                if settings.mode == "parallel":
                    _assign(parameters, start)
                for _ in range(settings.inner_steps):
                    features = tower.samples()
                    chosen = (features.detach() @ text.T).argmax(dim=-1)
                    loss = tower.step(features, F.embedding(chosen, text))
                last.append(loss)
                snapshots.append([p.detach().clone() for p in parameters])
            _assign(parameters, [torch.stack(group).mean(dim=0) for group in zip(*snapshots, strict=True)])
            losses.append(torch.stack(last).mean(dim=0))
    return tower.result(losses)


@torch.no_grad()
def _assign(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
