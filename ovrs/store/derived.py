"""A map that was made from another one: other labels or another confidence on the same grid, read like any map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.encoding import label_nodata
from ovrs.errors import StoreError
from ovrs.scene.grid import row_areas_m2
from ovrs.store.layout import Layer
from ovrs.store.map import Map, MapClass
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ovrs.store.map import Colour

BLOCK = 2048


class DerivedMap(Map):
    """A map whose pixels differ from those of its store; record, grid and scene are the store's."""

    def __init__(
        self,
        base: Map,
        *,
        label: Layer | None = None,
        confidence: Layer | None = None,
        legend: Sequence[tuple[str, Colour]] | None = None,
        translation: NDArray[np.uint8] | None = None,
        note: str,
    ) -> None:
        """Take what differs.

        Args:
            base: The map that stays as it is.
            label: Other class numbers; overviews are then left out.
            confidence: Another confidence, with `label`.
            legend: Other classes, with `label`.
            translation: New value of each stored confidence, uint8 `(256,)`.
            note: What was done, for products.
        """
        self.base, self.translation, self.own_label = base, translation, label
        self.place, self.path, self.group, self.record, self.grid = (
            base.place,
            base.path,
            base.group,
            base.record,
            base.grid,
        )
        self.note = "; ".join(n for n in (base.note, note) if n)
        self.own_confidence = confidence
        self.label, self.confidence = self.layer("label"), self.layer("confidence")
        if label is None:
            self.classes, self.nodata = base.classes, base.nodata
            self.factors = base.factors
        else:
            pairs = list(zip(base.names, base.colours, strict=True)) if legend is None else list(legend)
            self.nodata = label_nodata(len(pairs))
            self.classes = counted(self, pairs)
            self.factors = (1,)
        self.scores = base.scores if label is None else None

    def layer(self, name: str, factor: int = 1) -> Layer:
        """As `Map.layer`.

        Raises:
            StoreError: There is none.
        """
        if self.own_label is not None and (factor != 1 or name == "score"):
            raise StoreError(f"{self.place}: a derived map has no {name} at level {factor}")
        if name == "label" and self.own_label is not None:
            return self.own_label
        if name == "confidence" and self.own_confidence is not None:
            return self.own_confidence
        found = self.base.layer(name, factor)
        return Translated(found, self.translation) if name == "confidence" and self.translation is not None else found

    def close(self) -> None:
        """Nothing: the store belongs to the map that this one was made from."""


class Translated(Layer):
    """A layer whose values are looked up in a table."""

    def __init__(self, layer: Layer, table: NDArray[np.uint8]) -> None:
        super().__init__(layer.async_array)
        object.__setattr__(self, "table", table)

    def __getitem__(self, selection: Any) -> Any:
        table: NDArray[np.uint8] = self.__dict__["table"]
        return table[np.asarray(super().__getitem__(selection))]


def counted(mapped: Map, legend: Sequence[tuple[str, Colour]]) -> tuple[MapClass, ...]:
    """Classes with the pixels and areas that a map holds, block by block."""
    pixels, areas = np.zeros(len(legend), np.int64), np.zeros(len(legend))
    for window in strips(mapped.label.shape, BLOCK):
        part = np.asarray(mapped.label[window.row_off : window.row_end, window.col_off : window.col_end])
        valid = part < len(legend)
        weight = np.broadcast_to(row_areas_m2(mapped.grid, window)[:, None], part.shape)
        pixels += np.bincount(part[valid], minlength=len(legend))
        areas += np.bincount(part[valid], weight[valid], minlength=len(legend))
    total = max(float(areas.sum()), 1e-300)
    return tuple(
        MapClass(
            name=name,
            colour=colour,
            pixels=int(pixels[i]),
            hectares=round(float(areas[i]) / 1e4, 4),
            percent=round(float(100 * areas[i] / total), 3),
        )
        for i, (name, colour) in enumerate(legend)
    )
