"""From options to a ready segmenter. Each process builds a given one once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs.engine.contract import SceneAdaptive
from ovrs.errors import OptionError
from ovrs.methods.sam3 import CocoSam3
from ovrs.options import resolved
from ovrs.provenance import canonical
from ovrs.run import adaptation

if TYPE_CHECKING:
    from ovrs.engine.contract import Segmenter
    from ovrs.methods.base import Settings
    from ovrs.objects.address import Place
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.words.vocabulary import Vocabulary

_built: dict[str, Segmenter] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class SegmenterSpec:
    """Everything needed to build a segmenter in another process. Small and picklable."""

    model: ModelOptions
    method: Settings
    """Complete: see `of`."""
    vocabulary: Vocabulary
    state: Place | None = None
    """What was learned from the scene (`ovrs.run.adaptation`), for segmenters that adapt to it once."""

    @classmethod
    def of(cls, model: ModelOptions, method: MethodOptions, vocabulary: Vocabulary) -> SegmenterSpec:
        """Return what the options of a run come to; loads no weights (errors as `ovrs.options.resolved`)."""
        return cls(model, resolved(model, method, vocabulary), vocabulary)

    @property
    def adapts_to_scene(self) -> bool:
        """Whether a run learns from the scene as a whole; `trivial` has nothing to learn."""
        return self.method.scene_level and self.model.family != "trivial"

    @property
    def key(self) -> str:
        """The same for segmenters that score alike, within one process and machine.

        All options enter, and size and time of the files that they name: a process that lives long sees new weights.
        """
        learned = None if self.state is None else adaptation.digest_of(self.state)
        model, method = self.model.model_dump(mode="json"), self.method.model_dump(mode="json")
        return canonical([model, method, self.vocabulary.digest(), learned, _stamps(self.model, self.method)])


def _stamps(model: ModelOptions, method: Settings) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time in nanoseconds of every file that the options name, or that lies in a folder they name."""
    named = [value for value in dict(method).values() if isinstance(value, Path)]
    networks = [Path(model.model), *([Path(method.prior_model)] if isinstance(method, CocoSam3) else [])]
    found = []
    for path in [*named, *networks]:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                state = file.stat()
                found.append((str(file), state.st_size, state.st_mtime_ns))
    return found


def build(spec: SegmenterSpec) -> Segmenter:
    """Return the process's segmenter for `spec`; the first use loads the model.

    The process keeps only the latest segmenter, with and without what was learned from its scene.
    """
    with _lock:
        key, base = spec.key, replace(spec, state=None)
        if key not in _built:
            for other in _built.keys() - {base.key}:
                del _built[other]
            if base.key not in _built:
                _built[base.key] = _make(base)
            if spec.state is not None:
                _built[key] = _with_state(_built[base.key], spec)
        return _built[key]


def _make(spec: SegmenterSpec) -> Segmenter:
    family = spec.model.family
    if family == "trivial":
        from ovrs.engine.testing import ColourSegmenter
        from ovrs.engine.tiling import TileGeometry

        crop = spec.model.crop or 160
        return ColourSegmenter(
            len(spec.vocabulary.classes), TileGeometry(crop=crop, stride=spec.model.stride or crop // 2)
        )
    segmenter: Segmenter
    if family == "sam3":
        from ovrs.model.sam3.build import build_sam3_segmenter

        segmenter = build_sam3_segmenter(spec.model, spec.method, spec.vocabulary)
    else:
        from ovrs.model.clip.build import build_clip_segmenter

        segmenter = build_clip_segmenter(spec.model, spec.method, spec.vocabulary)
    return segmenter


def _with_state(segmenter: Segmenter, spec: SegmenterSpec) -> Segmenter:
    assert spec.state is not None  # the caller has looked
    state = adaptation.read(spec.state)
    if spec.adapts_to_scene:
        if not isinstance(segmenter, SceneAdaptive):
            raise OptionError(
                f"method {spec.method.method} does not adapt to a scene as a whole; use --set adaptation=tile"
            )
        segmenter = segmenter.with_state(state)
    if spec.method.examples is None:
        return segmenter
    from ovrs.model.adapt.teaching import with_examples

    return with_examples(segmenter, state)
