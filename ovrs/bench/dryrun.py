"""Dry runs: a benchmark with stand-ins of random weights, which proves data, words, protocol and command, and no accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs.cache import cache_directory

if TYPE_CHECKING:
    from ovrs.bench.protocols import Protocol
    from ovrs.bench.rows import Row
    from ovrs.options import ModelOptions

IMAGES = 2
"""Of each set, unless a number is given: as many as a paper adapts together."""


def shown_size(size: tuple[int, int], protocol: Protocol) -> tuple[int, int]:
    """Return the height and width that a dry run shows: of the protocol's size as much as two overlapping windows a side."""
    if protocol.whole or protocol.crop is None:
        return size
    most = protocol.crop + (protocol.stride or protocol.crop)
    return min(size[0], most), min(size[1], most)


def stand_in(model: ModelOptions) -> ModelOptions:
    """Return the model with a stand-in for its network: a tiny SAM 3, or a narrow ViT of equal blocks and patches.

    Raises:
        OptionError: There is no stand-in for such a network.
    """
    if model.family == "trivial":
        return model
    if model.family == "sam3":
        return model.model_copy(update={"model": "sam3-tiny", "dtype": "float32"})
    from ovrs.model.clip import standin

    name = f"{model.model.replace('/', '-')}-{model.pretrained or 'none'}"
    folder = cache_directory() / "dry-run" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        standin.write_network(model.model, model.pretrained, folder)
    return model.model_copy(update={"model": str(folder), "pretrained": None, "dtype": "float32"})


def with_stand_in(row: Row) -> Row:
    """Return a row with random weights in the place of its upsampler's file."""
    kind = row.method.get("upsampler")
    if row.method.get("upsampler_weights") is None or kind is None:
        return row
    from ovrs.model.clip import standin

    file = cache_directory() / "dry-run" / f"{kind}.ckpt"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        standin.write_upsampler(str(kind), file)
    return replace(row, method={**row.method, "upsampler_weights": str(Path(file))})
