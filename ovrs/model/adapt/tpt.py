"""TPT: context vectors of the prompt, learned for one image by entropy.

Source: Shu et al., "Test-Time Prompt Tuning" (arXiv 2209.07511, code azshue/TPT@63ecbac), in the segmentation form of
dosowiechi/MLMP@2a887de: no augmented views, the entropy of all patches, four context vectors that replace "a photo of a".
The published figures say that it hardly changes anything; it is here as a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from ovrs.errors import OptionError
from ovrs.model.clip.tower import is_clip

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CONTEXT = "a photo of a"


@dataclass(frozen=True, kw_only=True)
class TptSettings:
    """Defaults as published."""

    scale: float = 100.0
    steps: int = 10
    lr: float = 1e-3


class Tuned(NamedTuple):
    """Text after tuning."""

    text: Tensor
    """`(M, D)`, unit rows."""
    context: Tensor
    """`(n, width)`."""
    losses: tuple[float, ...]


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
        """The initial vectors `(4, width)`, those of the words "a photo of a"."""
        return self.embedded[0, 1 : 1 + self.words].clone()

    def __call__(self, context: Tensor) -> Tensor:
        """Unit vectors `(M, D)` of all sentences with this context."""
        clip, m = self.clip, len(self.embedded)
        x = torch.cat([self.embedded[:, :1], context.expand(m, -1, -1), self.embedded[:, 1 + self.words :]], dim=1)
        x = x + clip.positional_embedding[: self.length]
        x = clip.transformer(x, attn_mask=clip.attn_mask[: self.length, : self.length])
        x = clip.ln_final(x[torch.arange(m, device=x.device), self.end])
        return F.normalize(x @ clip.text_projection, dim=-1)


def tune(learner: PromptLearner, patches: Tensor, settings: TptSettings) -> Tuned:
    """Learn the context for the patches `(n, D)` (unit rows) of one image."""
    context = learner.context().requires_grad_(True)
    optimiser = torch.optim.Adam([context], lr=settings.lr, betas=(0.9, 0.999))
    patches = patches.to(context.device)
    losses = []
    with torch.enable_grad():
        for _ in range(settings.steps):
            log_p = F.log_softmax(settings.scale * patches @ learner(context).T, dim=-1)
            loss = -(log_p.exp() * log_p).sum(dim=-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    with torch.no_grad():
        return Tuned(learner(context), context.detach(), tuple(losses))
