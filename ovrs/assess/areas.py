"""References that cover ground: polygons and rasters of labels, compared pixel by pixel in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.assess.found import OPTION, Found
from ovrs.assess.lookup import Lookup
from ovrs.assess.names import match, said
from ovrs.assess.sampling import blocks
from ovrs.encoding import CONFIDENCE_SCALE
from ovrs.errors import OptionError, SceneReadError
from ovrs.scene.aoi import zones

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ovrs.assess.names import Legend
    from ovrs.scene.grid import Window
    from ovrs.store.map import Map

_LEVELS = CONFIDENCE_SCALE + 1


def from_polygons(mapped: Map, source: str, labels: Sequence[Any], told: str) -> Found:
    """Pixels whose centre lies in a polygon; where polygons of two classes overlap, none counts."""
    from rasterio.features import rasterize
    from shapely import STRtree, box

    shapes, _ = zones(mapped.grid, source, OPTION)
    numbers, legend, remarks = match(labels, mapped.names, told)
    labelled = np.flatnonzero((numbers >= 0) & np.array([not s.is_empty for s in shapes]))
    if not len(labelled):
        raise OptionError(f"{told}: no labelled polygon lies on the map")
    tree = STRtree(shapes[labelled])
    twice = 0

    def at(window: Window) -> NDArray[np.int64]:
        nonlocal twice
        place = mapped.grid.affine @ type(mapped.grid.affine).translation(window.col_off, window.row_off)
        corners = [place @ c for c in ((0, 0), (window.width, window.height))]
        near = labelled[tree.query(box(*np.min(corners, 0), *np.max(corners, 0)), predicate="intersects")]
        found = np.full(window.shape, -1, np.int64)
        for number in np.unique(numbers[near]).tolist():
            own = [shapes[i] for i in near if numbers[i] == number]
            inside = rasterize(own, window.shape, transform=place, dtype="uint8").astype(bool)
            found = np.where(inside, np.where(found == -1, number, -2), found)
        twice += int((found == -2).sum())
        return found

    made = _compare(mapped, at, legend, "polygons", remarks)
    if twice:
        remarks.append(f"{twice} pixels lie in polygons of two classes and do not count")
    remarks.append(
        "polygons are no random sample: figures hold for their pixels alone, without areas of the map or intervals"
    )
    return made


def from_raster(mapped: Map, source: str, legend: str | None) -> Found:
    """Pixels of the map and the nearest pixel of a raster of labels."""
    import rasterio
    from odc.geo.geobox import GeoBox as Box
    from rasterio.errors import RasterioError

    told = f"{OPTION} {source}"
    try:
        with rasterio.open(source) as raster:
            if not np.issubdtype(np.dtype(raster.dtypes[0]), np.integer):
                raise OptionError(f"{told} holds {raster.dtypes[0]}; a raster of labels holds whole numbers")
            table = _legend(legend) if legend is not None else _own_legend(raster.tags(1))
            if not table:
                raise OptionError(
                    f"{told} does not name its classes; say what its values mean: --legend 1=building,2=road"
                )
            own = Box(raster.shape, raster.transform, None if raster.crs is None else raster.crs.to_wkt())
            numbers, classes, remarks = match([table[v] for v in table], mapped.names, told)
            outside = -(1 << 31)
            values = Lookup(_Band(raster), own, mapped.grid, outside, told)
            keys = np.array(sorted(table))
            of_key = np.array([numbers[list(table).index(k)] for k in keys])
            empty = raster.nodata

            def at(window: Window) -> NDArray[np.int64]:
                found = values.read(window).astype(np.int64)
                place = np.clip(np.searchsorted(keys, found), 0, len(keys) - 1)
                known = keys[place] == found
                if empty is not None:
                    known &= found != empty
                return np.where(known, of_key[place], -1)

            made = _compare(mapped, at, classes, "raster", remarks)
    except RasterioError as error:
        raise SceneReadError(f"{told} cannot be read: {error}") from error
    return made


class _Band:
    """The first band of an open raster as an array that is read in parts."""

    def __init__(self, raster: Any) -> None:
        self.raster, self.shape = raster, raster.shape

    def __getitem__(self, part: tuple[slice, slice]) -> NDArray[Any]:
        from rasterio.windows import Window as RasterWindow

        rows, cols = part
        window = RasterWindow(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
        return np.asarray(self.raster.read(1, window=window))


def _own_legend(tags: dict[str, str]) -> dict[int, str]:
    """Class names from the tags `CLASS_n`, which `ovrs export` writes."""
    return {int(k[6:]): v for k, v in tags.items() if k.startswith("CLASS_") and k[6:].isdigit()}


def _legend(text: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for part in text.split(","):
        number, equals, name = part.partition("=")
        if not equals or not number.strip().lstrip("-").isdigit() or not said(name):
            raise OptionError(
                f"--legend takes VALUE=CLASS separated by commas, such as 1=building,2=road; got {part!r}"
            )
        if int(number) in found:
            raise OptionError(f"--legend names the value {int(number)} twice")
        found[int(number)] = said(name)
    return found


def _compare(
    mapped: Map,
    at: Callable[[Window], NDArray[np.int64]],
    legend: Legend,
    kind: str,
    remarks: list[str],
) -> Found:
    """Areas of each pair of classes at each level of confidence."""
    classes = len(legend.names)
    table = np.zeros((classes, classes, _LEVELS))
    missing = covered = total = 0.0
    for window, labels, weight in blocks(mapped):
        there = at(window)
        mapped_here = labels < len(mapped.names)
        total += float(weight[mapped_here].sum())
        covered += float(weight[mapped_here & (there >= 0)].sum())
        missing += float(weight[~mapped_here & (there >= 0)].sum())
        use = mapped_here & (there >= 0)
        part = mapped.confidence[window.row_off : window.row_end, window.col_off : window.col_end]
        stored = np.minimum(np.asarray(part)[use].astype(np.int64), CONFIDENCE_SCALE)
        place = (labels[use] * classes + there[use]) * _LEVELS + stored
        table += np.bincount(place, weight[use], minlength=table.size).reshape(table.shape)
    if not table.any():
        raise OptionError(f"the {kind} of {OPTION} meet no pixel of the map")
    if missing:
        remarks.append(
            f"{missing / (missing + covered):.1%} of the reference lies where the map has no data and does not count"
        )
    if kind == "raster" and covered < total * (1 - 1e-9):
        remarks.append(
            f"the reference covers {covered / total:.1%} of the map: figures hold there alone, without intervals"
        )
    elif kind == "raster":
        remarks.append("the reference covers the whole map: figures are counts and have no sampling error")
    rows, cols, levels = np.nonzero(table)
    return Found(
        legend=legend,
        mapped=rows.astype(np.int64),
        reference=cols.astype(np.int64),
        confidence=levels / CONFIDENCE_SCALE,
        weight=table[rows, cols, levels],
        kind=kind,
        remarks=remarks,
    )
