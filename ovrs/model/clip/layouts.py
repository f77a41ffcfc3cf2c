"""Layouts of published CLIP weights: brought to open_clip's names. Long-CLIP's two tables of positions become one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ovrs.errors import WeightsError
from ovrs.model.clip.foreign import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_ANCHOR = "visual.conv1.weight"
_NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "mask1", "mask2"}
"""Sizes that OpenAI's files repeat, and buffers that a network makes itself."""
KEPT_POSITIONS = 20
"""Long-CLIP (2403.15378) takes so many positions from the first table, the others from the second."""
_SECOND = "positional_embedding_res"


def bare(state: Mapping[str, Tensor], file: Path, network: str | None = None) -> dict[str, Tensor]:
    """Return the state dictionary without the prefix that all its names share (`module.`, `model.clip.` …), nor that of `text.`.

    Args:
        state: A file's tensors.
        file: For messages.
        network: The prefix to take, without its last dot, where the file has several networks.

    Raises:
        WeightsError: Several networks under one roof, or tensors outside the network.
    """
    prefixes = [name.removesuffix(_ANCHOR) for name in state if name.endswith(_ANCHOR)]
    if len(prefixes) > 1 and f"{network}." in prefixes:
        prefixes = [f"{network}."]
        state = {name: tensor for name, tensor in state.items() if name.startswith(prefixes[0])}
    if len(prefixes) != 1:
        names = [prefix.removesuffix(".") or "(none)" for prefix in prefixes]
        raise WeightsError(
            f"{file} holds {len(prefixes)} networks; choose one: --network {' or --network '.join(names)}"
            if prefixes
            else f"{file} holds no tensor {_ANCHOR}"
        )
    start = prefixes[0]
    if outside := sorted(name for name in state if not name.startswith(start)):
        raise WeightsError(
            f"{file}: {len(outside)} tensors lie outside the network {shown(start)}, such as {outside[0][:80]}; "
            "ovrs knows no network with these"
        )
    plain = {name.removeprefix(start): tensor for name, tensor in state.items()}
    if "text.transformer.embeddings.word_embeddings.weight" in plain:
        raise WeightsError(
            f"{file}: the text tower is one of Hugging Face, whose description the file lacks; give open_clip's name and tag, "
            "or hf-hub:ORG/NAME"
        )
    if "text.token_embedding.weight" in plain:
        plain = {name.removeprefix("text."): tensor for name, tensor in plain.items()}
    return plain


def open_clip_names(plain: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """float32 tensors as open_clip's CLIP names them, from `bare` ones; one table of positions, no sizes, no masks.

    Raises:
        WeightsError: The two tables of positions or their masks do not fit each other.
    """
    table = positions(plain, file)
    kept = {n: t for n, t in plain.items() if n not in _NO_WEIGHTS and n != _SECOND}
    if table is not None:
        kept["positional_embedding"] = table
    return {n: (t.float() if t.is_floating_point() else t).contiguous() for n, t in kept.items()}


def positions(plain: Mapping[str, Tensor], file: Path) -> Tensor | None:
    """Return the positions of the text tower as one float32 table `(length, width)`; None where there are none.

    Long-CLIP adds `table 1 * mask1 + table 2 * mask2`. The masks are ones and zeros: 20 positions of the first table, then
    the second. Files that have the masks are folded by them.

    Raises:
        WeightsError: Shapes differ, or a position belongs to both tables or to neither.
    """
    first, second = plain.get("positional_embedding"), plain.get(_SECOND)
    if first is None or second is None:
        return None if first is None else first.float()
    if first.shape != second.shape or first.ndim != 2:
        raise WeightsError(
            f"{file}: the two tables of positions have shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    early = (torch.arange(len(first)) < KEPT_POSITIONS).float()[:, None]
    masks = [plain.get("mask1", early).float(), plain.get("mask2", 1 - early).float()]
    whole = all(m.shape == early.shape and bool(((m == 0) | (m == 1)).all()) for m in masks)
    if not whole or not bool((masks[0] + masks[1] == 1).all()):
        raise WeightsError(f"{file}: mask1 and mask2 do not share the {len(first)} positions among the two tables")
    return first.float() * masks[0] + second.float() * masks[1]


def is_long(plain: Mapping[str, Tensor]) -> bool:
    """Whether the text tower has Long-CLIP's two tables."""
    return _SECOND in plain
