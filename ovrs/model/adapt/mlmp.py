"""MLMP and TENT: LayerNorm parameters adapted to one image by entropy, without labels.

Sources: MLMP, arXiv 2505.21844 v2 (NeurIPS 2025), code dosowiechi/MLMP@2a887de; TENT (arXiv 2006.10726) in the
segmentation form of the same code. Equations: `docs/methods.md`. TENT is the special case of one layer, one prompt and no
image-level term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F

from ovrs.model.adapt.tuning import Branches, NormState, forward, initial_norms, mean_norms, project

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.dense import DenseVariant, Visual

MLMP_TEMPLATES = (
    "itap of a {}",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
TENT_TEMPLATES = ("a photo of a {}",)

Templates = Literal["separate", "mean", "weights", "single"]
"""How several prompts are joined: by the mean of their entropies (the paper's "Loss"), by the mean of their text vectors
("Text"), or by the mean of the LayerNorm parameters adapted to each alone ("Params"); `single` has one prompt."""


@dataclass(frozen=True, kw_only=True)
class MlmpSettings:
    """Defaults are the paper's."""

    variant: DenseVariant = "naclip"
    layer_share: float = 0.75
    """Deepest share of the blocks that are fused; the last block alone when it rounds to none."""
    layers: int | None = None
    """Number of deepest blocks, instead of the share."""
    image_weight: float = 1.0
    """Weight of the image-level entropy (α_cls); 0 leaves it out."""
    beta: float = 1.0
    """Sharpness of the uncertainty weights at inference; 0 weighs all layers alike."""
    scale: float = 100.0
    steps: int = 10
    lr: float = 1e-3
    joint: bool = False
    """Adapt one set of parameters to all images together, as the authors do with their batches of two."""
    templates: Templates = "separate"
    """`weights` adapts to each prompt alone, from the loaded parameters, and averages; the others take the prompts as given."""

    def depths(self, blocks: int) -> tuple[int, ...]:
        """0-based indices of the fused blocks, ascending."""
        count = self.layers if self.layers is not None else round(self.layer_share * blocks)
        return tuple(range(blocks - max(1, min(count, blocks)), blocks))


class Adapted(NamedTuple):
    """Result for B images."""

    patches: Tensor
    """`(B, N, D)`, unit vectors of the fused layers."""
    grid: tuple[int, int]
    norms: NormState
    losses: Tensor
    """`(steps, B)`: each image's own loss before each step."""
    layer_weights: Tensor
    """`(layers, B)`."""


def adapt(
    visual: Visual, images: Tensor, prompts: Tensor, mean_prompt: Tensor, settings: MlmpSettings, sets: int = 1
) -> Adapted:
    """Adapt B images, each for itself, and return their fused patch features.

    Args:
        visual: The frozen tower.
        images: float32 `(B, 3, H, W)`, CLIP-normalised.
        prompts: `(T, M, D)`, unit rows: the queries in each template.
        mean_prompt: `(M, D)`, the renormalised mean over templates; weighs the layers at inference.
        settings: See there.
        sets: With `joint`, so many sets of consecutive images, each with parameters of its own.
    """
    groups = prompts.split(1) if settings.templates == "weights" else (prompts,)
    tuned = [tune(visual, images, group, settings, sets) for group in groups]
    depths = settings.depths(len(visual.transformer.resblocks))
    with torch.no_grad():
        frozen = mean_norms([norms for norms, _ in tuned])
        branches = forward(visual, images, frozen, settings.variant, depths)
        weights = layer_weights(visual, branches, frozen, mean_prompt, settings)
        fused = torch.einsum("lb,lbnd->bnd", weights, torch.stack(branches.layers))
        patches = project(visual, fused, frozen)[:, 1:]
    losses = torch.stack([each for _, each in tuned]).mean(dim=0)
    return Adapted(patches, branches.grid, frozen, losses, weights)


def tune(
    visual: Visual, images: Tensor, prompts: Tensor, settings: MlmpSettings, sets: int = 1
) -> tuple[NormState, Tensor]:
    """Adapt the loaded parameters to the prompts `(T, M, D)`; returns them and the losses `(steps, B)` before each step."""
    norms = initial_norms(visual, sets if settings.joint else len(images), dtype=images.dtype)
    depths = settings.depths(len(visual.transformer.resblocks))
    optimiser = torch.optim.Adam(norms.parameters(), lr=settings.lr, betas=(0.9, 0.999))
    losses = []
    with torch.enable_grad():
        for _ in range(settings.steps):
            each = image_losses(
                visual, forward(visual, images, norms, settings.variant, depths), norms, prompts, settings
            )
            optimiser.zero_grad()
            # a sum, not a mean: every image, or set of images, gets the gradient it would get alone
            (each.view(sets, -1).mean(dim=1).sum() if settings.joint else each.sum()).backward()
            optimiser.step()
            losses.append(each.detach())
    return norms.detached(), torch.stack(losses) if losses else images.new_zeros(0, len(images))


def image_losses(
    visual: Visual, branches: Branches, norms: NormState, prompts: Tensor, settings: MlmpSettings
) -> Tensor:
    """Mean patch entropy over templates and patches plus the image-level term, `(B,)` (`methods` 5.2)."""
    fused = torch.stack(branches.layers).mean(dim=0)
    loss = mean_entropy(project(visual, fused, norms)[:, 1:], prompts, settings.scale)
    if settings.image_weight:
        whole = project(visual, branches.final[:, :1], norms)
        loss = loss + settings.image_weight * mean_entropy(whole, prompts, settings.scale)
    return loss


def mean_entropy(features: Tensor, prompts: Tensor, scale: float) -> Tensor:
    """Entropy over queries, averaged over templates and positions: `(B, N, D)`, `(T, M, D)` to `(B,)`."""
    log_p = F.log_softmax(scale * torch.einsum("bnd,tmd->btnm", features, prompts), dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean(dim=(1, 2))


def layer_weights(
    visual: Visual, branches: Branches, norms: NormState, mean_prompt: Tensor, settings: MlmpSettings
) -> Tensor:
    """Softmax over layers of minus β times each layer's mean patch entropy, `(layers, B)` (`methods` 5.3)."""
    levels = [
        mean_entropy(project(visual, r, norms)[:, 1:], mean_prompt[None], settings.scale) for r in branches.layers
    ]
    return (-settings.beta * torch.stack(levels)).softmax(dim=0)
