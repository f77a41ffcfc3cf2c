"""The seam between the engine and every model: tile in, scores out.

Both sides speak the Python array API: scores may be NumPy's or another library's, on any device, and stay there until
they are labels. Pixels are NumPy's, unless the segmenter places them itself (`Resident`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ovrs.engine.arrays import Array
    from ovrs.engine.tiling import TileGeometry
    from ovrs.scene.grid import Window

    Learned = Mapping[str, NDArray[Any]]
    """What a segmenter learned from a scene: plain arrays by name."""
    TileSample = tuple[Array, Array, tuple[Window, ...]]
    """Pixels, validity and crops of one tile, as `Segmenter.segment` takes them."""
    Events = tuple[str, ...] | Callable[[], tuple[str, ...]]
    """What the adapter did that a reader of the map may want to know (`reverted`, `no_prototype`, …), or a function that
    tells it: a device is not asked before the block is done."""
    Look: TypeAlias = "TileScores | tuple[Array, Array, Events]"
    """What is said of one of several tiles: scores, or evidence, weight and events of a frozen segmenter."""


@dataclass(frozen=True, eq=False)
class TileScores:
    """Per-class scores that are safe to average linearly with those of a neighbouring tile."""

    scores: Array
    """float32 `(class, height, width)`, normally in 0..1; need not sum to one. The engine does not write to it."""
    background_evidence: Array | None = None
    """float32 `(height, width)`: score of "none of the classes", for models that have one."""
    events: Events = ()


@runtime_checkable
class Segmenter(Protocol):
    """A model with its classes, ready to score tiles. Calls must not change what later calls return."""

    @property
    def geometry(self) -> TileGeometry:
        """Return crop, stride and crops of a tile."""
        ...

    @property
    def class_count(self) -> int:
        """Return the number of classes."""
        ...

    def segment(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> TileScores:
        """Score one tile.

        Args:
            rgb: `(3, height, width)` uint8, in NumPy or as `Resident.place` gave it.
            valid: `(height, width)`, True = valid; at least one pixel is.
            crops: The tile's crops, relative to the tile.
        """
        ...

    def describe(self) -> dict[str, object]:
        """Facts for digest and provenance: model, weights hash, method and settings."""
        ...


@runtime_checkable
class ManyTiles(Protocol):
    """A segmenter that looks at several tiles in one batch. A tile's scores do not depend on the others."""

    @property
    def tiles_at_once(self) -> int:
        """Return the most tiles that one call of `look` takes."""
        ...

    def look(self, tiles: Sequence[TileSample]) -> list[Look]:
        """For at most `tiles_at_once` tiles, scores of each, or what `evidence` gives and events if it is frozen."""
        ...


@runtime_checkable
class Resident(Protocol):
    """A segmenter that keeps a block's pixels on its device: they are brought there once."""

    def place(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return the pixels `(3, height, width)` and validity `(height, width)` of a block, where the model is."""
        ...


@runtime_checkable
class SceneAdaptive(Segmenter, Protocol):
    """A segmenter that adapts once to a scene, from a sample of its tiles."""

    def adapt_scene(self, samples: Iterable[TileSample]) -> Learned:
        """Return what was learned, as plain arrays; `events` holds its log as text."""
        ...

    def with_state(self, state: Learned) -> Segmenter:
        """Return the segmenter that applies what was learned."""
        ...


@runtime_checkable
class FrozenSegmenter(Segmenter, Protocol):
    """A segmenter whose crops do not influence each other.

    The engine then sums the evidence of all crops that cover a pixel and divides once
    (`docs/methods.md#windows-and-scores`), which makes the map independent of how the scene was cut.
    """

    @property
    def channels(self) -> int:
        """Return the channels of the evidence: queries, or classes."""
        ...

    def evidence(self, rgb: Array, valid: Array, crops: tuple[Window, ...]) -> tuple[Array, Array]:
        """Sum of the crops' evidence `(channels, height, width)` and the number of crops `(height, width)`."""
        ...

    def finish(self, evidence: Array) -> TileScores:
        """Scores from mean evidence `(channels, height, width)`; acts on each pixel alone."""
        ...
