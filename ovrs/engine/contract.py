"""The seam between the engine and every model: tile in, scores out. NumPy on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from ovrs.engine.tiling import TileGeometry
    from ovrs.scene.grid import Window

    Learned = Mapping[str, NDArray[Any]]
    """What a segmenter learned from a scene: plain arrays by name."""
    TileSample = tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[Window, ...]]
    """Pixels, validity and crops of one tile, as `Segmenter.segment` takes them."""


@dataclass(frozen=True, eq=False)
class TileScores:
    """Per-class scores that are safe to average linearly with those of a neighbouring tile."""

    scores: NDArray[np.float32]
    """`(class, height, width)`, normally in 0..1; need not sum to one."""
    background_evidence: NDArray[np.float32] | None = None
    """`(height, width)`: score of "none of the classes", for models that have one."""
    events: tuple[str, ...] = ()
    """What the adapter did that a reader of the map may want to know (`reverted`, `no_prototype`, …)."""


@runtime_checkable
class Segmenter(Protocol):
    """A model with its classes, ready to score tiles. Calls must not change what later calls return."""

    @property
    def geometry(self) -> TileGeometry: ...

    @property
    def class_count(self) -> int: ...

    def segment(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]) -> TileScores:
        """Score one tile.

        Args:
            rgb: `(3, height, width)` uint8.
            valid: `(height, width)`, True = valid; at least one pixel is.
            crops: The tile's crops, relative to the tile.
        """
        ...

    def describe(self) -> dict[str, object]:
        """Facts for digest and provenance: model, weights hash, method and settings."""
        ...


@runtime_checkable
class SceneAdaptive(Segmenter, Protocol):
    """A segmenter that adapts once to a scene, from a sample of its tiles."""

    def adapt_scene(self, samples: Iterable[TileSample]) -> Learned:
        """What was learned, as plain arrays; `events` holds its log as text."""
        ...

    def with_state(self, state: Learned) -> Segmenter:
        """The segmenter that applies what was learned."""
        ...


@runtime_checkable
class FrozenSegmenter(Segmenter, Protocol):
    """A segmenter whose crops do not influence each other.

    The engine then sums the evidence of all crops that cover a pixel and divides once (`methods` 1.6), which makes the
    map independent of how the scene was cut.
    """

    @property
    def channels(self) -> int: ...

    def evidence(
        self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crops: tuple[Window, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sum of the crops' evidence `(channels, height, width)` and the number of crops `(height, width)`."""
        ...

    def finish(self, evidence: NDArray[np.float32]) -> TileScores:
        """Scores from mean evidence `(channels, height, width)`; acts on each pixel alone."""
        ...
