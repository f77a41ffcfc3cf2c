"""TMPA for each tile, or once for a scene: what a sample of its tiles shows is applied to all of them, without seams."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ovrs.methods.tmpa import Descent, Tmpa
from ovrs.model.adapt import tmpa
from ovrs.model.adapt.scene_text import calibrate_scene
from ovrs.model.clip.segmenter import Episodic, EpisodicTiles, S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from ovrs.engine.arrays import Array
    from ovrs.engine.contract import TileSample, TileScores
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.parts import Parts
    from ovrs.model.clip.segmenter import ClipSegmenter
    from ovrs.scene.grid import Window


class TmpaSegmenter(EpisodicTiles[Descent]):
    """TMPA (`tmpa`, `tmpa_shift`): the text is calibrated to each tile, then the tile is classified with it."""

    def scores(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        frozen = self.frozen
        features = frozen.encode_tiles(tiles)
        if frozen.class_count < 2:
            return frozen.classify_tiles(features, frozen.text, frozen.text, [("single_class",)] * len(tiles))
        found = tmpa.calibrate_tiles(features, frozen.bank, self.settings)
        events = [partial(_event, found.event, index) for index in range(len(tiles))]
        return frozen.classify_tiles(features, found.text, found.base_text, events)


def _event(codes: Tensor, index: int) -> tuple[str, ...]:
    return (tmpa.EVENTS[int(codes[index])],)


class _Pool(NamedTuple):
    """Patches of many tiles."""

    patches: Tensor
    cls: Tensor
    patch_valid: Tensor


class _SceneSegmenter(Episodic[S]):
    """Shared by both ways to calibrate: a sample is encoded, its text calibrated, and kept as plain arrays."""

    def adapt_scene(self, samples: Iterable[TileSample]) -> dict[str, NDArray[Any]]:
        """Calibrate to the patches of all sampled tiles together."""
        tiles = [self.frozen.encoder.remembered(*sample) for sample in samples]
        found = self._calibrated(tiles)
        return {"tiles": _array(len(tiles)), **{name: _array(value) for name, value in found.items()}}

    def _calibrated(self, tiles: list[TileFeatures]) -> dict[str, object]:
        raise NotImplementedError

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> ClipSegmenter:
        """Return the frozen segmenter that asks with the scene's text."""
        device = self.frozen.bank.vectors.device
        text, base = (torch.from_numpy(state[name]).to(device) for name in ("text", "base_text"))
        offsets = torch.from_numpy(state["offsets"]).to(device) if "offsets" in state else None
        return self.frozen.with_text(text, base, offsets)

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        """Segment a tile that is given alone: it is taken for a whole scene."""
        return self.with_state(self.adapt_scene([(rgb, valid, crops)])).segment(rgb, valid, crops)


class SceneTmpaSegmenter(_SceneSegmenter[Tmpa]):
    """The entropy rule: nothing is learned by descent (`ovrs.model.adapt.scene_text`)."""

    def _calibrated(self, tiles: list[TileFeatures]) -> dict[str, object]:
        bank = self.frozen.bank
        patches = [t.patches[t.patch_valid] for t in tiles] or [bank.vectors[:0]]
        ground = sum(float(t.valid.sum()) for t in tiles) / self.geometry.crop**2
        per_crop = tiles[0].patches.shape[1] if tiles else 1
        found = calibrate_scene(torch.cat(patches), bank, self.settings, crops=ground, per_crop=per_crop)
        return {
            "text": found.text,
            "base_text": bank.vectors,
            "offsets": found.offsets,
            "bias": found.bias,
            "weight": found.weight,
            "entropy": found.entropy,
            "support": found.support,
            "crops": ground,
            "events": [found.event],
        }


class SceneLearnedSegmenter(_SceneSegmenter[Descent]):
    """TMPA's own descent on α, over the patches of the sample."""

    def _calibrated(self, tiles: list[TileFeatures]) -> dict[str, object]:
        bank = self.frozen.bank
        if tiles:
            pool = _Pool(*(torch.cat([getattr(t, part) for t in tiles]) for part in _Pool._fields))
            found = tmpa.calibrate(pool, bank, self.settings)
        else:
            found = tmpa.Calibration(bank.vectors, bank.vectors, bank.vectors[:, 0] * 0, events=("no_valid_patch",))
        return {
            "text": found.text,
            "base_text": found.base_text,
            "alpha": found.alpha,
            "losses": list(found.losses),
            "events": list(found.events),
        }


def segmenter(parts: Parts[Descent]) -> Episodic[Any]:
    """`tmpa` and `tmpa_shift` on the vocabulary's queries."""
    frozen, settings = parts.frozen(parts.bank()), parts.settings
    if isinstance(settings, Tmpa) and settings.bias == "entropy":
        return SceneTmpaSegmenter(frozen, settings)
    return (SceneLearnedSegmenter if settings.scene_level else TmpaSegmenter)(frozen, settings)


def _array(value: Any) -> NDArray[Any]:
    import numpy as np

    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
