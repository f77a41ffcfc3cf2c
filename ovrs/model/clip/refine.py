"""After the scores of a tile: small classes dropped, scores refined along the image's edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ovrs.engine.arrays import as_numpy
from ovrs.engine.contract import SceneAdaptive, Segmenter, TileScores

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.engine.arrays import Array
    from ovrs.engine.contract import Learned, TileSample
    from ovrs.engine.tiling import TileGeometry
    from ovrs.methods.clip import Head
    from ovrs.scene.grid import Window

DILATIONS = (8, 16)
_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


class Refined:
    """Any segmenter with post-processing. Neighbours and areas are a tile's, so the result is not a frozen one's."""

    def __init__(self, inner: Segmenter, settings: Head, background: int | None = None) -> None:
        self.inner, self.settings, self.background = inner, settings, background

    @property
    def geometry(self) -> TileGeometry:
        return self.inner.geometry

    @property
    def class_count(self) -> int:
        return self.inner.class_count

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        found = self.inner.segment(rgb, valid, crops)
        scores = torch.from_numpy(as_numpy(found.scores))
        if self.settings.pamr:
            # what lies under no data says nothing about its neighbours: it takes the tile's mean colour
            fill = np.round(rgb[:, valid].mean(axis=1)).astype(np.uint8)[:, None, None]
            image = torch.from_numpy(np.where(valid, rgb, fill)).float()[None] / 255
            scores = pamr(scores[None], image, self.settings.pamr)[0]
        if self.settings.area_threshold:
            scores = drop_small(scores, valid, self.settings.area_threshold, self.background)
        return TileScores(scores.numpy(), found.background_evidence, found.events)

    def describe(self) -> dict[str, object]:
        own = self.settings
        facts = {"pamr": own.pamr, "pamr_dilations": list(DILATIONS), "area_threshold": own.area_threshold}
        return {**self.inner.describe(), **facts}


def drop_small(scores: Tensor, valid: NDArray[np.bool_], threshold: float, background: int | None) -> Tensor:
    """SCLIP's area rule: zero each class whose share of the foreground's area is at most `threshold`.

    Args:
        scores: `(C, H, W)`.
        valid: `(H, W)`.
        threshold: Share of the area of all classes but the background.
        background: Its index, if there is one; it is never dropped.
    """
    area = scores.argmax(dim=0)[torch.from_numpy(valid)].bincount(minlength=len(scores))
    foreground = torch.ones(len(scores), dtype=torch.bool)
    if background is not None:
        foreground[background] = False
    small = foreground & (area <= threshold * area[foreground].sum())
    if bool((small | ~foreground).all()) and background is None:
        return scores  # nothing would be left to choose from
    return torch.where(small[:, None, None], 0.0, scores)


class SceneRefined(Refined):
    """`Refined` around a segmenter that adapts to a scene."""

    inner: SceneAdaptive

    def adapt_scene(self, samples: Iterable[TileSample]) -> Learned:
        """Return what the inner segmenter learns."""
        return self.inner.adapt_scene(samples)

    def with_state(self, state: Learned) -> Refined:
        """Return the refined segmenter that applies it."""
        return Refined(self.inner.with_state(state), self.settings, self.background)


def refined(segmenter: Segmenter, settings: Head, background: int | None) -> Segmenter:
    """Return the segmenter with post-processing, if any is asked for; class `background` is never dropped."""
    if not (settings.pamr or settings.area_threshold):
        return segmenter
    return (SceneRefined if isinstance(segmenter, SceneAdaptive) else Refined)(segmenter, settings, background)


def pamr(maps: Tensor, image: Tensor, steps: int = 10, dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """Pixel-adaptive mean refinement (Araslanov and Roth, CVPR 2020), as NACLIP and CASS use it.

    Each step replaces a pixel's scores by a weighted mean of its 8 neighbours at each distance; weights fall with the
    difference of colour, measured in local standard deviations.

    Args:
        maps: `(B, C, H, W)`.
        image: `(B, 3, H, W)`, at the same size.
        steps: Repetitions.
        dilations: Distances of the neighbours in pixels.
    """
    ring = [(dy * d, dx * d) for d in dilations for dy, dx in _NEIGHBOURS if (dy, dx) != (0, 0)]
    with_centre = [(dy * d, dx * d) for d in dilations for dy, dx in _NEIGHBOURS]
    spread = torch.stack(list(_shifted(image, with_centre))).std(dim=0)
    difference = [((image - other).abs() / (1e-8 + 0.1 * spread)).mean(dim=1) for other in _shifted(image, ring)]
    weights = (-torch.stack(difference)).softmax(dim=0)  # (neighbours, B, H, W)
    for _ in range(steps):
        total = torch.zeros_like(maps)
        for weight, other in zip(weights, _shifted(maps, ring), strict=True):
            total += weight[:, None] * other
        maps = total
    return maps


def _shifted(x: Tensor, offsets: list[tuple[int, int]]) -> list[Tensor]:
    """Return views of `x` moved by each offset, border pixels repeated."""
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    height, width = x.shape[-2:]
    return [padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width] for dy, dx in offsets]
