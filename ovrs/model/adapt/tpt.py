"""TPT: context vectors of the prompt, learned for one image by entropy.

Source: Shu et al., "Test-Time Prompt Tuning" (arXiv 2209.07511, code azshue/TPT@63ecbac), in the segmentation form of
dosowiechi/MLMP@2a887de: no augmented views, the entropy of all patches, four context vectors that replace "a photo of a".
The published figures say that it hardly changes anything; it is here as a baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ovrs.errors import OptionError
from ovrs.methods.tpt import Tpt
from ovrs.model.adapt.mlmp import TENT_TEMPLATES
from ovrs.model.clip.segmenter import ClipSegmenter, EpisodicTiles
from ovrs.model.clip.text import build_prompt_stack
from ovrs.model.clip.tower import is_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ovrs.engine.contract import TileSample, TileScores
    from ovrs.model.clip.parts import Parts

CONTEXT = "a photo of a"


class Tuned(NamedTuple):
    """Text after tuning, of T tiles."""

    text: Tensor
    """`(T, M, D)`, unit rows."""
    context: Tensor
    """`(T, n, width)`."""
    losses: Tensor
    """`(steps, T)`."""


class PromptLearner:
    """Sentences "a photo of a {query}" whose first words are free vectors."""

    def __init__(self, clip: Any, tokenize: Callable[[list[str]], Tensor], queries: list[str]) -> None:
        """Prepare the tokens.

        Raises:
            OptionError: The model's text tower is not CLIP's own.
        """
        if not is_clip(clip):
            raise OptionError("method tpt tunes CLIP's own text tower, which this model does not have; choose another")
        self.clip = clip
        self.words = len(CONTEXT.split())
        device = clip.positional_embedding.device
        tokens = tokenize([f"{CONTEXT} {query}" for query in queries]).to(device)
        self.end = tokens.argmax(dim=1)
        self.length = int(self.end.max()) + 1  # attention is causal: what lies behind the end token cannot matter
        with torch.no_grad():
            self.embedded = clip.token_embedding(tokens[:, : self.length])

    def context(self) -> Tensor:
        """Return the initial vectors `(4, width)`, those of the words "a photo of a"."""
        return self.embedded[0, 1 : 1 + self.words].clone()

    def __call__(self, context: Tensor) -> Tensor:
        """Return unit vectors `(T, M, D)` of all sentences with each of the contexts `(T, n, width)`."""
        clip, tiles, count = self.clip, len(context), len(self.embedded)
        first, rest = self.embedded[:, :1], self.embedded[:, 1 + self.words :]
        own = context[:, None].expand(-1, count, -1, -1)
        x = torch.cat([first.expand(tiles, -1, -1, -1), own, rest.expand(tiles, -1, -1, -1)], dim=2).flatten(0, 1)
        x = x + clip.positional_embedding[: self.length]
        x = clip.transformer(x, attn_mask=clip.attn_mask[: self.length, : self.length])
        x = clip.ln_final(x[torch.arange(len(x), device=x.device), self.end.repeat(tiles)])
        return F.normalize(x @ clip.text_projection, dim=-1).unflatten(0, (tiles, count))


def tune(learner: PromptLearner, patches: list[Tensor], settings: Tpt) -> Tuned:
    """Learn a context for each tile, all in one pass; `patches`: `(n, D)`, unit rows, of each tile."""
    first = learner.context()
    context = first.repeat(len(patches), 1, 1).requires_grad_(True)
    optimiser = torch.optim.Adam([context], lr=settings.lr, betas=(0.9, 0.999))
    padded = pad_sequence(patches, batch_first=True).to(context.device)
    count = torch.tensor([len(p) for p in patches], device=context.device)
    real = torch.arange(padded.shape[1], device=context.device) < count[:, None]
    losses = []
    with torch.enable_grad():
        for _ in range(settings.steps):
            log_p = F.log_softmax(settings.scale * padded @ learner(context).transpose(1, 2), dim=-1)
            each = -((log_p.exp() * log_p).sum(dim=-1) * real).sum(dim=1) / count
            optimiser.zero_grad()
            each.sum().backward()  # a sum, not a mean: every tile gets the gradient it would get alone
            optimiser.step()
            losses.append(each.detach())
    with torch.no_grad():
        told = torch.stack(losses) if losses else padded.new_zeros(0, len(patches))
        return Tuned(learner(context), context.detach(), told)


class TptSegmenter(EpisodicTiles[Tpt]):
    """TPT: the prompt's context is learned for each tile."""

    def __init__(self, frozen: ClipSegmenter, settings: Tpt, learner: PromptLearner) -> None:
        super().__init__(frozen, settings)
        self.learner = learner

    def scores(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        features = self.frozen.encode_tiles(tiles)
        patches = [f.patches[f.patch_valid] for f in features]
        rows = [i for i, own in enumerate(patches) if len(own)]
        text = self.frozen.bank.vectors.repeat(len(tiles), 1, 1)
        if rows:
            text[rows] = tune(self.learner, [patches[i] for i in rows], self.settings).text.to(text)
        events = [("adapted",) if len(own) else ("no_valid_patch",) for own in patches]
        return self.frozen.classify_tiles(features, text, text, events)


def segmenter(parts: Parts[Tpt]) -> TptSegmenter:
    """TPT on the vocabulary's queries, in the one template whose context is learned."""
    model = parts.model
    queries, class_of = parts.queries()
    _, bank = build_prompt_stack(model, queries, class_of, TENT_TEMPLATES)
    frozen = parts.frozen(bank)
    return TptSegmenter(frozen, parts.settings, PromptLearner(model.clip, model.tokenize, queries))
