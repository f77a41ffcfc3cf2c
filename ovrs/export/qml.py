"""QGIS style beside the raster: only the real classes, with their names. QGIS loads it by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from ovrs.export import target
from ovrs.export.marks import XML_MARK
from ovrs.export.product import STYLE

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
    """QML of a paletted renderer; a TIFF palette alone always lists 256 entries."""
    entries = "".join(
        f'        <paletteEntry value="{i}" label={quoteattr(n)} color="#{r:02x}{g:02x}{b:02x}" alpha="255"/>\n'
        for i, (n, (r, g, b)) in enumerate(zip(names, colours, strict=True))
    )
    return (
        f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{XML_MARK}\n"
        '<qgis version="3.22" styleCategories="AllStyleCategories">\n'
        "  <pipe>\n"
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">\n      <colorPalette>\n'
        + entries
        + "      </colorPalette>\n    </rasterrenderer>\n  </pipe>\n</qgis>\n"
    )
