"""One look at an empty image and one word, before a network is trusted with a map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ovrs.errors import WeightsError
from ovrs.model.clip.dense import dense_tokens, native_size
from ovrs.model.clip.foreign import FAULTS, one_line

if TYPE_CHECKING:
    from ovrs.model.clip.tokenizer import Tokenize


@torch.no_grad()
def require_sound(clip: Any, tokenize: Tokenize, dtype: str) -> None:
    """Refuse networks whose towers fail, give no finite numbers, or do not share one space.

    Args:
        clip: The network, its vision tower on its device and in its arithmetic.
        tokenize: Sentences to token numbers.
        dtype: Name of that arithmetic, for the message.

    Raises:
        WeightsError: Says which tower and what is wrong.
    """
    try:
        first = next(clip.visual.parameters())
        side = native_size(clip.visual)
        image = dense_tokens(
            clip.visual, torch.zeros(1, 3, side, side, device=first.device, dtype=first.dtype), "vanilla"
        ).cls
        tokens = tokenize(["a field"])
        text = clip.encode_text(tokens)
    except FAULTS as error:
        raise WeightsError(f"the network does not work on an empty image and one word: {one_line(error)}") from error
    if not bool(image.isfinite().all()):
        raise WeightsError(
            f"the vision tower gives values that are not finite in {dtype}"
            + ("; its weights are damaged" if dtype == "float32" else "; use --set model.dtype=float32 or bfloat16")
        )
    if not bool(text.isfinite().all()):
        raise WeightsError("the text tower gives values that are not finite; its weights are damaged")
    if text.shape != (1, image.shape[1]):
        raise WeightsError(
            f"the towers do not share a space: an image is {image.shape[1]} numbers, a sentence {tuple(text.shape)[1:]}"
        )
    end = _end_token(clip)
    if end is not None and not bool((tokens == end).any()):
        raise WeightsError(f"the tokenizer never gives token {end}, at which the text tower reads its answer (eos_id)")


def _end_token(clip: Any) -> int | None:
    """Return the token at whose place the text tower reads its answer, for towers that look for one by its number."""
    if hasattr(clip, "text_pool_type"):
        return int(clip.text_eos_id) if clip.text_pool_type == "eos" else None
    text = clip.text
    return int(text.eos_id) if getattr(text, "pool_type", "") == "eos" else None
