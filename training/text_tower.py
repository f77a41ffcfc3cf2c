"""The small text tower, and phrases through it quickly."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import get_tokenizer
from torch import Tensor, nn

from training.model import build


def tokens_of(phrases: list[str]) -> Tensor:
    tokenizer = get_tokenizer("ViT-B-32")
    return torch.cat([tokenizer(phrases[i : i + 4096]) for i in range(0, len(phrases), 4096)]).to(torch.int32)


def encode_short(model: nn.Module, tokens: Tensor) -> Tensor:
    """`encode_text` on the used positions only: attention is causal, so padding behind the end token cannot matter."""
    length = int(tokens.argmax(1).max()) + 1
    tokens = tokens[:, :length].long()
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)]
    return F.normalize(x @ model.text_projection, dim=-1)


@torch.no_grad()
def encode_all(model: nn.Module, everything: list[str]) -> Tensor:
    """Vectors `(n, D)` of any number of phrases, those of like length together."""
    tokens = tokens_of(everything)
    out = torch.empty(len(tokens), model.text_projection.shape[1])
    for rows in tokens.argmax(1).argsort().split(1024):
        out[rows] = encode_short(model, tokens[rows].to(model.text_projection.device)).cpu()
    return out


def text_tower(weights: Path | None = None) -> nn.Module:
    """The bundled model without its vision tower, random or as `weights` has it."""
    model = build()
    del model.visual
    if weights:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model
