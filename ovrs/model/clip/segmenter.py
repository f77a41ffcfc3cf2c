"""CLIP-type segmenters: encoder, text and adapter behind the engine's contract. Scores stay on the model's device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ovrs.engine.contract import TileScores
from ovrs.methods.clip import Clip
from ovrs.model.clip.features import together
from ovrs.model.clip.head import class_scores, class_scores_of_sums
from ovrs.model.clip.memory import in_memory
from ovrs.model.clip.sums import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ovrs.engine.arrays import Array
    from ovrs.engine.contract import Events, Look, TileSample
    from ovrs.engine.tiling import TileGeometry
    from ovrs.model.clip.encoder import Encoder
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.inputs import CropInputs
    from ovrs.model.clip.parts import Parts
    from ovrs.model.clip.text import TextBank
    from ovrs.model.clip.upsample import Upsampler
    from ovrs.scene.grid import Window


S = TypeVar("S", bound=Clip)
"""Settings of a method."""


class ClipSegmenter:
    """Frozen dense CLIP: no adaptation. Evidence is cosines, summed over crops; softmax comes after the division."""

    def __init__(
        self,
        encoder: Encoder,
        upsampler: Upsampler,
        bank: TextBank,
        settings: Clip,
        geometry: TileGeometry,
        facts: dict[str, object],
    ) -> None:
        self.encoder, self.upsampler, self.bank, self.settings = encoder, upsampler, bank, settings
        self.geometry, self.facts = geometry, facts
        self.ramp = geometry.crop - geometry.stride if settings.crop_blend == "taper" else 0
        self.text = self.base_text = bank.vectors
        self.class_count, self.channels = bank.class_count, len(bank.vectors)

    @property
    def tiles_at_once(self) -> int:
        return self.encoder.tiles_at_once

    def encode_tiles(self, tiles: Sequence[TileSample]) -> list[TileFeatures]:
        """Return what the frozen encoder says about several tiles."""
        return self.encoder.encode_tiles(tiles)

    def encode(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileFeatures:
        """Return what the frozen encoder says about a tile."""
        return self.encoder.encode(rgb, valid, crops)

    @torch.no_grad()
    def evidence(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> tuple[Array, Array]:
        features = self.encode(rgb, valid, crops)
        total, weights = self.sum_crops(features, self.text, self.base_text)
        return given_away(total), given_away(weights)

    def sum_crops(self, features: TileFeatures, text: Tensor, base_text: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of all crops' cosines with `text` on the tile, and the sum of weights.

        With wider windows: of the mean of the crops' cosines and those of every size of window. `text` is `(M, D)`, or
        `(B, M, D)` when every input has its own.
        """
        total, weights = self._sum_alike([features], text, base_text)
        return total[0], weights

    def _sum_alike(self, tiles: Sequence[TileFeatures], text: Tensor, base_text: Tensor) -> tuple[Tensor, Tensor]:
        """`sum_crops` of T tiles whose crops lie alike, `(T, M, H, W)` and `(H, W)`.

        Texts are `(M, D)` for all, or one for each of the tiles' inputs, `(T * B, M, D)`.
        """
        scales: dict[int, list[Layer]] = {}
        inputs = len(tiles[0].patches)
        for same in zip(*(t.parts() for t in tiles), strict=True):
            size, rows, _ = same[0]
            part = together([each for _, _, each in same])
            own, base = (_of_part(t, len(tiles), inputs, rows) for t in (text, base_text))
            ramp = self.ramp
            if ramp and size > 1:  # its sum is divided by its weights, so any will do; the middle sees most
                ramp = max(part.crop_shape) // 2
            scales.setdefault(size, []).append(Layer(part, own, base, ramp))
        return self.upsampler.sums(list(scales.values()), len(tiles), self.settings.cls_weight)

    def look(self, tiles: Sequence[TileSample]) -> list[Look]:
        """Evidence and weights of each tile."""
        return in_memory(self, tiles, self._look)

    def _look(self, tiles: Sequence[TileSample]) -> list[Look]:
        features = self.encode_tiles(tiles)
        found = self.sum_tiles(features, self.text, self.base_text)
        return [(given_away(total), given_away(weights), ()) for total, weights in found]

    @torch.no_grad()
    def sum_tiles(self, tiles: Sequence[TileFeatures], text: Tensor, base_text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`sum_crops` of each tile; those whose crops lie alike in one pass. Texts: `(M, D)`, or `(T, M, D)` one a tile."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for rows in alike(tiles):
            group = [tiles[i] for i in rows]
            own, base = (
                t
                if t.ndim == 2
                else t[rows].repeat_interleave(len(group[0].patches), 0)
                if len(rows) > 1
                else t[rows[0]]
                for t in (text, base_text)
            )
            total, weights = self._sum_alike(group, own, base)
            found.update({i: (total[k], weights) for k, i in enumerate(rows)})
        return [found[i] for i in range(len(tiles))]

    @torch.no_grad()
    def classify_tiles(
        self, tiles: Sequence[TileFeatures], text: Tensor, base_text: Tensor, events: Sequence[Events]
    ) -> list[TileScores]:
        """`classify` for several tiles, each with its own text `(T, M, D)`, or all with the same `(M, D)`."""
        out = []
        for (total, weights), own in zip(self.sum_tiles(tiles, text, base_text), events, strict=True):
            scores = class_scores_of_sums(total, weights, self.bank, self.settings.scale, self.settings.max_share)
            out.append(TileScores(given_away(scores), events=own))
        return out

    @torch.no_grad()
    def classify(self, features: TileFeatures, text: Tensor, base_text: Tensor, events: tuple[str, ...]) -> TileScores:
        """Scores of one tile with its own text."""
        total, weights = self.sum_crops(features, text, base_text)
        scores = class_scores_of_sums(total, weights, self.bank, self.settings.scale, self.settings.max_share)
        return TileScores(given_away(scores), events=events)

    @torch.no_grad()
    def finish(self, evidence: Array) -> TileScores:
        logits = torch.as_tensor(evidence, device=self.bank.vectors.device)
        return TileScores(given_away(class_scores(logits, self.bank, self.settings.scale, self.settings.max_share)))

    def place(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[Array, Array]:
        return placed(rgb, self.encoder.model.device), placed(valid, self.encoder.model.device)

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        total, hits = self.evidence(rgb, valid, crops)
        return self.finish(total / hits)

    def describe(self) -> dict[str, object]:
        return self.facts

    def with_text(self, text: Tensor, base_text: Tensor, offsets: Tensor | None) -> ClipSegmenter:
        """Return the same segmenter with other vectors and offsets for its queries, still frozen: adapted to a scene."""
        bank = self.bank if offsets is None else replace(self.bank, offsets=offsets)
        other = ClipSegmenter(self.encoder, self.upsampler, bank, self.settings, self.geometry, self.facts)
        other.text, other.base_text = text, base_text
        return other


def segmenter(parts: Parts[Clip]) -> ClipSegmenter:
    """Frozen dense CLIP on the vocabulary's queries (`none`)."""
    return parts.frozen(parts.bank())


class Episodic(Generic[S]):
    """Shared by the adapted segmenters: nothing survives a tile."""

    def __init__(self, frozen: ClipSegmenter, settings: S) -> None:
        self.frozen, self.settings = frozen, settings
        self.geometry, self.class_count = frozen.geometry, frozen.class_count

    def place(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[Array, Array]:
        return self.frozen.place(rgb, valid)

    def describe(self) -> dict[str, object]:
        return self.frozen.facts


class EpisodicTiles(Episodic[S]):
    """Shared by those that adapt several tiles in one pass, each for itself."""

    @property
    def tiles_at_once(self) -> int:
        return self.frozen.tiles_at_once

    def look(self, tiles: Sequence[TileSample]) -> list[Look]:
        """Scores of each tile."""
        return in_memory(self.frozen, tiles, self.scores)

    def scores(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        """Scores of each tile, for as many as the device's memory holds."""
        raise NotImplementedError

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        (found,) = self.scores([(rgb, valid, crops)])
        return replace(found, events=found.events() if callable(found.events) else found.events)


def alike(tiles: Sequence[TileFeatures | CropInputs]) -> list[list[int]]:
    """Return indices of tiles whose shape, crops and wider windows are the same, relative to the tile."""
    groups: dict[Any, list[int]] = {}
    for index, tile in enumerate(tiles):
        key = (tuple(tile.valid.shape), tile.crops, tuple((w.size, w.crops) for w in tile.wide))
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _of_part(text: Tensor, tiles: int, inputs: int, rows: slice) -> Tensor:
    """Return the texts of some of each tile's inputs."""
    return text if text.ndim == 2 else text.unflatten(0, (tiles, inputs))[:, rows].flatten(0, 1)


def given_away(values: Tensor) -> Array:
    """Return what the engine gets: NumPy's view on the host, else the tensor where it is."""
    return values.numpy() if values.device.type == "cpu" else values


def placed(values: NDArray[Any], device: torch.device) -> Array:
    """Pixels where the model is; the host's stay NumPy's."""
    return values if device.type == "cpu" else torch.from_numpy(np.ascontiguousarray(values)).to(device)
