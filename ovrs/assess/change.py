"""What differs between two maps: class-to-class areas, a raster and polygons of changes, and where both maps are sure.

The common grid is that of the map with the larger pixels; the other one is looked up at its pixel centres. Where either map
has no data, the change has none. Classes are compared by name. Memory holds one block; layers lie in a temporary folder.
"""

from __future__ import annotations

import csv
import io
import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from ovrs import files
from ovrs.assess.lookup import Lookup
from ovrs.clean.scratch import Scratch
from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.errors import OptionError
from ovrs.export import target
from ovrs.export.marks import CHANGE_COLUMNS
from ovrs.export.product import TABLE
from ovrs.export.stats import harmless
from ovrs.scene.grid import pixel_size_m, row_areas_m2
from ovrs.store.derived import DerivedMap
from ovrs.store.pyramid import strips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from ovrs.scene.grid import Window
    from ovrs.store.map import Colour, Map

    Read = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

BLOCK = 1024
UNCHANGED = "unchanged"
_GREY: Colour = (225, 225, 225)
_UNSURE: Colour = (200, 200, 200)
_SURE: Colour = (38, 115, 77)

ChangeRow = TypedDict(
    "ChangeRow", {"from": str, "to": str, "pixels": int, "hectares": float, "percent": float, "sure_hectares": float}
)  # `from` is a keyword
"""One pair of classes; `percent` counts in the ground area that both maps cover."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The difference of two maps, open while `compared` lasts."""

    rows: list[ChangeRow]
    """Every pair that occurs, equal ones included; the largest area first."""
    raster: Map
    """One class for each pair of unequal classes, and `unchanged`; its confidence is the lower of both."""
    changed: Map
    """The same without `unchanged`, which is no data: for polygons."""
    mask: Map
    """`unsure` and `sure`."""
    hectares: float
    """That both maps cover."""


@contextmanager
def compared(first: Map, second: Map, *, sure: float, block: int = BLOCK) -> Iterator[Change]:
    """Compare two maps, the first being the older.

    Args:
        first: The map before.
        second: The map after.
        sure: Confidence, 0..1, that both maps must have where a pixel is called sure.
        block: Side of a block in pixels.

    Raises:
        OptionError: `sure` is no share; the maps have no pixel in common, or only one has a CRS.
        StoreError: A map is damaged.
    """
    if not (math.isfinite(sure) and 0 <= sure <= 1):
        raise OptionError(f"--sure takes a confidence from 0 to 1, got {sure}")
    if first.grid.crs is None and second.grid.crs is None and first.grid != second.grid:
        raise OptionError("maps without a CRS are compared pixel by pixel, and these two have different grids")
    base = max((first, second), key=lambda m: max(pixel_size_m(m.grid)) * (1 if m is first else 0.999))
    with (
        Scratch((base.grid.height, base.grid.width)) as scratch,
        files.writing("a temporary layer (TMPDIR says where)"),
    ):
        yield _change(first, second, base, scratch, sure, block)


def _change(first: Map, second: Map, base: Map, scratch: Scratch, sure: float, block: int) -> Change:
    pairs, areas, certain = _tables(first, second)
    codes = scratch.layer("codes", pairs.size + 1)
    least = scratch.layer("confidence", CONFIDENCE_NODATA)
    mask = scratch.layer("mask", 2)
    limit = math.ceil(sure * CONFIDENCE_SCALE - 1e-9)
    read = _reader(first, second, base)
    for window in strips((base.grid.height, base.grid.width), block):
        one, other, confidence = read(window)
        both = (one < len(first.names)) & (other < len(second.names))
        code = np.where(both, one * len(second.names) + other, pairs.size)
        weight = np.broadcast_to(row_areas_m2(base.grid, window)[:, None], code.shape)
        is_sure = both & (confidence >= limit)
        pairs += np.bincount(code[both], minlength=pairs.size).reshape(pairs.shape)
        areas += np.bincount(code[both], weight[both], minlength=pairs.size).reshape(pairs.shape)
        certain += np.bincount(code[is_sure], weight[is_sure], minlength=pairs.size).reshape(pairs.shape)
        part = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
        codes[part] = code
        least[part] = np.where(both, confidence, CONFIDENCE_NODATA)
        mask[part] = np.where(both, is_sure, 2)
    if not pairs.any():
        raise OptionError(f"{first.name} and {second.name} have no pixel in common that both map")
    rows = _rows(first, second, pairs, areas, certain)
    differ = np.array([[a != b for b in second.names] for a in first.names])
    taken = [(int(a), int(b)) for a, b in zip(*np.nonzero((pairs > 0) & differ), strict=True)]
    taken.sort(key=lambda p: -areas[p])
    table = np.full(pairs.size + 1, len(taken) + 1, np.int64)
    table[: pairs.size][((pairs > 0) & ~differ).ravel()] = len(taken)
    for number, (a, b) in enumerate(taken):
        table[a * len(second.names) + b] = number
    numbers = scratch.layer("numbers", len(taken) + 1)
    for window in strips((base.grid.height, base.grid.width), block):
        part = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
        numbers[part] = table[np.asarray(codes[part])]
    legend = [(f"{first.names[a]} → {second.names[b]}", _mixed(first.colours[a], second.colours[b])) for a, b in taken]
    note = f"change from {first.name} to {second.name}"
    return Change(
        rows=rows,
        raster=DerivedMap(
            base,
            label=scratch.finished(numbers, len(legend) + 1),
            confidence=least,
            legend=[*legend, (UNCHANGED, _GREY)],
            note=note,
        ),
        changed=DerivedMap(
            base,
            label=scratch.finished(numbers, len(legend)),
            confidence=least,
            legend=legend,
            note=note,
        ),
        mask=DerivedMap(
            base,
            label=scratch.finished(mask, 2),
            confidence=least,
            legend=[("unsure", _UNSURE), ("sure", _SURE)],
            note=f"{note}: both confidences at least {sure:g}",
        ),
        hectares=float(areas.sum()) / 1e4,
    )


def _tables(first: Map, second: Map) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    shape = (len(first.names), len(second.names))
    return np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)


def _reader(first: Map, second: Map, base: Map) -> Callable[[Window], Read]:
    """Return a function that reads, in a window of the common grid, both classes and the lower confidence."""

    def layers(mapped: Map) -> tuple[Lookup, Lookup]:
        told = f"{first.name} and {second.name}"
        label = Lookup(mapped.label, mapped.grid, base.grid, mapped.nodata, told)
        return label, Lookup(mapped.confidence, mapped.grid, base.grid, CONFIDENCE_NODATA, told)

    (one, one_sure), (other, other_sure) = layers(first), layers(second)

    def read(window: Window) -> Read:
        sure = [np.asarray(layer.read(window)).astype(np.int64) for layer in (one_sure, other_sure)]
        known = np.where((sure[0] > CONFIDENCE_SCALE) | (sure[1] > CONFIDENCE_SCALE), 0, np.minimum(*sure))
        return one.read(window).astype(np.int64), other.read(window).astype(np.int64), known

    return read


def _rows(
    first: Map,
    second: Map,
    pairs: NDArray[np.int64],
    areas: NDArray[np.float64],
    certain: NDArray[np.float64],
) -> list[ChangeRow]:
    total = float(areas.sum())
    found: list[ChangeRow] = [
        {
            "from": first.names[a],
            "to": second.names[b],
            "pixels": int(pairs[a, b]),
            "hectares": round(float(areas[a, b]) / 1e4, 4),
            "percent": round(float(100 * areas[a, b] / total), 3),
            "sure_hectares": round(float(certain[a, b]) / 1e4, 4),
        }
        for a, b in zip(*np.nonzero(pairs), strict=True)
    ]
    return sorted(found, key=lambda r: (r["from"] == r["to"], -r["hectares"]))


def _mixed(before: Colour, after: Colour) -> Colour:
    """Mostly the colour of the class after, so that equal goals look alike and origins can be told apart."""
    r, g, b = ((x + 3 * y) // 4 for x, y in zip(before, after, strict=True))
    return r, g, b


def check_table(first: Map, second: Map, out: Path, *, overwrite: bool) -> None:
    """Refuse, before the work, a path that a table of changes may not be written to.

    Raises:
        OptionError: It does not end with `.csv`, or may not be replaced (see `target.check`).
        OutputError: The folder cannot be written.
    """
    if out.suffix.lower() != ".csv":
        raise OptionError(f"--areas takes FILE.csv, got {out}")
    for mapped in (first, second):
        target.check(mapped, out, TABLE, overwrite=overwrite)


def write_table(rows: list[ChangeRow], out: Path) -> Path:
    """Write pairs of classes as CSV, whole or not at all."""
    stream = io.StringIO()
    table = csv.DictWriter(stream, CHANGE_COLUMNS, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    table.writeheader()
    table.writerows({k: harmless(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
    files.write_text(out, stream.getvalue())
    return out
