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
from ovrs.methods.sam3 import CocoSam3, Gated, Masks, Phrased, Plain
from ovrs.model.sam3 import deviations, fuse, probe
from ovrs.model.sam3.prior import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.engine.contract import TileSample
    from ovrs.engine.tiling import TileGeometry
    from ovrs.model.sam3.backend import Detection, ImageState, PhraseBank, Sam3Backend
    from ovrs.model.sam3.prior import PriorSpace
    from ovrs.model.sam3.verdict import Verdict
    from ovrs.scene.grid import Window


TILES_AT_ONCE = 4
"""On a GPU: windows of 1008 px whose vision passes share a batch, about a gigabyte each in float32."""


def _place(crop: Window) -> tuple[slice, slice]:
    return slice(crop.row_off, crop.row_end), slice(crop.col_off, crop.col_end)


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
    """Shared by all methods."""

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

    @property
    def tiles_at_once(self) -> int:
        """Windows whose vision passes share a batch: one on a CPU, where batching gains nothing."""
        return TILES_AT_ONCE if self.backend.device.type == "cuda" else 1

    def evidence(
        self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        total, weights, _ = self.look([(rgb, valid, crops)])[0]
        return total, weights

    def look(self, tiles: Sequence[TileSample]) -> list[tuple[Any, Any, tuple[str, ...]]]:
        """`evidence` of several tiles, each without events; the vision tower sees all their windows in one batch."""
        windows = [
            (index, crop)
            for index, (_, valid, crops) in enumerate(tiles)
            for crop in crops
            if valid[_place(crop)].any()
        ]
        images = [(tiles[i][0][(slice(None), *_place(crop))], tiles[i][1][_place(crop)]) for i, crop in windows]
        states = self.backend.encode_images(images, phrases=len(self.rows()[0])) if images else []
        found = {
            (i, crop): self.crop_evidence(rgb, valid, state)
            for (i, crop), (rgb, valid), state in zip(windows, images, states, strict=True)
        }
        return [(*self._blended(i, valid.shape, crops, found), ()) for i, (_, valid, crops) in enumerate(tiles)]

    def _blended(
        self, tile: int, shape: tuple[int, ...], crops: tuple[Window, ...], found: Mapping[Any, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the weighted sum of a tile's windows, and the sum of weights."""
        total, weights = np.zeros((self.channels, *shape), np.float32), np.zeros(shape, np.float32)
        for crop in crops:
            weight = taper(crop, self.geometry.crop - self.geometry.stride)
            if (tile, crop) in found:
                total[(slice(None), *_place(crop))] += found[tile, crop] * weight
            weights[_place(crop)] += weight
        return total, weights

    def crop_evidence(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], state: ImageState) -> NDArray[np.float32]:
        """Evidence `(channels, H, W)` of one window, which the vision tower has seen."""
        raise NotImplementedError

    def ground(
        self, state: ImageState, reduce: Callable[[Detection], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return what `reduce` makes of every phrase that is asked for, and the class of each."""
        rows, class_of = self.rows()
        return self.backend.ground(state, self.bank, rows, reduce, presence_floor=self.options.presence_floor), class_of

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
        """Return the phrases that the detector is asked for, and the prompted class of each."""
        every = isinstance(self.options, Phrased) and self.options.structure_prompts == "all"
        chosen = [g if every else g[:1] for g in self.groups]
        return [r for g in chosen for r in g], torch.tensor([c for c, g in enumerate(chosen) for _ in g])


class MaskSegmenter(_Sam3Segmenter[Plain | Gated]):
    """`sam3` and `segearth_ov3`: a class's score is the best of its phrases' masks, in each window or over all of them."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.by_phrase = isinstance(self.options, Gated) and self.options.windows == "phrase"
        self.channels = len(self.rows()[0]) if self.by_phrase else len(self.groups)

    def crop_evidence(
        self,
        rgb: NDArray[np.uint8],  # noqa: ARG002
        valid: NDArray[np.bool_],
        state: ImageState,
    ) -> NDArray[np.float32]:
        (masks,), class_of = self.ground(state, self.reduce((valid.shape[0], valid.shape[1])))
        return self.joined(masks, class_of).cpu().numpy()

    def joined(self, masks: Tensor, class_of: Tensor) -> Tensor:
        """Return the masks of phrases `(R, H, W)` that are averaged over windows: all, or the best of each class."""
        return masks if self.by_phrase else fuse.join_rows(masks, class_of, len(self.groups))

    def prompted_scores(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.by_phrase:
            return evidence
        _, class_of = self.rows()
        return fuse.join_rows(torch.from_numpy(np.ascontiguousarray(evidence)), class_of, len(self.groups)).numpy()

    def reduce(self, size: tuple[int, int]) -> Callable[[Detection], tuple[Tensor, ...]]:
        """Return the rule that makes one probability of a phrase's masks."""
        own = self.options
        if not isinstance(own, Gated):
            return partial(fuse.plain, size=size)
        rule = fuse.proc if own.method == "proc_sam3" else fuse.segearth
        return partial(rule, size=size, confidence=own.confidence, mode=own.presence, gate=own.presence_gate)


class CocoSegmenter(_Sam3Segmenter[CocoSam3]):
    """`coco_sam3`: calibrated evidence. Adapting to a scene means probing the prior's space on it, nothing else."""

    def __init__(self, *parts: Any, space: PriorSpace | None, verdict: Verdict | None) -> None:
        super().__init__(*parts)
        self.space = space
        self.channels = 2 * len(self.groups)
        self._judge(verdict)

    def _judge(self, verdict: Verdict | None) -> None:
        self.prior_weight, self.prior_reason = probe.allowed_weight(self, verdict)
        self.facts = {
            **self.facts,
            "prior_weight_used": self.prior_weight,
            "prior_reason": self.prior_reason,
            "deviations": deviations.of_run(self.options, self.prior_weight),
        }

    def observe(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], state: ImageState | None = None) -> View:
        """One crop after vision tower and detector."""
        state = state or self.backend.encode_image(rgb, valid, phrases=len(self.rows()[0]))
        (evidence, presence), class_of = self.ground(state, self._reduce)
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

    def crop_evidence(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], state: ImageState) -> NDArray[np.float32]:
        return self.judge_view(self.observe(rgb, valid, state)).cpu().numpy()

    def judge_view(self, view: View) -> Tensor:
        """Evidence `(2C, H, W)` of a view, on the crop's own pixels."""
        options, prior = self.options, None
        if self.prior_weight and self.space is not None:
            cosines = self.space.cosines(view, self.bank, self.groups)
            prior = fuse.log_prior(cosines, options.prior_tau, join=options.synonym_join, class_tau=options.class_tau)
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
