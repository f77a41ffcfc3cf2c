"""What the ground is: points of a sample, other points, polygons, or a raster of labels; each brought to the map's pixels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.assess import lookup
from ovrs.assess.areas import from_polygons, from_raster
from ovrs.assess.estimators import Sample, Stratum
from ovrs.assess.found import OPTION, Found
from ovrs.assess.names import NO_DATA, match, said
from ovrs.assess.points_file import DESIGN, FIELD
from ovrs.encoding import CONFIDENCE_SCALE
from ovrs.errors import OptionError
from ovrs.scene.polygons import open_layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ovrs.scene.polygons import Layer
    from ovrs.store.map import Map

log = logging.getLogger(__name__)


def read(mapped: Map, source: str, field_name: str | None, *, random: bool, legend: str | None) -> Found:
    """Read a reference.

    Args:
        mapped: The map.
        source: Vector file (or `FILE|layer=NAME`), or a raster of labels.
        field_name: Attribute with the class; default `reference`, else `class`, else the only one.
        random: Points without a design are a simple random sample of the whole map.
        legend: Classes of a raster's values, `1=building,2=road`; default: the band's own tags.

    Raises:
        OptionError: The reference cannot be used or does not meet the map.
    """
    if _is_raster(source):
        if field_name is not None or random:
            raise OptionError("--field and --random are for points and polygons, not for a raster of labels")
        return from_raster(mapped, source, legend)
    if legend is not None:
        raise OptionError("--legend is for a raster of labels; points and polygons name their classes in --field")
    layer = open_layer(source, OPTION, placed=mapped.grid.crs is not None)
    shapes = np.concatenate([*layer.geometries(), np.array([], object)])
    attributes = layer.attributes()
    kinds = {s.geom_type for s in shapes if s is not None}
    labels = attributes[_field(attributes, field_name, layer)] if len(shapes) else []
    if kinds and kinds <= {"Polygon", "MultiPolygon", "GeometryCollection"}:
        if random:
            raise OptionError("--random is for points: pixels of a polygon are no random sample")
        return from_polygons(mapped, source, labels, layer.told)
    if not kinds or not kinds <= {"Point", "MultiPoint"}:
        raise OptionError(f"{layer.told} holds {', '.join(sorted(kinds)) or 'nothing'}; give points or polygons")
    return _from_points(mapped, layer, shapes, labels, attributes, random=random)


def _is_raster(source: str) -> bool:
    """Whether GDAL opens a file as a raster; GeoPackages with vectors are none."""
    import rasterio
    from rasterio.errors import RasterioError

    if Path(source.partition("|")[0]).suffix.lower() in (".gpkg", ".geojson", ".shp", ".fgb", ".json", ".kml", ".gml"):
        return False
    try:
        with rasterio.open(source) as raster:
            return bool(raster.count)
    except (RasterioError, OSError, ValueError) as error:
        log.debug("%s is no raster: %s", source, error)
        return False


def _field(attributes: dict[str, Any], wanted: str | None, layer: Layer) -> str:
    """Return the attribute with the class."""
    listed = ", ".join(attributes) or "none"
    if wanted is not None:
        if wanted not in attributes:
            raise OptionError(f"{layer.told} has no attribute {wanted!r}; it has: {listed}")
        return wanted
    for name in (FIELD, "class"):
        if name in attributes:
            return name
    if len(attributes) == 1:
        return next(iter(attributes))
    raise OptionError(f"{layer.told}: name the attribute with the class by --field; it has: {listed}")


def _from_points(
    mapped: Map,
    layer: Layer,
    shapes: NDArray[Any],
    labels: Sequence[Any],
    attributes: dict[str, list[Any]],
    *,
    random: bool,
) -> Found:
    import shapely

    if any(s is not None and s.geom_type == "MultiPoint" and len(shapely.get_parts(s)) != 1 for s in shapes):
        raise OptionError(f"{layer.told} holds groups of points; split them, so that each point has its own class")
    placed = np.array([s is not None and not s.is_empty for s in shapes])
    points = np.array(
        [
            np.array([np.nan, np.nan]) if not p else shapely.get_coordinates(s)[0]
            for s, p in zip(shapes, placed, strict=True)
        ]
    )
    rows, cols = lookup.at(mapped.grid, points[:, 0], points[:, 1], _transformer(mapped, layer))
    height, width = mapped.grid.shape
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    if not inside.any():
        raise OptionError(f"{layer.told}: no point lies on the map")
    numbers, legend, remarks = match(labels, mapped.names, layer.told)
    designed = all(name in attributes for name in DESIGN)
    own, sure = _values_at(mapped, rows, cols, inside)
    if (own[inside & (numbers >= 0)] < 0).any():
        legend = legend.with_no_data()
        remarks.append(f"{int((own[inside & (numbers >= 0)] < 0).sum())} labelled points lie where the map has no data")
        own = np.where(own < 0, legend.names.index(NO_DATA), own)
    use = inside & (numbers >= 0)
    for count, what in (
        (int((~inside).sum()), "points lie outside the map"),
        (int((inside & (numbers < 0)).sum()), "points have no label"),
    ):
        if count:
            remarks.append(f"{count} {what} and do not count")
    if not use.any():
        raise OptionError(f"{layer.told}: no labelled point lies on the map")
    sample = None
    if designed:
        sample, kept = _design(attributes, use, own, numbers, remarks)
        use = kept
    elif random:
        sample, kept = _poststratified(mapped, use, own, numbers, remarks)
        use = kept
    else:
        remarks.append(
            "the points tell no design (attributes stratum, stratum_pixels, …), so figures hold for these points alone: no "
            "areas, no intervals. `ovrs sample` makes such points; --random says that they are a simple random sample"
        )
    weight = np.ones(int(use.sum())) if sample is None else sample.weights
    return Found(
        legend=legend,
        mapped=own[use],
        reference=numbers[use],
        confidence=sure[use],
        weight=weight,
        kind="points",
        sample=sample,
        remarks=remarks,
    )


def _transformer(mapped: Map, layer: Layer) -> Any:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    if mapped.grid.crs is None or layer.crs is None or layer.crs == mapped.grid.crs.proj:
        return None
    try:
        return Transformer.from_crs(layer.crs, mapped.grid.crs.proj, always_xy=True)
    except ProjError as error:
        raise OptionError(f"{layer.told}: its CRS cannot be brought to the map's: {error}") from error


def _values_at(
    mapped: Map, rows: NDArray[np.int64], cols: NDArray[np.int64], inside: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Class, −1 for no data, and confidence at pixels, chunk by chunk."""
    chunk = mapped.label.chunks[0]
    own, sure = np.full(len(rows), -1, np.int64), np.full(len(rows), np.nan)
    place = np.where(inside, rows // chunk * (mapped.grid.width // chunk + 1) + cols // chunk, -1)
    for key in np.unique(place[inside]).tolist():
        here = place == key
        top, left = int(rows[here].min()), int(cols[here].min())
        part = (slice(top, int(rows[here].max()) + 1), slice(left, int(cols[here].max()) + 1))
        labels = np.asarray(mapped.label[part])[rows[here] - top, cols[here] - left].astype(np.int64)
        stored = np.asarray(mapped.confidence[part])[rows[here] - top, cols[here] - left].astype(np.float64)
        own[here] = np.where(labels < len(mapped.names), labels, -1)
        sure[here] = np.where(stored <= CONFIDENCE_SCALE, stored / CONFIDENCE_SCALE, np.nan)
    return own, sure


def _design(
    attributes: dict[str, list[Any]],
    use: NDArray[np.bool_],
    own: NDArray[np.int64],
    reference: NDArray[np.int64],
    remarks: list[str],
) -> tuple[Sample, NDArray[np.bool_]]:
    """Return the sample that the attributes of `ovrs sample` tell, and which points belong to it."""
    titles = [said(v) for v in attributes["stratum"]]
    known: dict[str, Stratum] = {}
    for title, pixels, area in zip(titles, attributes["stratum_pixels"], attributes["stratum_m2"], strict=True):
        told = Stratum(name=title, pixels=int(pixels or 0), area_m2=float(area or 0))
        if not title or told.pixels <= 0 or not (told.area_m2 > 0):
            raise OptionError(f"{OPTION}: a point has no stratum, or its stratum no size; do not edit these attributes")
        if known.setdefault(title, told) != told:
            raise OptionError(f"{OPTION}: points of stratum {title!r} tell different sizes of it; do not merge samples")
    labelled = {t for t, u in zip(titles, use, strict=True) if u}
    whole = sum(s.area_m2 for s in known.values())
    for title in known.keys() - labelled:
        share = known[title].area_m2 / whole
        remarks.append(
            f"no point of stratum {title!r} is labelled: figures and areas leave out its {share:.1%} of the map"
        )
    return _sample([known[t] for t in known if t in labelled], titles, use, own, reference), use


def _poststratified(
    mapped: Map,
    use: NDArray[np.bool_],
    own: NDArray[np.int64],
    reference: NDArray[np.int64],
    remarks: list[str],
) -> tuple[Sample, NDArray[np.bool_]]:
    """Return a simple random sample, stratified by the map's classes afterwards."""
    from ovrs.assess.sampling import count

    sizes = count(mapped)
    use = use & (own < len(mapped.names))
    titles = [mapped.names[c] if 0 <= c < len(mapped.names) else "" for c in own]
    present = [c for c in range(len(mapped.names)) if (own[use] == c).any()]
    strata = [
        Stratum(name=mapped.names[c], pixels=int(sizes.pixels[c]), area_m2=float(sizes.areas[c])) for c in present
    ]
    lost = 1 - sum(s.area_m2 for s in strata) / max(float(sizes.areas.sum()), 1e-300)
    if lost > 1e-9:
        remarks.append(f"classes without a point cover {lost:.1%} of the map: figures and areas leave them out")
    remarks.append("the points are taken for a simple random sample of the map, stratified by its classes afterwards")
    return _sample(strata, titles, use, own, reference), use


def _sample(
    strata: list[Stratum],
    titles: list[str],
    use: NDArray[np.bool_],
    own: NDArray[np.int64],
    reference: NDArray[np.int64],
) -> Sample:
    place = {s.name: i for i, s in enumerate(strata)}
    chosen = np.array([place[t] for t, u in zip(titles, use, strict=True) if u], np.int64)
    return Sample(strata=tuple(strata), stratum=chosen, mapped=own[use], reference=reference[use])
