"""From options to a ready segmenter. Each process builds a given one once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovrs.provenance import canonical

if TYPE_CHECKING:
    from ovrs.contract import Segmenter
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.vocabulary import Vocabulary

_built: dict[str, Segmenter] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class SegmenterSpec:
    """Everything needed to build a segmenter in another process. Small and picklable."""

    model: ModelOptions
    method: MethodOptions
    vocabulary: Vocabulary

    @property
    def key(self) -> str:
        return canonical(
            [self.model.model_dump(mode="json"), self.method.model_dump(mode="json"), self.vocabulary.digest()]
        )


def build(spec: SegmenterSpec) -> Segmenter:
    """The process's segmenter for `spec`; loads the model on first use and keeps only the latest one."""
    with _lock:
        if spec.key not in _built:
            _built.clear()
            _built[spec.key] = _make(spec)
        return _built[spec.key]


def _make(spec: SegmenterSpec) -> Segmenter:
    if spec.model.model == "trivial":
        from ovrs.testing import ColourSegmenter
        from ovrs.tiling import TileGeometry

        crop = spec.model.crop or 160
        return ColourSegmenter(
            len(spec.vocabulary.classes), TileGeometry(crop=crop, stride=spec.model.stride or crop // 2)
        )
    from ovrs.model.build import build_clip_segmenter

    return build_clip_segmenter(spec.model, spec.method, spec.vocabulary)
