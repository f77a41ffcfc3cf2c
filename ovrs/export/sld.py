"""SLD of the labels, for GeoServer and MapServer; QML of the polygons, for QGIS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovrs.export import target
from ovrs.export.product import STYLE
from ovrs.export.rendering import rendered
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
    """Return an SLD 1.0 with one exact value per class."""
    return rendered("raster.sld", title=shown(title), classes=list(zip(names, colours, strict=True)))


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
    """Return the QML of a categorised renderer on the attribute `class`."""
    return rendered("polygons.qml", classes=list(zip(names, colours, strict=True)))
