"""SLD of the labels, for GeoServer and MapServer; QML of the polygons, for QGIS."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from ovrs.export import target
from ovrs.export.marks import XML_MARK
from ovrs.export.product import STYLE
from ovrs.names import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.store.map import Map


def write_sld(mapped: Map, raster: Path, *, overwrite: bool = False) -> Path:
    """Raster style beside `raster`, same stem.

    Raises:
        OptionError: A style that `ovrs` did not write is there, and `overwrite` is not set.
    """
    out = raster.with_suffix(".sld")
    target.check(mapped, out, STYLE, overwrite=overwrite)
    target.write_text(out, raster_style(raster.stem, mapped.names, mapped.colours))
    return out


def raster_style(title: str, names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """SLD 1.0 with one exact value per class."""
    entries = "".join(
        f'            <ColorMapEntry color="#{r:02x}{g:02x}{b:02x}" quantity="{i}" label={quoteattr(n)}/>\n'
        for i, (n, (r, g, b)) in enumerate(zip(names, colours, strict=True))
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{XML_MARK}\n'
        '<StyledLayerDescriptor version="1.0.0" xmlns="http://www.opengis.net/sld">\n  <NamedLayer>\n'
        f"    <Name>{escape(shown(title))}</Name>\n"
        "    <UserStyle>\n      <FeatureTypeStyle>\n        <Rule>\n          <RasterSymbolizer>\n"
        '          <ColorMap type="values">\n' + entries + "          </ColorMap>\n          </RasterSymbolizer>\n"
        "        </Rule>\n      </FeatureTypeStyle>\n    </UserStyle>\n  </NamedLayer>\n</StyledLayerDescriptor>\n"
    )


def polygon_style_path(vectors: Path) -> Path | None:
    """Where the style of polygons goes: `NAME-polygons.qml`, or None for a GeoPackage, which holds its style itself.

    A `.qml` of the same stem would be the raster's, so polygons never use that name.
    """
    return None if vectors.suffix.lower() == ".gpkg" else vectors.with_name(f"{vectors.stem}-polygons.qml")


def style_vectors(mapped: Map, vectors: Path, *, overwrite: bool = False) -> Path:
    """Write the QGIS style of polygons beside them; a GeoPackage has its style inside already.

    Returns:
        The file with the style.

    Raises:
        OptionError: A style that `ovrs` did not write is there, and `overwrite` is not set.
    """
    out = polygon_style_path(vectors)
    if out is None:
        return vectors
    target.check(mapped, out, STYLE, overwrite=overwrite)
    target.write_text(out, categorised_style(mapped.names, mapped.colours))
    return out


def categorised_style(names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """QML of a categorised renderer on the attribute `class`."""
    categories = "".join(
        f'      <category value={quoteattr(n)} label={quoteattr(n)} symbol="{i}" render="true"/>\n'
        for i, n in enumerate(names)
    )
    symbols = "".join(
        f'      <symbol name="{i}" type="fill" alpha="1">\n        <layer class="SimpleFill" enabled="1">\n'
        f'          <prop k="color" v="{r},{g},{b},255"/>\n          <prop k="outline_style" v="no"/>\n'
        f'          <prop k="style" v="solid"/>\n        </layer>\n      </symbol>\n'
        for i, (r, g, b) in enumerate(colours)
    )
    return (
        f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{XML_MARK}\n"
        '<qgis version="3.22" styleCategories="Symbology">\n'
        '  <renderer-v2 type="categorizedSymbol" attr="class" enableorderby="0" forceraster="0">\n    <categories>\n'
        + categories
        + "    </categories>\n    <symbols>\n"
        + symbols
        + "    </symbols>\n  </renderer-v2>\n</qgis>\n"
    )
