"""Examples for a segmenter: what they look like to the network, and the segmenter after them.

CLIP-type methods gain a shift and an offset per class (`ovrs.model.adapt.taught`), fitted on frozen features and the text
that the scene's calibration left. Methods that adapt to each tile begin with the taught text.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ovrs.model.adapt.taught import Examples, TeachSettings, teach
from ovrs.model.clip.segmenter import ClipSegmenter, Episodic
from ovrs.model.clip.sums import accumulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.engine.contract import Segmenter, TileSample
    from ovrs.model.clip.features import TileFeatures

_PATCHES = 20_000
"""Patches of the scene's sample that are kept for the metric."""


class Shown(NamedTuple):
    """One tile with examples in it."""

    sample: TileSample
    rows: NDArray[np.int64]
    """Relative to the tile."""
    cols: NDArray[np.int64]
    labels: NDArray[np.int64]
    regions: NDArray[np.int64]
    """Places of one region are judged together by what the others teach."""


def taught_state(
    segmenter: ClipSegmenter, shown: Iterable[Shown], samples: Iterable[TileSample]
) -> dict[str, NDArray[Any]]:
    """Fit to examples; plain arrays for `with_examples`.

    Args:
        segmenter: Frozen, with the text that the scene's calibration left.
        shown: Tiles with examples.
        samples: Tiles of the scene's sample.
    """
    features, labels, regions = [], [], []
    for tile in shown:
        found = segmenter.encoder.encode(*tile.sample)
        features.append(_at(segmenter, found, tile.rows, tile.cols))
        labels.append(torch.from_numpy(tile.labels))
        regions.append(torch.from_numpy(tile.regions))
    if not features:
        return {"taught_event": np.asarray(["no_valid_place"]), "taught_places": np.asarray(0)}
    patches = []
    for sample in samples:
        found = segmenter.encoder.remembered(*sample)
        patches.append(found.patches[found.patch_valid])
    pool = torch.cat(patches or features)
    pool = pool[:: max(1, len(pool) // _PATCHES)].cpu()
    examples = Examples(torch.cat(features).cpu(), torch.cat(labels), torch.cat(regions))
    bank = segmenter.bank
    own = replace(
        bank,
        vectors=bank.vectors.cpu(),
        class_of=bank.class_of.cpu(),
        offsets=None if bank.offsets is None else bank.offsets.cpu(),
    )
    text = segmenter.text.cpu()
    result = teach(text, own, pool, examples, TeachSettings(), segmenter.settings.scale)
    before = torch.zeros_like(result.offsets) if own.offsets is None else own.offsets
    return {
        "taught_shift": (result.text - text).numpy(),
        "taught_offsets": (result.offsets - before).numpy(),
        "taught_strength": np.asarray(result.strength),
        "taught_judged": result.judged.numpy(),
        "taught_places": np.asarray(len(examples.labels)),
        "taught_event": np.asarray([result.event]),
    }


@torch.no_grad()
def _at(segmenter: ClipSegmenter, found: TileFeatures, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Tensor:
    """Mean patch features `(places, D)` that give pixels of a tile their scores, patches joined bilinearly.

    As `ClipSegmenter.sum_crops`, with each patch's features in place of its cosines with the text.
    """
    sums: dict[int, tuple[Tensor, Tensor]] = {}
    for size, _, part in found.parts():
        ramp = max(part.crop_shape) // 2 if segmenter.ramp and size > 1 else segmenter.ramp
        total = part.patches.new_zeros(len(rows), part.patches.shape[-1])
        weights = part.patches.new_zeros(len(rows))
        for index, crop in enumerate(part.crops):
            y, x = rows - crop.row_off, cols - crop.col_off
            inside = np.flatnonzero((y >= 0) & (y < crop.height) & (x >= 0) & (x < crop.width))
            if not len(inside):
                continue
            one = replace(part, crops=(crop,), wide=())
            weight = accumulate(one, part.patches.new_zeros(1, 1, *crop.shape), ramp)[1]
            strength = weight[torch.from_numpy(rows[inside]), torch.from_numpy(cols[inside])]
            down = (part.pad[0] + (y[inside] + 0.5) * part.inner[0] / crop.height) * part.grid[0] / part.input_shape[0]
            across = (part.pad[1] + (x[inside] + 0.5) * part.inner[1] / crop.width) * part.grid[1] / part.input_shape[1]
            values = _bilinear(part.patches[index].unflatten(0, part.grid), down - 0.5, across - 0.5)
            total[inside] += values * strength[:, None]
            weights[inside] += strength
        had = sums.get(size)
        sums[size] = (total, weights) if had is None else (had[0] + total, had[1] + weights)
    means = [total / weights.clamp(min=1e-12)[:, None] for total, weights in sums.values()]
    return torch.stack(means).mean(dim=0)


def _bilinear(grid: Tensor, down: NDArray[np.float64], across: NDArray[np.float64]) -> Tensor:
    """Values `(places, D)` of `(h, w, D)` between its cells, clamped at the border."""
    height, width, _ = grid.shape
    y, x = (torch.from_numpy(np.clip(v, 0, n - 1)).to(grid) for v, n in ((down, height), (across, width)))
    top, left = y.long().clamp(max=max(height - 2, 0)), x.long().clamp(max=max(width - 2, 0))
    v, u = (y - top)[:, None], (x - left)[:, None]
    below, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    upper = grid[top, left] * (1 - u) + grid[top, right] * u
    return upper * (1 - v) + (grid[below, left] * (1 - u) + grid[below, right] * u) * v


def frozen_of(segmenter: Segmenter) -> ClipSegmenter | None:
    """Return the frozen CLIP within a segmenter, or None for another kind of network."""
    if isinstance(segmenter, ClipSegmenter):
        return segmenter
    return segmenter.frozen if isinstance(segmenter, Episodic) else None


def with_examples(segmenter: Segmenter, state: Mapping[str, NDArray[Any]]) -> Segmenter:
    """Return the segmenter after its examples; `segmenter` already has what it learned from the scene."""
    if "taught_shift" not in state:
        return segmenter
    frozen = frozen_of(segmenter)
    assert frozen is not None  # `ovrs.run.begin` has looked
    device = frozen.bank.vectors.device
    shift, more = (torch.from_numpy(state[f"taught_{name}"]).to(device) for name in ("shift", "offsets"))
    offsets = more if frozen.bank.offsets is None else frozen.bank.offsets + more
    made = frozen.with_text(frozen.text + shift, frozen.base_text, offsets)
    if isinstance(segmenter, ClipSegmenter):
        return made
    made.bank = replace(made.bank, vectors=made.bank.vectors + shift)
    other: Any = copy.copy(segmenter)
    other.frozen = made
    taught: Segmenter = other
    return taught
