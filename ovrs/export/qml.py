"""QGIS style beside the raster: only the real classes, with their names. QGIS loads it by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from ovrs import store
from ovrs.export.cog import legend

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_qml(path: Path, raster: Path) -> Path:
    """Write the style of a store's labels for `raster`, same stem."""
    names, colours = legend(store.open_complete(path))
    out = raster.with_suffix(".qml")
    out.write_text(paletted_style(names, colours), "utf-8")
    return out


def paletted_style(names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """QML of a paletted renderer; a TIFF palette alone always lists 256 entries."""
    entries = "".join(
        f'        <paletteEntry value="{i}" label={quoteattr(n)} color="#{r:02x}{g:02x}{b:02x}" alpha="255"/>\n'
        for i, (n, (r, g, b)) in enumerate(zip(names, colours, strict=True))
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis version=\"3.22\" styleCategories=\"AllStyleCategories\">\n"
        "  <pipe>\n"
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">\n      <colorPalette>\n'
        + entries
        + "      </colorPalette>\n    </rasterrenderer>\n  </pipe>\n</qgis>\n"
    )
