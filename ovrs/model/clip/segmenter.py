"""CLIP-type segmenters: encoder, text and adapter behind the engine's contract. Scores stay on the model's device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ovrs.engine.contract import TileScores
from ovrs.model.adapt import cass, mlmp, pseudo, tmpa, tmpa_compat, tpt
from ovrs.model.clip.features import accumulate_alike, together
from ovrs.model.clip.head import class_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ovrs.engine.arrays import Array
    from ovrs.engine.contract import Events, TileSample
    from ovrs.engine.tiling import TileGeometry
    from ovrs.model.clip.encoder import Encoder
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.inputs import CropInputs
    from ovrs.model.clip.text import TextBank
    from ovrs.model.clip.upsample import Upsampler
    from ovrs.scene.grid import Window


@dataclass(frozen=True)
class Settings:
    """Options with the model's defaults filled in."""

    cls_weight: float
    scale: float
    max_share: float
    """How a class's queries are joined: w · maximum + (1 - w) · mean."""
    ramp: int
    """Pixels over which a crop's weight rises from its border; 0 counts all crops alike."""


class ClipSegmenter:
    """Frozen dense CLIP: no adaptation. Evidence is cosines, summed over crops; softmax comes after the division."""

    def __init__(
        self,
        encoder: Encoder,
        upsampler: Upsampler,
        bank: TextBank,
        settings: Settings,
        geometry: TileGeometry,
        facts: dict[str, Any],
    ) -> None:
        self.encoder, self.upsampler, self.bank, self.settings = encoder, upsampler, bank, settings
        self.geometry, self.facts = geometry, facts
        self.text = self.base_text = bank.vectors
        self.class_count, self.channels = bank.class_count, len(bank.vectors)

    @property
    def tiles_at_once(self) -> int:
        return self.encoder.tiles_at_once

    def encode_tiles(self, tiles: Sequence[TileSample]) -> list[TileFeatures]:
        """What the frozen encoder says about several tiles."""
        return self.encoder.encode_tiles(tiles)

    def encode(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileFeatures:
        """What the frozen encoder says about a tile."""
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
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        inputs = len(tiles[0].patches)
        for same in zip(*(t.parts() for t in tiles), strict=True):
            size, rows, _ = same[0]
            part = together([each for _, _, each in same])
            own, base = (_of_part(t, len(tiles), inputs, rows) for t in (text, base_text))
            ramp = self.settings.ramp
            if ramp and size > 1:  # its sum is divided by its weights, so any will do; the middle sees most
                ramp = max(part.crop_shape) // 2
            maps = self.upsampler(part, own, base, self.settings.cls_weight)
            found = accumulate_alike(part, maps.unflatten(0, (len(tiles), -1)), ramp)
            sums[size] = (sums[size][0] + found[0], sums[size][1] + found[1]) if size in sums else found
        total, weights = sums.pop(1)
        if not sums:
            return total, weights
        for wide_total, wide_weights in sums.values():
            total = total + wide_total * (weights / wide_weights)
        return total / (1 + len(sums)), weights

    def look(self, tiles: Sequence[TileSample]) -> list[TileScores | tuple[Array, Array]]:
        """Evidence and weights of each tile."""
        features = self.encode_tiles(tiles)
        found = self.sum_tiles(features, self.text, self.base_text)
        return [(given_away(total), given_away(weights)) for total, weights in found]

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
            scores = class_scores(total / weights, self.bank, self.settings.scale, self.settings.max_share)
            out.append(TileScores(given_away(scores), events=own))
        return out

    @torch.no_grad()
    def classify(self, features: TileFeatures, text: Tensor, base_text: Tensor, events: tuple[str, ...]) -> TileScores:
        """Scores of one tile with its own text."""
        total, weights = self.sum_crops(features, text, base_text)
        scores = class_scores(total / weights, self.bank, self.settings.scale, self.settings.max_share)
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

    def describe(self) -> dict[str, Any]:
        return self.facts

    def with_text(
        self, text: Tensor, base_text: Tensor, offsets: Tensor | None, facts: dict[str, Any]
    ) -> ClipSegmenter:
        """The same segmenter with other vectors and offsets for its queries, still frozen: adapted to a scene."""
        bank = self.bank if offsets is None else replace(self.bank, offsets=offsets)
        other = ClipSegmenter(self.encoder, self.upsampler, bank, self.settings, self.geometry, {**self.facts, **facts})
        other.text, other.base_text = text, base_text
        return other


class Episodic:
    """Shared by the adapted segmenters: nothing survives a tile."""

    def __init__(self, frozen: ClipSegmenter, settings: Any) -> None:
        self.frozen, self.settings = frozen, settings
        self.geometry, self.class_count = frozen.geometry, frozen.class_count

    def place(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[Array, Array]:
        return self.frozen.place(rgb, valid)

    def describe(self) -> dict[str, Any]:
        return {**self.frozen.facts, **asdict(self.settings)}


class EpisodicTiles(Episodic):
    """Shared by those that adapt several tiles in one pass, each for itself."""

    @property
    def tiles_at_once(self) -> int:
        return self.frozen.tiles_at_once

    def look(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        """Scores of each tile."""
        raise NotImplementedError

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        return self.look([(rgb, valid, crops)])[0]


class TmpaSegmenter(EpisodicTiles):
    """TMPA (`tmpa`, `tmpa_shift`): the text is calibrated to each tile, then the tile is classified with it."""

    settings: tmpa.TmpaSettings

    def look(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        frozen = self.frozen
        features = frozen.encode_tiles(tiles)
        if frozen.class_count < 2:
            return frozen.classify_tiles(features, frozen.text, frozen.text, [("single_class",)] * len(tiles))
        found = tmpa.calibrate_tiles(features, frozen.bank, self.settings)
        events = [partial(_event, found.event, index) for index in range(len(tiles))]
        return frozen.classify_tiles(features, found.text, found.base_text, events)


def _event(codes: Tensor, index: int) -> tuple[str, ...]:
    return (tmpa.EVENTS[int(codes[index])],)


class TmpaCompatSegmenter(Episodic):
    """TMPA as released; the tile takes the place of the image."""

    settings: tmpa_compat.CompatSettings

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features = self.frozen.encode(rgb, valid, crops)
        result = tmpa_compat.adapt(features, self.frozen.bank, self.settings, self.frozen.upsampler)
        return TileScores(given_away(result.scores), events=("adapted",))


class NormSegmenter(EpisodicTiles):
    """TENT, MLMP, CLIPArTT, WATT: one set of LayerNorm parameters per tile, adapted to all its crops together."""

    def __init__(self, frozen: ClipSegmenter, settings: Any, adapt: Callable[[Tensor, int], NormAdapted]) -> None:
        super().__init__(frozen, settings)
        self.adapt = adapt

    def look(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        frozen = self.frozen
        inputs = [frozen.encoder.inputs(*tile) for tile in tiles]
        features: dict[int, TileFeatures] = {}
        for rows in alike(inputs):
            group = [inputs[i].images for i in rows]
            count = len(group[0])
            sets = self.tiles_at_once if len(tiles) > 1 else 1  # made up to full size: the same sums whatever the tiles
            images = torch.cat([*group, *group[-1:] * (sets - len(group))])
            adapted = self.adapt(images.to(frozen.encoder.model.dtype), sets)
            for index, patches in zip(rows, adapted.patches.split(count), strict=False):
                features[index] = inputs[index].features(patches, patches.new_zeros(count, 1), adapted.grid)
        text = frozen.bank.vectors
        return frozen.classify_tiles([features[i] for i in range(len(tiles))], text, text, [("adapted",)] * len(tiles))


NormAdapted = mlmp.Adapted | pseudo.PseudoAdapted


class TptSegmenter(EpisodicTiles):
    """TPT: the prompt's context is learned for each tile."""

    settings: tpt.TptSettings

    def __init__(self, frozen: ClipSegmenter, settings: tpt.TptSettings, learner: tpt.PromptLearner) -> None:
        super().__init__(frozen, settings)
        self.learner = learner

    def look(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        features = self.frozen.encode_tiles(tiles)
        patches = [f.patches[f.patch_valid] for f in features]
        rows = [i for i, own in enumerate(patches) if len(own)]
        text = self.frozen.bank.vectors.repeat(len(tiles), 1, 1)
        if rows:
            text[rows] = tpt.tune(self.learner, [patches[i] for i in rows], self.settings).text.to(text)
        events = [("adapted",) if len(own) else ("no_valid_patch",) for own in patches]
        return self.frozen.classify_tiles(features, text, text, events)


@dataclass(frozen=True, kw_only=True)
class CassSettings:
    """CASS's text step; the paper has values per data set (0.02 to 0.14, 0.01 to 0.05), none for remote sensing."""

    cluster_height: float = 0.06
    amount: float = 0.03


class CassSegmenter(Episodic):
    """CASS's text step: in each crop, some vectors move toward patches of that crop."""

    settings: CassSettings

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        features, bank = self.frozen.encode(rgb, valid, crops), self.frozen.bank
        clusters = cass.cluster_classes(bank.vectors, self.settings.cluster_height)
        texts = [
            cass.move_text(bank.vectors, patches[ok], cls, clusters, self.settings.amount) if ok.any() else bank.vectors
            for patches, cls, ok in zip(features.patches, features.cls, features.patch_valid, strict=True)
        ]
        return self.frozen.classify(features, torch.stack(texts), bank.vectors, ("adapted",))


def alike(tiles: Sequence[TileFeatures | CropInputs]) -> list[list[int]]:
    """Indices of tiles whose shape, crops and wider windows are the same, relative to the tile."""
    groups: dict[Any, list[int]] = {}
    for index, tile in enumerate(tiles):
        key = (tuple(tile.valid.shape), tile.crops, tuple((w.size, w.crops) for w in tile.wide))
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _of_part(text: Tensor, tiles: int, inputs: int, rows: slice) -> Tensor:
    """The texts of some of each tile's inputs."""
    return text if text.ndim == 2 else text.unflatten(0, (tiles, inputs))[:, rows].flatten(0, 1)


def given_away(values: Tensor) -> Array:
    """What the engine gets: NumPy's view on the host, else the tensor where it is."""
    return values.numpy() if values.device.type == "cpu" else values


def placed(values: NDArray[Any], device: torch.device) -> Array:
    """Pixels where the model is; the host's stay NumPy's."""
    return values if device.type == "cpu" else torch.from_numpy(np.ascontiguousarray(values)).to(device)
