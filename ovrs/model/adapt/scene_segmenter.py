"""TMPA once for a scene: what is learned from a sample of its tiles is applied to all of them, so there are no seams."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ovrs.model.adapt import tmpa
from ovrs.model.adapt.scene_text import SceneSettings, calibrate_scene
from ovrs.model.clip.segmenter import Episodic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from ovrs.engine.arrays import Array
    from ovrs.engine.contract import TileSample, TileScores
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.segmenter import ClipSegmenter
    from ovrs.scene.grid import Window


class _Pool(NamedTuple):
    """Patches of many tiles."""

    patches: Tensor
    cls: Tensor
    patch_valid: Tensor


class _SceneSegmenter(Episodic):
    """Shared by both ways to calibrate: a sample is encoded, its text calibrated, and kept as plain arrays."""

    def adapt_scene(self, samples: Iterable[TileSample]) -> dict[str, NDArray[Any]]:
        """Calibrate to the patches of all sampled tiles together."""
        tiles = [self.frozen.encoder.remembered(*sample) for sample in samples]
        found = self._calibrated(tiles)
        return {"tiles": _array(len(tiles)), **{name: _array(value) for name, value in found.items()}}

    def _calibrated(self, tiles: list[TileFeatures]) -> dict[str, Any]:
        raise NotImplementedError

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> ClipSegmenter:
        """The frozen segmenter that asks with the scene's text."""
        device = self.frozen.bank.vectors.device
        text, base = (torch.from_numpy(state[name]).to(device) for name in ("text", "base_text"))
        offsets = torch.from_numpy(state["offsets"]).to(device) if "offsets" in state else None
        return self.frozen.with_text(text, base, offsets, asdict(self.settings))

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        """A tile given alone is a scene of its own."""
        return self.with_state(self.adapt_scene([(rgb, valid, crops)])).segment(rgb, valid, crops)


class SceneTmpaSegmenter(_SceneSegmenter):
    """The entropy rule: nothing is learned by descent (`ovrs.model.adapt.scene_text`)."""

    settings: SceneSettings

    def _calibrated(self, tiles: list[TileFeatures]) -> dict[str, Any]:
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


class SceneLearnedSegmenter(_SceneSegmenter):
    """TMPA's own descent on α, over the patches of the sample."""

    settings: tmpa.TmpaSettings

    def _calibrated(self, tiles: list[TileFeatures]) -> dict[str, Any]:
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


def _array(value: Any) -> NDArray[Any]:
    import numpy as np

    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
