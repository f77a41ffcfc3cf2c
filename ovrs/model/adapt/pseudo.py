"""CLIPArTT and WATT: LayerNorm parameters adapted by agreement between patches and the texts of their own predictions.

Sources: CLIPArTT (arXiv 2405.00754, code dosowiechi/CLIPArTT@6f439ba), WATT (arXiv 2406.13875, code
Mehrdad-Noori/WATT@40e3fae), both made for image classification, and their segmentation form in dosowiechi/MLMP@2a887de,
where every patch is a sample. That form mixes up its axes, and with several images in a batch it mixes images; `compat`
does the same, for comparison with published figures only (`docs/methods.md#clipartt-watt-clipartt_compat-and-watt_compat`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from ovrs.model.adapt.mlmp import MLMP_TEMPLATES, TENT_TEMPLATES
from ovrs.model.adapt.tuning import NormSegmenter, NormState, forward, initial_norms, project
from ovrs.model.clip.text import build_prompt_stack, clean, encode_sentences

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ovrs.methods.norms import Clipartt, Pseudo, Watt
    from ovrs.model.clip.dense import Visual
    from ovrs.model.clip.parts import Parts

TARGET_TEMPERATURE = 0.01
WATT_EXTRA_TEMPLATE = "a photo of a {}"
"""The original WATT has this one beside MLMP's seven."""


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

    def __init__(self, visual: Visual, images: Tensor, settings: Pseudo, sets: int | None) -> None:
        self.visual, self.images, self.settings = visual, images, settings
        self.groups = sets or len(images)
        self.norms = initial_norms(visual, self.groups, dtype=images.dtype)
        self.optimiser = torch.optim.Adam(self.norms.parameters(), lr=settings.lr, betas=(0.9, 0.999))
        self.last = (len(visual.transformer.resblocks) - 1,)

    def samples(self) -> Tensor:
        """Return the patches of each group, `(groups, n, D)`."""
        patches, _ = self.patches(self.norms)
        return patches.unflatten(0, (self.groups, -1)).flatten(1, 2)

    def patches(self, norms: NormState) -> tuple[Tensor, tuple[int, int]]:
        branches = forward(self.visual, self.images, norms, self.settings.dense, self.last)
        return project(self.visual, branches.layers[0], norms)[:, 1:], branches.grid

    def step(self, features: Tensor, texts: Tensor) -> Tensor:
        """One update toward agreement; returns each group's loss before it."""
        images = len(self.images) // self.groups if self.settings.compat else None
        each = agreement(features, texts, self.settings.scale, released=images)
        self.optimiser.zero_grad()
        each.sum().backward()  # a sum, not a mean: every group gets the gradient it would get alone
        self.optimiser.step()
        return each.detach()

    def result(self, losses: list[Tensor]) -> PseudoAdapted:
        with torch.no_grad():
            frozen = self.norms.detached()
            patches, grid = self.patches(frozen)
        return PseudoAdapted(patches, grid, frozen, torch.stack(losses))


def agreement(features: Tensor, texts: Tensor, scale: float, *, released: int | None = None) -> Tensor:
    """Cross-entropy between the texts a patch is like and those that its relations ask for, `(groups,)`.

    Args:
        features: `(G, n, D)`, unit rows: the patches of all images of a group, image after image.
        texts: `(G, n, D)`: the pseudo-label's text of every sample.
        scale: Inverse temperature of the prediction.
        released: Number of images in a group: take the logits as the released code lays them out (`released_rows`) and
            leave the target untransposed. None: the softmax runs over texts.
    """
    relations = (features @ features.transpose(1, 2) + texts @ texts.transpose(1, 2)) / 2
    target = (relations / TARGET_TEMPERATURE).softmax(dim=-1)  # gradients flow through it, as in the sources
    logits = scale * texts @ features.transpose(1, 2)  # texts are rows, patches columns
    if released is not None:
        return -(target * released_rows(logits, released).log_softmax(dim=2)).sum(dim=2).mean(dim=-1)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean(dim=-1)


def released_rows(logits: Tensor, images: int) -> Tensor:
    """Logits `(G, n, n)`, texts by patches, in the order of the released code: same shape, other entries in a row.

    The released code holds one map of scores per image and text, `(images, n, n / images)`, and cuts that array into rows
    of n. A row then holds `images` consecutive texts against the patches of one image; with one image nothing moves.
    """
    groups, texts, patches = logits.shape
    each = logits.view(groups, texts, images, patches // images)
    return each.transpose(1, 2).reshape(groups, texts, patches)


def released_choice(chosen: Tensor, images: int) -> Tensor:
    """Most likely classes `(G, n, K)` in the order of the released code: same shape, other entries in a row.

    The released code holds, per image, one map per rank, `(images, K, n / images)`, and cuts that array into rows of K.
    """
    groups, samples, ranks = chosen.shape
    each = chosen.view(groups, images, samples // images, ranks)
    return each.transpose(2, 3).reshape(groups, samples, ranks)


def clipartt(
    visual: Visual,
    images: Tensor,
    reference: Tensor,
    names: list[str],
    encode: Callable[[list[str]], Tensor],
    settings: Clipartt,
    *,
    sets: int | None = None,
) -> PseudoAdapted:
    """Adapt B images with prompts that join each patch's most likely classes.

    Args:
        visual: The frozen tower.
        images: float32 `(B, 3, H, W)`, CLIP-normalised.
        reference: `(C, D)`, unit rows: "a photo of a {name}".
        names: Of the C classes.
        encode: Sentences to unit vectors `(n, D)`; each distinct sentence is asked for once.
        settings: See there.
        sets: So many sets of consecutive images, each with one set of parameters: their patches form one set of samples.
            None: every image has its own.
    """
    tower, known = _Tower(visual, images, settings, sets), dict[tuple[int, ...], int]()
    vectors = reference.new_zeros(0, reference.shape[1])
    losses = []
    count = min(settings.top, len(names))
    with torch.enable_grad():
        for _ in range(settings.steps):
            features = tower.samples()
            chosen = (features.detach() @ reference.T).topk(count, dim=-1).indices
            if settings.compat:
                chosen = released_choice(chosen, len(images) // tower.groups)
            combinations = [tuple(row) for row in chosen.flatten(0, 1).tolist()]
            new = sorted(set(combinations) - known.keys())
            if new:
                known.update({c: len(known) + i for i, c in enumerate(new)})
                sentences = ["a photo of a " + " or ".join(names[i] for i in c) for c in new]
                vectors = torch.cat([vectors, encode(sentences).to(vectors)])
            rows = torch.tensor([known[c] for c in combinations], device=vectors.device)
            losses.append(tower.step(features, vectors[rows].view(*chosen.shape[:2], -1)))
    return tower.result(losses)


def watt(visual: Visual, images: Tensor, prompts: Tensor, settings: Watt, *, sets: int | None = None) -> PseudoAdapted:
    """Adapt B images template by template and average the weights.

    `prompts` are `(T, C, D)` with unit rows; `sets` is that of `clipartt`.
    """
    tower = _Tower(visual, images, settings, sets)
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


def clipartt_segmenter(parts: Parts[Clipartt]) -> NormSegmenter:
    """CLIPArTT on the vocabulary's queries; a tile's crops are adapted together."""
    model, settings, names = parts.model, parts.settings, _names(parts)
    _, bank = build_prompt_stack(model, *parts.queries(), TENT_TEMPLATES)

    def encode(sentences: list[str]) -> Tensor:
        return encode_sentences(model.clip, model.tokenize, sentences)

    reference = encode([f"a photo of a {n}" for n in names])

    def adapt(images: Tensor, sets: int) -> PseudoAdapted:
        known = reference.to(images.device)
        return clipartt(model.clip.visual, images, known, names, encode, settings, sets=sets)

    return NormSegmenter(parts.frozen(bank), settings, adapt)


def watt_segmenter(parts: Parts[Watt]) -> NormSegmenter:
    """WATT on the vocabulary's queries; a tile's crops are adapted together."""
    model, settings, names = parts.model, parts.settings, _names(parts)
    templates = MLMP_TEMPLATES if settings.compat else (*MLMP_TEMPLATES, WATT_EXTRA_TEMPLATE)
    _, bank = build_prompt_stack(model, *parts.queries(), templates)
    stack, _ = build_prompt_stack(model, names, list(range(len(names))), templates)
    visual = model.clip.visual
    return NormSegmenter(
        parts.frozen(bank), settings, lambda images, sets: watt(visual, images, stack, settings, sets=sets)
    )


def _names(parts: Parts[Any]) -> list[str]:
    """Return the first word of each class."""
    return [clean(c.words[0]) for c in parts.vocabulary.classes]
