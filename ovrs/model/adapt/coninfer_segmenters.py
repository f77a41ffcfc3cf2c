"""ConInfer for each tile, or once for a scene: the mixture of a sample is applied to all tiles, without seams."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ovrs.methods.coninfer import ConInfer
from ovrs.model.adapt import coninfer
from ovrs.model.adapt.coninfer import Mixture
from ovrs.model.clip.features import cosines
from ovrs.model.clip.segmenter import ClipSegmenter, Episodic
from ovrs.model.clip.upsample import Bilinear

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.engine.contract import TileSample, TileScores
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.parts import Parts
    from ovrs.model.clip.text import TextBank
    from ovrs.scene.grid import Window


def log_prior(features: TileFeatures, text: Tensor, base_text: Tensor, bank: TextBank, settings: ConInfer) -> Tensor:
    """Return log y `(B, N, M)` of a tile's windows: softmax over queries of the scaled cosines."""
    low = settings.logit_scale * cosines(features, text, base_text, settings.cls_weight).transpose(1, 2)
    return (low if bank.offsets is None else low + bank.offsets).log_softmax(dim=-1)


class JointMaps(Bilinear):
    """z on the patches of each window under a fitted mixture, resized to pixels."""

    name = "joint"

    def __init__(self, mixture: Mixture | None, bank: TextBank, settings: ConInfer) -> None:
        """Without a mixture z is the prior."""
        self.mixture, self.bank, self.settings = mixture, bank, settings

    def scores(self, features: TileFeatures, text: Tensor, base_text: Tensor, cls_weight: float) -> Tensor:  # noqa: ARG002
        """Return z `(B, M, N)`; the settings hold λ."""
        prior = log_prior(features, text, base_text, self.bank, self.settings)
        z = prior.exp()
        if self.mixture is not None:
            likelihood = coninfer.log_likelihood(features.patches, self.mixture)
            z = coninfer.joined(prior, likelihood, self.settings.gaussian_tau)
        return z.transpose(1, 2)


class ConInferSegmenter(Episodic[ConInfer]):
    """Adapts to each tile; from a sample of tiles it makes the frozen segmenter of a scene."""

    def joined(self, tiles: list[TileFeatures]) -> Mixture | None:
        """Return the mixture of all valid patches of the tiles; None if there is none."""
        frozen, own = self.frozen, self.settings
        priors = [log_prior(t, frozen.text, frozen.base_text, frozen.bank, own)[t.patch_valid] for t in tiles]
        patches = [t.patches[t.patch_valid] for t in tiles]
        if not sum(map(len, patches)):
            return None
        pool = torch.cat(patches)
        found = coninfer.fit(pool, torch.cat(priors), tau=own.gaussian_tau, rounds=own.rounds, confident=own.confident)
        return found[0]

    def with_mixture(self, mixture: Mixture | None) -> ClipSegmenter:
        """Return the frozen segmenter that joins every window with the mixture."""
        frozen, own = self.frozen, self.settings
        maps = JointMaps(mixture, frozen.bank, own)
        bank = replace(frozen.bank, offsets=None)  # they are in the prior
        scores = own.model_copy(update={"logit_scale": own.joint_scale})
        return ClipSegmenter(frozen.encoder, maps, bank, scores, frozen.geometry, frozen.facts)

    @torch.no_grad()
    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        features = self.frozen.encode(rgb, valid, crops)
        mixture = self.joined([features])
        joint = self.with_mixture(mixture)
        events = () if mixture is not None else ("no_valid_patch",)
        return joint.classify(features, joint.text, joint.base_text, events)

    @torch.no_grad()
    def adapt_scene(self, samples: Iterable[TileSample]) -> dict[str, NDArray[Any]]:
        """Fit the mixture to the patches of all sampled tiles together."""
        tiles = [self.frozen.encoder.remembered(*sample) for sample in samples]
        mixture = self.joined(tiles)
        found = {} if mixture is None else {k: v.cpu().numpy() for k, v in mixture._asdict().items()}
        event = "joined" if mixture is not None else "no_valid_patch"
        return {"tiles": np.asarray(len(tiles)), "events": np.asarray([event]), **found}

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> ClipSegmenter:
        """Return the frozen segmenter of a scene."""
        if "means" not in state:
            return self.with_mixture(None)
        device = self.frozen.bank.vectors.device
        return self.with_mixture(Mixture(*(torch.from_numpy(state[name]).to(device) for name in Mixture._fields)))


def segmenter(parts: Parts[ConInfer]) -> ConInferSegmenter:
    """`coninfer` on the vocabulary's queries."""
    return ConInferSegmenter(parts.frozen(parts.bank()), parts.settings)
