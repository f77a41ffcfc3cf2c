"""SLD of the labels, for GeoServer and MapServer; QML of the polygons, for QGIS."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from ovrs import store
from ovrs.export.cog import legend
from ovrs.export.vector_files import LAYER

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


def style_vectors(path: Path, vectors: Path) -> Path:
    """QGIS style for polygons: inside a GeoPackage, where QGIS takes it by itself, else `NAME-polygons.qml`.

    A `.qml` of the same stem would be the raster's, so polygons never use that name.
    """
    names, colours = legend(store.open_complete(path))
    style = categorised_style(names, colours)
    if vectors.suffix != ".gpkg":
        out = vectors.with_name(f"{vectors.stem}-polygons.qml")
        out.write_text(style, "utf-8")
        return out
    with closing(sqlite3.connect(vectors)) as database, database:
        database.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), "
            "f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), "
            "styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
            "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
        )
        column = database.execute(
            "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (LAYER,)
        ).fetchone()
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, 'classes', ?, '', 1, 'ovrs', '')",
            (LAYER, column[0], style),
        )
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', 'layer_styles')"
        )
    return vectors


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
