"""Where a phrase can be compared with a pixel: the common spaces of CoCo-SAM3's semantic prior.

No such space was trained inside SAM 3, so each is an option and `ovrs.model.sam3.probe` says whether it carries signal.
Every space gives cosines `(m_c, h, w)` float32 per class, for the class's phrases with the name first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovrs.engine.arrays import as_numpy
from ovrs.engine.tiling import TileGeometry, crop_starts
from ovrs.errors import OptionError, WeightsError
from ovrs.model.sam3.fuse import resize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ovrs.model.clip.segmenter import ClipSegmenter
    from ovrs.model.sam3.backend import ImageState, PhraseBank
    from ovrs.scene.grid import Window

SPACES = ("rs_clip", "sam3", "sam3_neck", "prototype", "aligned")


@dataclass(frozen=True, eq=False)
class View:
    """Everything a space may look at for one crop."""

    rgb: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    state: ImageState
    evidence: Tensor
    """Mask evidence L `(C, h, w)`, logits."""
    presence: Tensor
    """z `(C,)`."""


class PriorSpace(Protocol):
    """One space; `name` goes into provenance."""

    @property
    def name(self) -> str: ...

    def cosines(self, view: View, bank: PhraseBank, groups: Sequence[Sequence[int]]) -> list[Tensor]:
        """Cosines of every phrase of every class with the pixels of a view."""
        ...

    def describe(self) -> dict[str, object]:
        """Return what decides its numbers beside SAM 3 and the options, for the digest."""
        ...


def standardised(features: Tensor) -> Tensor:
    """Layer norm per token without affine, minus the spatial mean: takes out the direction all states share."""
    features = F.layer_norm(features, features.shape[-1:])
    return features - features.mean(dim=(0, 1))


def _centred(vectors: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Minus the mean of the class *names*, so that adding synonyms moves nothing; a single class stays as it is."""
    return vectors - vectors[[g[0] for g in groups]].mean(dim=0) if len(groups) > 1 else vectors


def _cosines(features: Tensor, vectors: Tensor, groups: Sequence[Sequence[int]]) -> list[Tensor]:
    u = torch.einsum("hwd,td->thw", F.normalize(features, dim=-1), F.normalize(vectors, dim=-1))
    return [u[list(g)] for g in groups]


@dataclass(frozen=True)
class Sam3Space:
    """A block of the vision tower against the text tower's end-token state: the literal reading of the paper."""

    literal: bool = False
    name: str = "sam3"

    def cosines(self, view: View, bank: PhraseBank, groups: Sequence[Sequence[int]]) -> list[Tensor]:
        return self._compare(view.state.layer, bank.vectors, groups)

    def describe(self) -> dict[str, object]:
        return {"space": self.name}

    def _compare(self, features: Tensor, vectors: Tensor, groups: Sequence[Sequence[int]]) -> list[Tensor]:
        if features.shape[-1] != vectors.shape[-1]:
            raise WeightsError(
                f"prior space {self.name} needs equal widths; this model has {features.shape[-1]} and {vectors.shape[-1]}"
            )
        if not self.literal:
            features, vectors = standardised(features), _centred(vectors, groups)
        return _cosines(features, vectors, groups)


@dataclass(frozen=True)
class NeckSpace(Sam3Space):
    """The neck level that the detector reads against the mean of the projected tokens."""

    name: str = "sam3_neck"

    def cosines(self, view: View, bank: PhraseBank, groups: Sequence[Sequence[int]]) -> list[Tensor]:
        return self._compare(view.state.neck[-1][0].permute(1, 2, 0).float(), bank.neck_vectors, groups)


@dataclass(frozen=True)
class PrototypeSpace:
    """Competition without text: each class is the mean feature under its own mask; classes without a mask abstain."""

    name: str = "prototype"

    def cosines(self, view: View, bank: PhraseBank, groups: Sequence[Sequence[int]]) -> list[Tensor]:  # noqa: ARG002
        features = standardised(view.state.layer)
        size = (features.shape[0], features.shape[1])
        weight = F.adaptive_avg_pool2d((view.evidence.sigmoid() * view.presence.sigmoid()[:, None, None])[None], size)[
            0
        ]
        prototypes = F.normalize(torch.einsum("chw,hwd->cd", weight, features), dim=-1)
        u = torch.einsum("hwd,cd->chw", F.normalize(features, dim=-1), prototypes)
        found = weight.sum(dim=(1, 2)) >= 1
        u = torch.where(found[:, None, None], u, u[found].mean(dim=0)) if found.any() else torch.zeros_like(u)
        return [row[None] for row in u]

    def describe(self) -> dict[str, object]:
        return {"space": self.name}


@dataclass(frozen=True, eq=False)
class AlignedSpace:
    """Phrases carried into the vision space by a map fitted on unlabelled images (`ovrs.model.sam3.probe.align`)."""

    matrix: Tensor
    text_mean: Tensor
    vision_mean: Tensor
    name: str = "aligned"

    def cosines(self, view: View, bank: PhraseBank, groups: Sequence[Sequence[int]]) -> list[Tensor]:
        features = F.layer_norm(view.state.layer, view.state.layer.shape[-1:]) - self.vision_mean
        return _cosines(features, (bank.vectors - self.text_mean) @ self.matrix.T, groups)

    def describe(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for array in (self.matrix, self.text_mean, self.vision_mean):
            digest.update(array.cpu().contiguous().numpy().tobytes())
        return {"space": self.name, "alignment": digest.hexdigest()[:16]}


@dataclass(frozen=True, eq=False)
class ClipSpace:
    """A dense CLIP's map: the only one of these spaces that was trained to compare pixels' patches with words."""

    clip: ClipSegmenter
    name: str = "rs_clip"

    def cosines(self, view: View, bank: PhraseBank, groups: Sequence[Sequence[int]]) -> list[Tensor]:  # noqa: ARG002
        """Cosines at the resolution of the masks. The CLIP has its own bank, of the same phrases in the same order."""
        total, weight = self.clip.evidence(view.rgb, view.valid, _windows(view.valid.shape, self.clip.geometry))
        mean = torch.from_numpy(as_numpy(total) / np.maximum(as_numpy(weight), 1e-6)).to(view.evidence.device)
        size = (view.evidence.shape[-2], view.evidence.shape[-1])
        u = F.adaptive_avg_pool2d(mean[None], size)[0] if mean.shape[-1] >= size[1] else resize(mean, size)
        return [u[list(g)] for g in groups]

    def describe(self) -> dict[str, object]:
        return {"space": self.name, "clip": {k: v for k, v in self.clip.describe().items() if k != "threads"}}


def _windows(shape: tuple[int, ...], geometry: TileGeometry) -> tuple[Window, ...]:
    from ovrs.scene.grid import Window

    height, width = min(geometry.crop, shape[0]), min(geometry.crop, shape[1])
    return tuple(
        Window(row, col, height, width)
        for row in crop_starts(shape[0], geometry.crop, geometry.stride)
        for col in crop_starts(shape[1], geometry.crop, geometry.stride)
    )


def load_alignment(path: Path, weights_hash: str, layer: int, device: torch.device) -> AlignedSpace:
    """Read a fitted map.

    Raises:
        OptionError: No such file, or it was fitted for other weights or another layer.
    """
    if not path.is_file():
        raise OptionError(f"no alignment at {path}; `ovrs sam3 align` fits one on unlabelled images")
    with np.load(path, allow_pickle=False) as kept:
        if str(kept["weights"]) != weights_hash or int(kept["layer"]) != layer:
            raise OptionError(f"{path} was fitted for other weights or another layer; run `ovrs sam3 align` again")
        matrix, text, vision = (torch.from_numpy(kept[n]).to(device) for n in ("matrix", "text_mean", "vision_mean"))
    return AlignedSpace(matrix, text, vision)
