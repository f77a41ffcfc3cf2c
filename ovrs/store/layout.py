"""The output store: Zarr with the georeferencing that every reader looks for. Schema first, then regions.

Layout (level 0 at the root, overview levels in groups `2`, `4`, …, see `ovrs.store.levels`):

    label        (y, x)         uint8, 255 = no data (uint16, 65535 above 254 classes)
    confidence   (y, x)         uint8, 0..200 = 0..1, 255 = no data
    score        (class, y, x)  uint8 like confidence; only on request
    x, y         cell centres;  spatial_ref  CF grid mapping

`label` tells its no data by Zarr's fill value and the attribute `nodata`, not by CF's `_FillValue`: readers that know CF
would turn class numbers into floating point.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from pyproj.enums import WktVersion

from ovrs import files
from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE, label_dtype, label_nodata
from ovrs.errors import GridMismatchError, StoreError
from ovrs.names import cf_words
from ovrs.objects.address import ROOT_FILES as ROOT_FILES
from ovrs.objects.address import Address, Place, is_there, objects_at
from ovrs.store import codec, geozarr, intact
from ovrs.store.keys import Hidden, KeyStore
from ovrs.store.layer import Layer as Layer
from ovrs.store.layer import array as array
from ovrs.store.place import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from zarr.abc.store import Store
    from zarr.core.common import JSON

    from ovrs.scene.grid import Window
    from ovrs.store.levels import Levels

log = logging.getLogger(__name__)

codec.install()

PUBLISHING = "publish.json"
"""File of a place that a map is published to; the root metadata come last."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The arrays of a store, apart from its grid."""

    classes: Sequence[str]
    """Names, in the order of the class numbers."""
    colours: Sequence[tuple[int, int, int]]
    """Red, green, blue of each class, 0..255."""
    chunk: int
    """Side of a chunk in pixels."""
    shard: int | None = None
    """Side of a shard in pixels: the chunks of a block lie in one file per array. None: every chunk is a file."""
    zarr_format: Literal[2, 3] = 3
    keep_scores: bool = False
    """Whether every class's score is stored, too."""
    levels: Levels | None = None
    """Overviews; None for none."""


def create(path: Path | Store, geobox: GeoBox, schema: Schema, *, attributes: Mapping[str, JSON] | None = None) -> None:
    """Create the schema of a store at `path`; every pixel is no data.

    Raises:
        StoreError: `path` exists.
    """
    if isinstance(path, Path) and path.exists():
        raise StoreError(f"{path} exists already")
    group = zarr.create_group(path, zarr_format=schema.zarr_format)
    level(group, geobox, schema)
    group.attrs.update({"Conventions": "CF-1.11", **(attributes or {})})
    if schema.levels is not None:
        for factor in schema.levels.factors:
            plain = replace(schema, shard=schema.levels.shard_of(factor), keep_scores=False)
            level(group.create_group(str(factor)), schema.levels.geobox_of(factor, geobox), plain)


def level(group: zarr.Group, geobox: GeoBox, schema: Schema) -> None:
    """Create the arrays of one resolution level and its georeferencing in `group`."""
    classes, colours, chunk, shard = schema.classes, schema.colours, schema.chunk, schema.shard
    nodata = label_nodata(len(classes))
    shape = (geobox.height, geobox.width)
    # `coordinates` makes xarray treat the grid mapping as a coordinate without being told, as rioxarray's own files do
    common: dict[str, JSON] = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    if geobox.crs is not None:
        common["_CRS"] = _crs_object(geobox)
    # CF gives classes exactly this way; `flag_colors` follows GDAL's and rioxarray's reading of it
    flags: dict[str, JSON] = {
        "flag_values": list(range(len(classes))),
        "flag_meanings": " ".join(cf_words(classes)),
        "class_names": list(classes),
        "flag_colors": " ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours),
    }
    _array(
        group,
        "label",
        shape,
        (chunk, chunk),
        label_dtype(len(classes)),
        nodata,
        ("y", "x"),
        {"long_name": "class", "nodata": nodata, **flags, **common},
        shards=None if shard is None else (shard, shard),
    )
    meaning: dict[str, JSON] = {
        "_FillValue": CONFIDENCE_NODATA,
        "long_name": "confidence of the class",
        "scale_factor": 1 / CONFIDENCE_SCALE,
        "add_offset": 0.0,
    }
    _array(
        group,
        "confidence",
        shape,
        (chunk, chunk),
        np.dtype(np.uint8),
        CONFIDENCE_NODATA,
        ("y", "x"),
        {**meaning, **common},
        shards=None if shard is None else (shard, shard),
    )
    if schema.keep_scores:
        _array(
            group,
            "score",
            (len(classes), *shape),
            (1, chunk, chunk),
            np.dtype(np.uint8),
            CONFIDENCE_NODATA,
            ("class", "y", "x"),
            {**meaning, "long_name": "score per class", "class_names": list(classes), **common},
            shards=None if shard is None else (len(classes), shard, shard),
        )
    _georeference(group, geobox)


def _array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float | int | None,
    dims: tuple[str, ...],
    attributes: Mapping[str, JSON],
    *,
    compress: bool = True,
    shards: tuple[int, ...] | None = None,
) -> zarr.Array[Any]:
    v3 = group.metadata.zarr_format == 3
    extra: Any = {"dimension_names": dims} if v3 else {}
    named = dict(attributes) if v3 else {"_ARRAY_DIMENSIONS": list(dims), **attributes}
    if compress:  # gzip: some GDAL builds lack zstd and blosc
        extra["compressors"] = codec.FastGzip(level=1) if v3 else codec.TimelessGzip(level=1)
    else:
        extra["compressors"] = None
    sides = tuple(min(c, s) for c, s in zip(chunks, shape, strict=True))
    if shards is not None:  # whole chunks, and no larger than the array
        extra["shards"] = tuple(-(-min(h, s) // c) * c for h, s, c in zip(shards, shape, sides, strict=True))
    return group.create_array(
        name,
        shape=shape,
        chunks=sides,
        dtype=dtype,
        fill_value=fill,
        attributes=named,
        **extra,
    )


def _crs_object(geobox: GeoBox) -> dict[str, JSON]:
    assert geobox.crs is not None  # the caller has looked
    return {"wkt": geobox.crs.to_wkt(version=WktVersion.WKT2_2019), "projjson": geobox.crs.proj.to_json_dict()}


def _cf_parameters(crs: Any) -> dict[str, JSON]:
    with warnings.catch_warnings():  # some projections have no complete CF form; `crs_wkt` beside it is complete
        warnings.filterwarnings("ignore", message=".*lost in conversion to CF")
        return dict(crs.proj.to_cf())


def _georeference(group: zarr.Group, geobox: GeoBox) -> None:
    affine, crs = geobox.affine, geobox.crs
    ys = affine.f + affine.e * (np.arange(geobox.height) + 0.5)
    xs = affine.c + affine.a * (np.arange(geobox.width) + 0.5)
    geographic = crs is not None and crs.geographic
    names = ("latitude", "longitude") if geographic else ("projection_y_coordinate", "projection_x_coordinate")
    unit = {"units": ("degrees_north" if geographic else crs.proj.axis_info[0].unit_name)} if crs is not None else {}
    for name, values, standard in (("y", ys, names[0]), ("x", xs, names[1])):
        attributes = (
            {"standard_name": standard, "axis": name.upper(), **unit} if crs is not None else {"axis": name.upper()}
        )
        if geographic and name == "x":
            attributes["units"] = "degrees_east"
        # uncompressed and one chunk: GDAL builds without the codec would otherwise lose the transform
        _array(
            group, name, values.shape, values.shape, np.dtype(np.float64), None, (name,), attributes, compress=False
        )[:] = values
    transform = " ".join(repr(float(v)) for v in (affine.c, affine.a, affine.b, affine.f, affine.d, affine.e))
    mapping: dict[str, JSON] = {"GeoTransform": transform}
    if crs is not None:
        mapping = {
            **_cf_parameters(crs),
            "crs_wkt": crs.to_wkt(),
            "spatial_ref": crs.to_wkt(),
            "GeoTransform": transform,
        }
    # null for a format 2 fill value: readers of CF take any other for "missing" and make the number a NaN
    fill = 0 if group.metadata.zarr_format == 3 else None
    _array(group, "spatial_ref", (), (), np.dtype(np.int64), fill, (), mapping, compress=False)[...] = 0
    group.attrs.update(geozarr.placed(geobox))


def write_block(
    path: Path | Store,
    window: Window,
    chunk: int,
    label: NDArray[Any],
    confidence: NDArray[np.uint8],
    score: NDArray[np.uint8] | None,
) -> None:
    """Write one block's core. The only writer of these chunks.

    Raises:
        GridMismatchError: The block does not start on chunk lines: it would share chunks with a neighbour.
    """
    if window.row_off % chunk or window.col_off % chunk:
        raise GridMismatchError(
            f"block at {window.row_off},{window.col_off} does not start on the {chunk}-pixel chunk grid"
        )
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    region = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
    array(group, "label")[region] = label
    array(group, "confidence")[region] = confidence
    if score is not None:
        array(group, "score")[(slice(None), *region)] = score


def clear_block(path: Path | Store, window: Window) -> None:
    """Make one block's core no data in every array; removes its chunks, so it works on a full disk too."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    region = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
    for name in ("label", "confidence", "score"):
        if name in group:
            member = array(group, name)
            member[(..., *region)] = member.fill_value


def sweep(path: Path) -> None:
    """Remove what killed writers left in a store: zarr gives unfinished chunks the suffix `.partial`."""
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith(".partial"):
                Path(folder, name).unlink(missing_ok=True)


def opened(path: Path | Store) -> zarr.Group:
    """Return the root group of a store, finished or not, for reading.

    Raises:
        StoreError: It is no Zarr group, or its metadata are damaged.
    """
    try:
        return zarr.open_group(path, mode="r", use_consolidated=False)
    except UNREADABLE as error:
        names = ROOT_FILES if isinstance(path, Path) else ()
        file = next((path / n for n in names if isinstance(path, Path) and (path / n).exists()), path)
        raise StoreError(f"{file}: {path} is no Zarr group, or damaged ({type(error).__name__}: {error})") from error


def open_complete(path: Place) -> zarr.Group:
    """Open a finished store for reading.

    Raises:
        StoreError: Missing, unfinished (says how to resume), damaged, or not written by `ovrs`.
    """
    if isinstance(path, Address):
        return _complete_address(path)
    if path.name.endswith(".zarr.partial"):
        path = path.with_name(path.name.removesuffix(".partial"))
    if not path.exists():
        partial = partial_path(path)
        if partial.exists():
            raise StoreError(
                f"{path} is not finished; `ovrs status {path}` shows how far it is, `ovrs resume {path}` goes on"
            )
        raise StoreError(f"no store at {path}")
    if (path / PUBLISHING).exists() and not any((path / name).exists() for name in ROOT_FILES):
        raise StoreError(partly_published(path))
    group = opened(path)
    require_finished(group, path, f"`ovrs verify {path}` names the damaged files, `ovrs repair {path}` restores them")
    return group


def partly_published(place: Path | str) -> str:
    """Return what is said of a map whose publishing was cut off."""
    return f"{place} is only partly published; the same `ovrs publish` goes on"


def readable(out: Place) -> Path | Store:
    """Return a finished store as zarr reads it."""
    return out if isinstance(out, Path) else KeyStore(objects_at(out), read_only=True)


def _complete_address(out: Address) -> zarr.Group:
    below = objects_at(out)
    if not is_there(out):
        if Hidden(below, ROOT_FILES).list():
            raise StoreError(
                f"{out} is not finished; `ovrs status {out}` shows how far it is, `ovrs resume {out}` goes on"
            )
        raise StoreError(f"no store at {out}")
    group = opened(readable(out))
    require_finished(group, str(out), f"`ovrs verify {out}` names the damaged files, `ovrs repair {out}` restores them")
    return group


def require_finished(group: zarr.Group, place: Path | str, way_out: str) -> None:
    """Refuse a group that is no finished map.

    Raises:
        StoreError: Not written by `ovrs`, or damaged; the message ends with `way_out`.
    """
    if "ovrs" not in group.attrs:
        raise StoreError(f"{place} is a Zarr group, but not one that ovrs wrote (no 'ovrs' attribute)")
    fault = intact.fault_of(group)
    if fault:
        raise StoreError(f"{place}: {fault}; {way_out}")


def partial_path(path: Path) -> Path:
    """Where a store of this machine lives until it is committed."""
    path = files.named(path)
    return path.with_name(path.name + ".partial")


def facts(group: zarr.Group) -> dict[str, object]:
    """Return the `ovrs` attribute: provenance and results of the run."""
    found: Any = group.attrs["ovrs"]
    return dict(found)


def geobox_of(group: zarr.Group) -> GeoBox:
    """Return the grid of a store, from its own attributes."""
    from affine import Affine
    from odc.geo.geobox import GeoBox as Box

    attributes: Any = group.attrs
    height, width = attributes["spatial:shape"]
    crs: Any = dict(array(group, "spatial_ref").attrs).get("crs_wkt")
    return Box((int(height), int(width)), Affine(*attributes["spatial:transform"]), crs)
