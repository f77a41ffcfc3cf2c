"""SAM 3 segmenters behind the engine's contract. Crops do not influence each other, so all are frozen segmenters.

What is averaged over windows is evidence; argmax and threshold come after (`ovrs.engine.decide`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from ovrs.engine.contract import TileScores
from ovrs.engine.tiling import taper
from ovrs.methods.sam3 import CocoSam3, Masks, Phrased, Plain, SegearthOv3
from ovrs.model.sam3 import fuse, probe
from ovrs.model.sam3.prior import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.engine.contract import TileSample
    from ovrs.engine.tiling import TileGeometry
    from ovrs.model.sam3.backend import Detection, PhraseBank, Sam3Backend
    from ovrs.model.sam3.prior import PriorSpace
    from ovrs.model.sam3.verdict import Verdict
    from ovrs.scene.grid import Window


@dataclass(frozen=True)
class Phrases:
    """The words of a vocabulary as SAM 3 is asked for them."""

    bank: PhraseBank
    groups: tuple[tuple[int, ...], ...]
    """For each prompted class its rows in the bank, the name first."""
    prompted: tuple[str, ...]
    class_index: tuple[int, ...]
    """Place of each prompted class among all classes of the map; the others (background) get score 0."""
    class_count: int


S = TypeVar("S", bound=Masks)
"""Settings of a method."""


class _Sam3Segmenter(Generic[S]):
    """Shared by the three methods."""

    channels: int

    def __init__(
        self,
        backend: Sam3Backend,
        phrases: Phrases,
        options: S,
        geometry: TileGeometry,
        facts: dict[str, object],
    ) -> None:
        self.backend, self.phrases, self.options = backend, phrases, options
        self.bank, self.groups, self.prompted = phrases.bank, phrases.groups, phrases.prompted
        self.geometry, self.class_count, self.facts = geometry, phrases.class_count, facts

    def evidence(
        self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        total = np.zeros((self.channels, *valid.shape), np.float32)
        weights = np.zeros(valid.shape, np.float32)
        for crop in crops:
            rows, cols = slice(crop.row_off, crop.row_end), slice(crop.col_off, crop.col_end)
            weight = taper(crop, self.geometry.crop - self.geometry.stride)
            if valid[rows, cols].any():
                total[:, rows, cols] += self.crop_evidence(rgb[:, rows, cols], valid[rows, cols]) * weight
            weights[rows, cols] += weight
        return total, weights

    def crop_evidence(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        raise NotImplementedError

    def finish(self, evidence: NDArray[np.float32]) -> TileScores:
        scores = np.zeros((self.class_count, *evidence.shape[1:]), np.float32)
        scores[list(self.phrases.class_index)] = self.prompted_scores(evidence)
        return TileScores(scores)

    def prompted_scores(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        return evidence

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        total, weights = self.evidence(rgb, valid, crops)
        return self.finish(total / weights)

    def describe(self) -> dict[str, object]:
        return self.facts

    def rows(self) -> tuple[list[int], Tensor]:
        """The phrases that the detector is asked for, and the prompted class of each."""
        every = isinstance(self.options, Phrased) and self.options.structure_prompts == "all"
        chosen = [g if every else g[:1] for g in self.groups]
        return [r for g in chosen for r in g], torch.tensor([c for c, g in enumerate(chosen) for _ in g])


class MaskSegmenter(_Sam3Segmenter[Plain | SegearthOv3]):
    """`sam3` and `segearth_ov3`: a class's score is the best of its phrases' masks."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.channels = len(self.groups)

    def crop_evidence(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        state = self.backend.encode_image(rgb, valid)
        size = (valid.shape[0], valid.shape[1])
        if isinstance(self.options, SegearthOv3):
            reduce = partial(fuse.segearth, size=size, confidence=self.options.confidence)
        else:
            reduce = partial(fuse.plain, size=size)
        rows, class_of = self.rows()
        (masks,) = self.backend.ground(state, self.bank, rows, reduce, presence_floor=self.options.presence_floor)
        return fuse.join_rows(masks, class_of, len(self.groups)).cpu().numpy()


class CocoSegmenter(_Sam3Segmenter[CocoSam3]):
    """`coco_sam3`: calibrated evidence. Adapting to a scene means probing the prior's space on it, nothing else."""

    def __init__(self, *parts: Any, space: PriorSpace | None, verdict: Verdict | None) -> None:
        super().__init__(*parts)
        self.space = space
        self.channels = 2 * len(self.groups)
        self._judge(verdict)

    def _judge(self, verdict: Verdict | None) -> None:
        self.prior_weight, self.prior_reason = probe.allowed_weight(self, verdict)
        self.facts = {**self.facts, "prior_weight_used": self.prior_weight, "prior_reason": self.prior_reason}

    def look(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> View:
        """One crop after vision tower and detector."""
        state = self.backend.encode_image(rgb, valid)
        rows, class_of = self.rows()
        evidence, presence = self.backend.ground(
            state, self.bank, rows, self._reduce, presence_floor=self.options.presence_floor
        )
        classes = len(self.groups)
        return View(
            rgb,
            valid,
            state,
            fuse.join_rows(evidence, class_of, classes),
            fuse.join_rows(presence, class_of, classes),
        )

    def _reduce(self, detection: Detection) -> tuple[Tensor, Tensor]:
        return fuse.structure(detection, self.options.structure_head, self.options.score_floor)

    def crop_evidence(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        return self.judge_view(self.look(rgb, valid)).cpu().numpy()

    def judge_view(self, view: View) -> Tensor:
        """Evidence `(2C, H, W)` of a view, on the crop's own pixels."""
        options, prior = self.options, None
        if self.prior_weight and self.space is not None:
            prior = fuse.log_prior(self.space.cosines(view, self.bank, self.groups), options.prior_tau)
        scores = fuse.fuse(view.evidence, view.presence, prior, self.prior_weight, options.presence_weight)
        size = (view.valid.shape[0], view.valid.shape[1])
        return fuse.coco_evidence(scores, view.evidence, view.presence, size, rescue=options.presence_rescue)

    def prompted_scores(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        return fuse.coco_scores(torch.from_numpy(np.ascontiguousarray(evidence))).numpy()

    def adapt_scene(self, samples: Iterable[TileSample]) -> dict[str, NDArray[Any]]:
        """Probe the prior's space on the sampled crops; the verdict is kept beside the run."""
        spaces: Sequence[PriorSpace] = [self.space] if self.space is not None else []
        verdict = probe.probe(self, spaces, _crops(samples))
        events = [f"probe_{'passed' if verdict['accepted'] else 'failed'}"]
        return {
            "verdict": np.array(json.dumps(verdict)),
            "events": np.array(events),
            "tiles": np.array(verdict["images"]),
        }

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> CocoSegmenter:
        parts = (self.backend, self.phrases, self.options, self.geometry, self.facts)
        return CocoSegmenter(*parts, space=self.space, verdict=json.loads(str(state["verdict"])))


def _crops(samples: Iterable[TileSample]) -> Iterator[probe.Image]:
    for rgb, valid, crops in samples:
        for crop in crops:
            rows, cols = slice(crop.row_off, crop.row_end), slice(crop.col_off, crop.col_end)
            if valid[rows, cols].any():
                yield rgb[:, rows, cols], valid[rows, cols]
