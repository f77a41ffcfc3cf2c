"""QGIS style beside the raster: only the real classes, with their names. QGIS loads it by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovrs.export import target
from ovrs.export.product import STYLE
from ovrs.export.rendering import rendered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.store.map import Map


def write_qml(mapped: Map, raster: Path, *, overwrite: bool = False) -> Path:
    """Write the style of a map's labels for `raster`, same stem.

    Raises:
        OptionError: A style that `ovrs` did not write is there, and `overwrite` is not set.
    """
    out = raster.with_suffix(".qml")
    target.check(mapped, out, STYLE, overwrite=overwrite)
    target.write_text(out, paletted_style(mapped.names, mapped.colours))
    return out


def paletted_style(names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """Return the QML of a paletted renderer; a TIFF palette alone always lists 256 entries."""
    return rendered("raster.qml", classes=list(zip(names, colours, strict=True)))
