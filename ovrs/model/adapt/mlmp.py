"""MLMP and TENT: LayerNorm parameters adapted to one image by entropy, without labels.

Sources: MLMP, arXiv 2505.21844 v2 (NeurIPS 2025), code dosowiechi/MLMP@2a887de; TENT (arXiv 2006.10726) in the
segmentation form of the same code. Equations: `docs/methods.md#tent-and-mlmp`. TENT is the special case of one layer, one prompt and no
image-level term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from ovrs.methods.norms import Mlmp, Tent
from ovrs.model.adapt.tuning import Branches, NormSegmenter, NormState, forward, initial_norms, mean_norms, project
from ovrs.model.clip.text import build_prompt_stack, imagenet_templates

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.dense import Visual
    from ovrs.model.clip.parts import Parts

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
TEMPLATE_COUNTS = (1, 3, 7, 20, 80)
"""Sizes of the paper's Figure 4."""


def template_set(count: int) -> tuple[str, ...]:
    """So many prompts as the paper's Figure 4 takes: the first of the seven, or of CLIP's eighty with the plain one in front."""
    if count == 1:
        return TENT_TEMPLATES
    if count <= len(MLMP_TEMPLATES):
        return MLMP_TEMPLATES[:count]
    pool = [template("{}") for template in imagenet_templates()]
    return (*TENT_TEMPLATES, *(t for t in pool if t != "a photo of a {}."))[:count]


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
    visual: Visual, images: Tensor, prompts: Tensor, mean_prompt: Tensor, settings: Mlmp, *, sets: int | None = None
) -> Adapted:
    """Adapt B images, each for itself, and return their fused patch features.

    Args:
        visual: The frozen tower.
        images: float32 `(B, 3, H, W)`, CLIP-normalised.
        prompts: `(T, M, D)`, unit rows: the queries in each template.
        mean_prompt: `(M, D)`, the renormalised mean over templates; weighs the layers at inference.
        settings: See there.
        sets: So many sets of consecutive images, each with one set of parameters: 1 for all together, as the authors do
            with their batches of two. None: every image has its own.
    """
    groups = prompts.split(1) if settings.templates == "weights" else (prompts,)
    tuned = [tune(visual, images, group, settings, sets=sets) for group in groups]
    depths = settings.depths(len(visual.transformer.resblocks))
    with torch.no_grad():
        frozen = mean_norms([norms for norms, _ in tuned])
        branches = forward(visual, images, frozen, settings.dense, depths)
        weights = layer_weights(visual, branches, frozen, mean_prompt, settings)
        fused = torch.einsum("lb,lbnd->bnd", weights, torch.stack(branches.layers))
        patches = project(visual, fused, frozen)[:, 1:]
    losses = torch.stack([each for _, each in tuned]).mean(dim=0)
    return Adapted(patches, branches.grid, frozen, losses, weights)


def tune(
    visual: Visual, images: Tensor, prompts: Tensor, settings: Mlmp, *, sets: int | None = None
) -> tuple[NormState, Tensor]:
    """Adapt the loaded parameters to the prompts `(T, M, D)`; returns them and the losses `(steps, B)` before each step."""
    norms = initial_norms(visual, sets or len(images), dtype=images.dtype)
    depths = settings.depths(len(visual.transformer.resblocks))
    optimiser = torch.optim.Adam(norms.parameters(), lr=settings.lr, betas=(0.9, 0.999))
    losses = []
    with torch.enable_grad():
        for _ in range(settings.steps):
            each = image_losses(
                visual, forward(visual, images, norms, settings.dense, depths), norms, prompts, settings
            )
            optimiser.zero_grad()
            # a sum, not a mean: every set of images gets the gradient it would get alone
            each.view(sets or len(images), -1).mean(dim=1).sum().backward()
            optimiser.step()
            losses.append(each.detach())
    return norms.detached(), torch.stack(losses) if losses else images.new_zeros(0, len(images))


def image_losses(visual: Visual, branches: Branches, norms: NormState, prompts: Tensor, settings: Mlmp) -> Tensor:
    """Mean patch entropy over templates and patches plus the image-level term, `(B,)` (`docs/methods.md#tent-and-mlmp`)."""
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


def layer_weights(visual: Visual, branches: Branches, norms: NormState, mean_prompt: Tensor, settings: Mlmp) -> Tensor:
    """Softmax over layers of minus β times each layer's mean patch entropy, `(layers, B)` (`docs/methods.md#tent-and-mlmp`)."""
    levels = [
        mean_entropy(project(visual, r, norms)[:, 1:], mean_prompt[None], settings.scale) for r in branches.layers
    ]
    return (-settings.beta * torch.stack(levels)).softmax(dim=0)


def segmenter(parts: Parts[Mlmp | Tent]) -> NormSegmenter:
    """MLMP, or TENT as its special case, on the vocabulary's queries; a tile's crops are adapted together."""
    own = parts.settings
    settings = own.as_mlmp() if isinstance(own, Tent) else own
    templates = template_set(1 if settings.templates == "single" else settings.template_count)
    stack, bank = build_prompt_stack(parts.model, *parts.queries(), templates)
    prompts = bank.vectors[None] if settings.templates == "mean" else stack
    visual = parts.model.clip.visual
    return NormSegmenter(
        parts.frozen(bank),
        settings,
        lambda images, sets: adapt(visual, images, prompts, bank.vectors, settings, sets=sets),
    )
