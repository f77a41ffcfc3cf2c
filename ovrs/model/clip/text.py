"""Text side: every query of a class, in every template, as one unit vector."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ovrs import files
from ovrs.cache import cache_directory
from ovrs.model.clip.singles import part
from ovrs.model.clip.tokenizer import clip_bpe
from ovrs.model.clip.tower import is_clip
from ovrs.provenance import NUMERICS, canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ovrs.model.clip.loading import LoadedModel
    from ovrs.words.vocabulary import Vocabulary

BATCH = 256
"""Sentences that the text tower is given at a time."""


@dataclass(frozen=True, eq=False)
class TextBank:
    """The queries of a vocabulary."""

    vectors: Tensor
    """float32 `(M, D)`, unit rows."""
    class_of: Tensor
    """int64 `(M,)`: class index of each query, ascending."""
    class_count: int
    offsets: Tensor | None = None
    """float32 `(M,)`, added to the scaled logits: minus the logarithm of the class's number of queries, because a class of
    many has more chances to hold the maximum; None adds nothing."""

    @cached_property
    def sizes(self) -> Tensor:
        """int64 `(C,)`: queries of each class."""
        return torch.bincount(self.class_of, minlength=self.class_count)

    @cached_property
    def counts(self) -> list[int]:
        """The same on the host, asked for once: a device would have to be waited for."""
        found: list[int] = self.sizes.tolist()
        return found

    def balanced(self) -> TextBank:
        """Return the same queries with the offsets that make up for unequal numbers."""
        count = self.sizes[self.class_of]
        return replace(self, offsets=-count.float().log())


_BETWEEN = re.compile(r"\s*[,/&;]\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+", re.IGNORECASE)


def listed(name: str) -> list[str]:
    """Return the things that a name lists, "trees, grass and crops" three; none if it lists nothing."""
    things = [thing for thing in (part.strip() for part in _BETWEEN.split(name)) if thing]
    return things if len(things) > 1 else []


def queries_of(
    vocabulary: Vocabulary,
    prompts: Literal["all", "names", "synonyms"] = "all",
    *,
    prefix: bool = True,
    split_names: bool = False,
) -> tuple[list[str], list[int]]:
    """Return the cleaned queries of a vocabulary and the class index of each, class by class.

    Args:
        vocabulary: The classes.
        prompts: Names only, names and synonyms, or these and the descriptions.
        prefix: Put the class's name before each description that does not hold it, as TMPA's prompt files have it: "a
            dark smooth surface" fits more than one class, "water a dark smooth surface" does not.
        split_names: Ask also for each thing that a name lists. A text tower need not know what a list has in common.
    """
    queries, class_of = [], []
    for index, entry in enumerate(vocabulary.classes):
        first, *others = entry.words
        own = [first, *(listed(first) if split_names else ())]
        if prompts != "names":
            own += others
        if prompts == "all":
            name = first.lower()
            own += [f"{first} {d}" if prefix and name not in d.lower() else d for d in entry.descriptions]
        queries += [clean(q) for q in own]
        class_of += [index] * len(own)
    return queries, class_of


def build_text_bank(model: LoadedModel, queries: list[str], class_of: list[int], *, bare: bool = False) -> TextBank:
    """Embed queries with the 80 ImageNet templates of CLIP (`docs/methods.md#text`), cached on disk by content.

    `bare` leaves the templates out.
    """
    vectors = _cached(model, queries, [str] if bare else imagenet_templates())
    classes = torch.tensor(class_of, device=model.device)
    return TextBank(torch.from_numpy(vectors).to(model.device), classes, max(class_of) + 1)


def build_prompt_stack(
    model: LoadedModel, queries: list[str], class_of: list[int], templates: Sequence[str]
) -> tuple[Tensor, TextBank]:
    """Each query in each of a method's own templates, and the bank of their renormalised means.

    Returns:
        float32 `(T, M, D)`, unit rows, and the bank that classifies.
    """
    classes = torch.tensor(class_of, device=model.device)
    stack = torch.stack([torch.from_numpy(_cached(model, queries, [t.format])) for t in templates]).to(model.device)
    return stack, TextBank(F.normalize(stack.mean(dim=0), dim=-1), classes, max(class_of) + 1)


def imagenet_templates() -> list[Callable[[str], str]]:
    """Return the 80 prompt templates that came with CLIP, as shipped by open_clip."""
    return list(part("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES)


def longest_template() -> str:
    """Return the template of the ensemble that leaves least room for a query."""
    return max((template("{}") for template in imagenet_templates()), key=token_count)


def token_count(sentence: str) -> int:
    """Tokens of a sentence in CLIP's byte-pair code, start and end included, before any cutting."""
    return len(clip_bpe().encode(sentence)) + 2


def clean(query: str) -> str:
    """Lower case, no final full stop, hyphens and slashes as blanks: what TMPA's released code does to its prompts."""
    return " ".join(query.lower().replace("-", " ").replace("/", " ").strip().rstrip(".").split())


def embed(
    clip: torch.nn.Module,
    tokenize: Callable[[list[str]], Tensor],
    queries: Sequence[str],
    templates: Sequence[Callable[[str], str]],
) -> Tensor:
    """Template ensemble: normalise each sentence vector, average per query, normalise again.

    Returns:
        float32 `(len(queries), D)`, unit rows. Sentences over the context length are cut; the end token is kept.
    """
    sentences = [template(query) for query in queries for template in templates]
    vectors = encode_sentences(clip, tokenize, sentences)
    return F.normalize(vectors.view(len(queries), len(templates), -1).mean(dim=1), dim=-1)


@torch.no_grad()  # not inference mode: methods build graphs on these vectors
def encode_sentences(
    clip: torch.nn.Module, tokenize: Callable[[list[str]], Tensor], sentences: Sequence[str]
) -> Tensor:
    """Return unit vectors, float32 `(n, D)` on the CPU, in the order given; constants that a graph may be built on."""
    tokens = tokenize(list(sentences))
    unique, inverse = torch.unique(tokens, dim=0, return_inverse=True)
    lengths = unique.argmax(dim=1)
    order = lengths.argsort(
        stable=True
    )  # sentences of like length together: the tail behind the end token is not computed
    out: Tensor | None = None
    for rows in order.split(BATCH):
        z = F.normalize(_encode(clip, unique[rows]).float(), dim=-1)
        if out is None:
            out = torch.empty(len(unique), z.shape[1])
        out[rows] = z
    assert out is not None  # there is at least one sentence
    return out[inverse].clone()


def _encode(clip: Any, tokens: Tensor) -> Tensor:
    if not is_clip(clip) or not _ends_at_argmax(clip):
        return clip.encode_text(tokens)
    # CLIP's text attention is causal, so positions behind the end token cannot change the result
    length = int(tokens.argmax(dim=1).max()) + 1
    tokens = tokens[:, :length]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = clip.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=1)]
    return x @ clip.text_projection


def _ends_at_argmax(clip: Any) -> bool:
    """Whether a text tower is CLIP's: causal, read at the highest token, and projected by a matrix."""
    causal, projection = clip.attn_mask is not None, clip.text_projection
    return clip.text_pool_type == "argmax" and causal and isinstance(projection, torch.nn.Parameter)


def _cached(model: LoadedModel, queries: list[str], templates: Sequence[Callable[[str], str]]) -> np.ndarray:
    network = canonical([NUMERICS, model.weights_hash, model.facts])  # equal weights differ with another activation
    key = hashlib.sha256("\n".join([network, *(t("*") for t in templates), "", *queries]).encode()).hexdigest()
    file = cache_directory() / "text" / f"{key}.npy"
    if file.is_file():
        return np.load(file, allow_pickle=False)
    vectors = embed(model.clip, model.tokenize, queries, templates).numpy()
    files.keep(file, lambda temporary: np.save(temporary, vectors))
    return vectors
