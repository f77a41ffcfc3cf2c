"""SLD of the labels, for GeoServer and MapServer; QML of the polygons, for QGIS."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from ovrs import store
from ovrs.export.cog import legend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write_sld(path: Path, raster: Path) -> Path:
    """Raster style beside `raster`, same stem."""
    names, colours = legend(store.open_complete(path))
    out = raster.with_suffix(".sld")
    out.write_text(raster_style(raster.stem, names, colours), "utf-8")
    return out


def raster_style(title: str, names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """SLD 1.0 with one exact value per class."""
    entries = "".join(
        f'            <ColorMapEntry color="#{r:02x}{g:02x}{b:02x}" quantity="{i}" label={quoteattr(n)}/>\n'
        for i, (n, (r, g, b)) in enumerate(zip(names, colours, strict=True))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<StyledLayerDescriptor version="1.0.0" xmlns="http://www.opengis.net/sld">\n  <NamedLayer>\n'
        f"    <Name>{title}</Name>\n    <UserStyle>\n      <FeatureTypeStyle>\n        <Rule>\n          <RasterSymbolizer>\n"
        '          <ColorMap type="values">\n' + entries + "          </ColorMap>\n          </RasterSymbolizer>\n"
        "        </Rule>\n      </FeatureTypeStyle>\n    </UserStyle>\n  </NamedLayer>\n</StyledLayerDescriptor>\n"
    )


def write_vector_qml(path: Path, vectors: Path) -> Path:
    """QGIS style for polygons: one category per class."""
    names, colours = legend(store.open_complete(path))
    out = vectors.with_suffix(".qml")
    out.write_text(categorised_style(names, colours), "utf-8")
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
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22" styleCategories="Symbology">\n'
        '  <renderer-v2 type="categorizedSymbol" attr="class" enableorderby="0" forceraster="0">\n    <categories>\n'
        + categories
        + "    </categories>\n    <symbols>\n"
        + symbols
        + "    </symbols>\n  </renderer-v2>\n</qgis>\n"
    )
