"""The frozen vision tower behind one of its dense variants."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ovrs.methods.clip import EXTERNAL_VARIANTS, DenseVariant
from ovrs.model.adapt.cass import cass_tokens
from ovrs.model.clip.dense import DenseTokens, dense_tokens
from ovrs.model.clip.gem import gem_tokens
from ovrs.model.clip.inputs import CropInputs, crop_inputs
from ovrs.model.clip.proxy import ExternalViT, proxy_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.engine.arrays import Array
    from ovrs.engine.contract import TileSample
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.loading import LoadedModel
    from ovrs.model.clip.windows import Views
    from ovrs.scene.grid import Window

Looked = tuple[torch.Tensor, torch.Tensor, tuple[int, int]]
"""Patches `(B, N, D)`, global tokens `(B, D)` and the grid of patches of a tile's B windows."""


class TileMemory:
    """A few tiles that were encoded for a scene's sample, each given out once. At most `ROOM`, the first ones.

    On a device none are kept: it encodes a tile again in less time than pixels take to be compared.
    """

    ROOM = 16

    def __init__(self) -> None:
        self._known: dict[bytes, Looked] = {}

    def keep(self, rgb: Array, valid: Array, found: Looked) -> None:
        """Remember what the network said of a tile."""
        if len(self._known) < self.ROOM and found[0].device.type == "cpu":
            self._known[_key(rgb, valid)] = found

    def take(self, rgb: Array, valid: Array) -> Looked | None:
        """Return the features of these very pixels, if they are known."""
        return self._known.pop(_key(rgb, valid), None) if self._known and isinstance(rgb, np.ndarray) else None


def _key(rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> bytes:
    found = hashlib.sha256(repr(rgb.shape).encode())
    found.update(rgb.tobytes())
    found.update(valid.tobytes())
    return found.digest()


@dataclass(frozen=True, eq=False)
class Encoder:
    """The frozen vision tower behind its dense variant."""

    model: LoadedModel
    variant: DenseVariant
    external: ExternalViT | None
    """The second network that `proxyclip` and `cass` lean on."""
    views: Views
    """The windows that a tile is looked at through."""
    memory: TileMemory = field(default_factory=TileMemory)
    """Tiles of a sample that were encoded before the map begins."""
    tiles_at_once: int = 1
    """Tiles in one batch."""

    def inputs(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> CropInputs:
        """Return the crops of a tile as this network wants them."""
        return crop_inputs(self.model, rgb, valid, crops, self.views)

    def tokens(self, images: Tensor) -> DenseTokens:
        """Dense tokens of one batch of inputs, whatever the variant."""
        visual = self.model.clip.visual
        given = images.to(self.model.dtype)
        if self.variant == "gem":
            return gem_tokens(visual, given)
        if self.variant in EXTERNAL_VARIANTS:
            assert self.external is not None  # `ovrs.model.clip.parts` sees to it
            normalisation = (self.model.mean, self.model.std)
            if self.variant == "proxyclip":
                return proxy_tokens(visual, given, self.external.features(images, *normalisation))
            return cass_tokens(visual, given, *self.external.keys(images, *normalisation))
        return dense_tokens(visual, given, self.variant)

    @torch.no_grad()  # not inference mode: adapters build graphs on these tensors
    def encode(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileFeatures:
        """Run the vision tower once over the windows of a tile, as many at a time as a full tile has.

        The last batch is padded with repeats to full size: its make-up depends on the plan alone, so a tile's numbers do
        not depend on what else is computed.
        """
        inputs, known = self.inputs(rgb, valid, crops), self.memory.take(rgb, valid)
        return inputs.features(*(known or self._looked(inputs)))

    @torch.no_grad()
    def remembered(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileFeatures:
        """`encode`, and keep the answer for the tile's turn in the map, as long as there is room."""
        inputs = self.inputs(rgb, valid, crops)
        found = self._looked(inputs)
        self.memory.keep(rgb, valid, found)
        return inputs.features(*found)

    @torch.no_grad()
    def encode_tiles(self, tiles: Sequence[TileSample]) -> list[TileFeatures]:
        """`encode` for at most `tiles_at_once` tiles, in batches of as many windows as that number of full tiles has."""
        if self.tiles_at_once == 1:
            return [self.encode(*tile) for tile in tiles]
        inputs = [self.inputs(*tile) for tile in tiles]
        patches, cls, grid = self._run(torch.cat([i.images for i in inputs]), self.views.batch * self.tiles_at_once)
        counts = [len(i.images) for i in inputs]
        split = zip(inputs, patches.split(counts), cls.split(counts), strict=True)
        return [own.features(p, c, grid) for own, p, c in split]

    def _looked(self, inputs: CropInputs) -> Looked:
        """Return what the network says of a tile's windows: patches, global tokens, grid."""
        return self._run(inputs.images, self.views.batch)

    def _run(self, images: Tensor, batch: int) -> Looked:
        """Run the network on any number of inputs, `batch` at a time, the last batch made up with repeats."""
        patches, cls, grid = [], [], (0, 0)
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            full = torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1)]) if len(part) < batch else part
            tokens = self.tokens(full)
            grid = tokens.grid
            patches.append(tokens.patches[: len(part)].float())
            cls.append(tokens.cls[: len(part)].float())
        return torch.cat(patches), torch.cat(cls), grid
