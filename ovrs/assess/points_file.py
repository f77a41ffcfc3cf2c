"""The sample as a GeoPackage that people label in QGIS: one point for each pixel, its design beside it, a style inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.assess.sampling import draw
from ovrs.errors import OptionError, OutputError
from ovrs.export import geopackage, target
from ovrs.export.product import POINTS, Product
from ovrs.export.rendering import rendered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.assess.sampling import Points
    from ovrs.store.map import Map

LAYER = "sample"
FIELD = "reference"
"""Attribute that people fill in."""
DESIGN = ("stratum", "stratum_pixels", "stratum_m2", "stratum_points", "inclusion")
"""Attributes that tell how a point was drawn."""
CHIP_SIDE = 128
"""Pixels of the scene along a side of a picture."""


def write_sample(
    mapped: Map,
    out: Path,
    *,
    per_class: int | None = None,
    total: int | None = None,
    seed: int = 0,
    chips: Path | None = None,
    overwrite: bool = False,
) -> tuple[Product, Points]:
    """Draw a sample and write it.

    Args:
        mapped: The map.
        out: `NAME.gpkg`; holds nothing else.
        per_class: Points for each class.
        total: Points in all.
        seed: Start of the random numbers.
        chips: Folder for a picture of each point's surroundings, north up, the pixel in the middle.
        overwrite: Replace a file that is there, labels included.

    Raises:
        OptionError: A file is there (labels in it would be lost), no CRS, or numbers that cannot work.
        StoreError: The map is damaged, or a file cannot be written.
    """
    import geopandas
    from pyogrio.errors import DataLayerError, DataSourceError

    target.check(mapped, out, POINTS, overwrite=overwrite)
    if out.exists() and not overwrite:
        raise OptionError(
            f"{out} is there already and may hold labels; choose another name, or --overwrite replaces it"
        )
    points = draw(mapped, per_class=per_class, total=total, seed=seed)
    pictures = ["" for _ in points.rows] if chips is None else _write_chips(mapped, points, chips)
    affine = mapped.grid.affine
    x = affine.c + affine.a * (points.cols + 0.5) + affine.b * (points.rows + 0.5)
    y = affine.f + affine.d * (points.cols + 0.5) + affine.e * (points.rows + 0.5)
    chosen = points.stratum
    columns = {
        "id": np.arange(1, len(chosen) + 1, dtype=np.int32),
        FIELD: np.array([None] * len(chosen), object),
        "remark": np.array([None] * len(chosen), object),
        "stratum": [mapped.names[c] for c in chosen],
        "stratum_pixels": points.strata.pixels[chosen],
        "stratum_m2": points.strata.areas[chosen],
        "stratum_points": points.allocation[chosen],
        "inclusion": points.inclusion,
        "chip": pictures,
    }
    crs = None if mapped.grid.crs is None else mapped.grid.crs.to_wkt()
    frame = geopandas.GeoDataFrame(columns, geometry=geopandas.points_from_xy(x, y), crs=crs)
    frame[[FIELD, "remark"]] = frame[[FIELD, "remark"]].astype("string")
    with target.replaced(out) as temporary:
        try:
            frame.to_file(
                temporary,
                layer=LAYER,
                driver="GPKG",
                engine="pyogrio",
                geometry_type="Point",
                layer_options={"DESCRIPTION": f"sample of {mapped.name}, seed {seed}: {points.rule}"},
            )
        except (DataSourceError, DataLayerError) as error:
            raise OutputError(f"{out} cannot be written: {error}") from error
        geopackage.add_style(temporary, LAYER, points_style(mapped.names, chips=chips is not None))
    return Product(path=out, kind=POINTS, features=len(chosen)), points


def points_style(names: Sequence[str], *, chips: bool) -> str:
    """Return a QML: rings around pixels that hide nothing, a list of classes to choose from, the stratum out of sight."""
    return rendered("points.qml", names=names, field=FIELD, hidden=DESIGN, chips=chips)


def _write_chips(mapped: Map, points: Points, folder: Path) -> list[str]:
    """Pictures of the scene around each point; returns their absolute paths."""
    from PIL import Image, ImageDraw

    from ovrs import files
    from ovrs.scene.grid import Window

    scene, whole = mapped.scene(), Window(0, 0, mapped.grid.height, mapped.grid.width)
    written = []
    for number, (row, col) in enumerate(zip(points.rows.tolist(), points.cols.tolist(), strict=True), start=1):
        window = Window(row - CHIP_SIDE // 2, col - CHIP_SIDE // 2, CHIP_SIDE, CHIP_SIDE).intersect(whole)
        assert window is not None  # the point lies in the map
        picture = Image.fromarray(np.moveaxis(scene.decimated_window(window, 1).rgb, 0, -1)).resize(
            (3 * window.width, 3 * window.height), Image.Resampling.NEAREST
        )
        left, top = 3 * (col - window.col_off), 3 * (row - window.row_off)
        ImageDraw.Draw(picture).rectangle((left - 2, top - 2, left + 4, top + 4), outline="magenta")
        path = folder / f"point-{number:04d}.png"
        with files.atomic(path, sweep=False) as temporary:
            picture.save(temporary, format="PNG")
        written.append(str(path.resolve()))
    return written
