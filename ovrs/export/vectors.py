"""Polygons of every class, without seams: GeoPackage or GeoParquet, streamed block by block.

Each block's 4-connected components become polygons. Those that touch a block border are joined with their neighbours by
comparing the two facing pixel rows (union-find on component numbers, no geometry); a joined component is united and
written as soon as no later block can touch it. Memory holds one block and the components that are still open.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.encoding import CONFIDENCE_NODATA, CONFIDENCE_SCALE
from ovrs.errors import OptionError, OutputError
from ovrs.export import geopackage, target
from ovrs.export.pieces import LIMIT, Piece, moved
from ovrs.export.product import POLYGONS, Product
from ovrs.export.regular import regularised
from ovrs.export.sld import categorised_style
from ovrs.export.vector_files import LAYER, open_sink
from ovrs.scene.grid import Window, row_areas_m2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ovrs.store.map import Map

BLOCK = 2048


def check_vectors(
    mapped: Map,
    out: Path,
    *,
    min_area: float = 0.0,
    simplify: float = 0.0,
    regularise: Sequence[str] = (),
    tolerance: float | None = None,
    layer: str = LAYER,
    overwrite: bool = False,
) -> None:
    """Refuse, before anything is written, what `write_vectors` could not write.

    Raises:
        OptionError: Another file type; a number that is not finite; a class that the map has not; `out` or its layer
            may not be replaced (see `target.check` and `geopackage.check_layer`).
        OutputError: The folder cannot be written, or another program writes the GeoPackage.
    """
    if not (math.isfinite(min_area) and math.isfinite(simplify)):
        raise OptionError("--min-area and --simplify must be finite numbers")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise OptionError(f"--tolerance takes a positive number of metres, got {tolerance}")
    if regularise and simplify:
        raise OptionError("--regularise and --simplify exclude each other: simplified borders lose their right angles")
    numbers_of(mapped, regularise)
    target.check(mapped, out, POLYGONS, overwrite=overwrite)
    if out.suffix.lower() == ".gpkg":
        geopackage.check_layer_name(layer)
        geopackage.check_layer(out, layer, overwrite=overwrite)


def numbers_of(mapped: Map, names: Sequence[str]) -> frozenset[int]:
    """Numbers of classes by their names.

    Raises:
        OptionError: The map has no such class.
    """
    if unknown := [name for name in names if name not in mapped.names]:
        raise OptionError(f"--regularise {unknown[0]!r} is no class of the map; it has: {', '.join(mapped.names)}")
    return frozenset(mapped.names.index(name) for name in names)


def write_vectors(
    mapped: Map,
    out: Path,
    *,
    min_area: float = 0.0,
    simplify: float = 0.0,
    regularise: Sequence[str] = (),
    tolerance: float | None = None,
    block: int = BLOCK,
    layer: str = LAYER,
    overwrite: bool = False,
) -> Product:
    """Write the polygons of a map.

    Args:
        mapped: The map.
        out: `*.gpkg` or `*.parquet`; appears when it is complete. Other layers of a GeoPackage stay.
        min_area: Square metres of true ground area; smaller polygons are left out.
        simplify: Tolerance in units of the CRS; borders between neighbours stay shared. Needs all polygons in memory.
        regularise: Classes whose outlines get right angles (`ovrs.export.regular`). Needs all polygons in memory.
        tolerance: Metres on the ground by which such an outline may move; None: three pixels.
        block: Side of a block in pixels.
        layer: Name of a GeoPackage's layer.
        overwrite: Replace also a file or layer that `ovrs` did not write.

    Returns:
        The file, with the number of polygons and what became of outlines.

    Raises:
        OptionError: See `check_vectors`, or too many polygons to simplify.
        StoreError: The map is damaged, or `out` cannot be written.
    """
    from pyogrio.errors import DataLayerError, DataSourceError

    check_vectors(
        mapped,
        out,
        min_area=min_area,
        simplify=simplify,
        regularise=regularise,
        tolerance=tolerance,
        layer=layer,
        overwrite=overwrite,
    )
    geobox, count, remark = mapped.grid, 0, ""
    with target.replaced(out) as temporary:
        in_package = temporary.suffix == ".gpkg"
        before = _state(out)
        if in_package and before is not None and geopackage.is_geopackage(out):
            geopackage.copy_into(out, temporary)
        try:
            sink = open_sink(temporary, mapped.names, mapped.colours, geobox.crs, layer)
            found: Iterator[Piece] = (p for p in components(mapped, block) if p.area_m2 >= min_area)
            if simplify > 0:
                found = iter(_simplified(list(found), simplify, geobox.affine))
            if regularise:
                squared = regularised(list(found), numbers_of(mapped, regularise), geobox, tolerance)
                found, remark = iter(squared.pieces), squared.told
            for piece in found:
                sink.add(piece)
                count += 1
            sink.close()
        except (DataSourceError, DataLayerError) as error:
            raise OutputError(f"{out} cannot be written: {error}") from error
        if in_package:
            geopackage.add_style(temporary, layer, categorised_style(mapped.names, mapped.colours))
        if _state(out) != before:
            raise OutputError(f"{out} changed while polygons were added; it stays as it is now. Run the command again")
    return Product(path=out, kind=POLYGONS, features=count, remark=remark)


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written: inode, size in bytes, modification time in nanoseconds."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def components(mapped: Map, block: int = BLOCK) -> Iterator[Piece]:
    """Every 4-connected component of equal labels as one polygon, in the order in which they close."""
    label, confidence, geobox, nodata = mapped.label, mapped.confidence, mapped.grid, mapped.nodata
    height, width = label.shape
    forest = _Forest()
    above: NDArray[np.int64] | None = None  # component numbers along the bottom of the row of blocks before
    for top in range(0, height, block):
        below = np.full(width, -1, np.int64)
        left: NDArray[np.int64] | None = None
        for first in range(0, width, block):
            window = Window(top, first, min(block, height - top), min(block, width - first))
            part = (slice(window.row_off, window.row_end), slice(window.col_off, window.col_end))
            ids, pieces = _pieces(np.asarray(label[part]), np.asarray(confidence[part]), geobox, window, nodata)
            still_open, numbers = _open_ids(ids, window, height, width), np.full(len(pieces) + 1, -1, np.int64)
            for index, piece in enumerate(pieces):
                if index + 1 in still_open:
                    numbers[index + 1] = forest.add(piece)
                else:
                    yield _united(piece)
            edges = numbers[ids]
            forest.join_rows(left, edges[:, 0])
            if above is not None:
                forest.join_rows(above[first : first + window.width], edges[0])
            left, below[first : first + window.width] = edges[:, -1], edges[-1]
        if top + block >= height:
            below.fill(-1)  # nothing comes after the last row
        yield from (_united(p) for p in forest.close_all_but(below))
        above = below


class _Forest:
    """Union-find over the pieces of open components."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}
        self.pieces: dict[int, Piece] = {}
        self.next = 0

    def add(self, piece: Piece) -> int:
        number, self.next = self.next, self.next + 1
        self.parent[number], self.pieces[number] = number, piece
        return number

    def find(self, number: int) -> int:
        root = number
        while self.parent[root] != root:
            root = self.parent[root]
        while self.parent[number] != root:
            self.parent[number], number = root, self.parent[number]
        return root

    def join_rows(self, one: NDArray[np.int64] | None, other: NDArray[np.int64]) -> None:
        """Join components that face each other with the same class."""
        if one is None:
            return
        facing = (one >= 0) & (other >= 0)
        for a, b in {(int(x), int(y)) for x, y in np.unique(np.stack([one[facing], other[facing]], 1), axis=0)}:
            first, second = self.find(a), self.find(b)
            if first != second and self.pieces[first].label == self.pieces[second].label:
                self.parent[second] = first
                self.pieces[first].join(self.pieces.pop(second))

    def close_all_but(self, below: NDArray[np.int64]) -> Iterator[Piece]:
        """Take out the components that do not reach the row `below`; the others stay open."""
        still = {self.find(int(n)) for n in np.unique(below) if n >= 0}
        for root in [r for r in self.pieces if r not in still]:
            yield self.pieces.pop(root)
        roots = {n: self.find(n) for n in self.parent}
        self.parent = {n: root for n, root in roots.items() if root in self.pieces}


def _pieces(
    label: NDArray[Any], confidence: NDArray[np.uint8], geobox: Any, window: Window, nodata: int
) -> tuple[NDArray[np.int32], list[Piece]]:
    """Component numbers from 1 (0 no data) of one block and a piece for each."""
    from rasterio.features import shapes
    from scipy import ndimage
    from shapely.geometry import shape

    ids = np.zeros(label.shape, np.int32)
    count = 0
    labels: list[int] = []
    for value in np.unique(label):
        if value == nodata:
            continue
        numbered, more = ndimage.label(label == value)
        ids += np.where(numbered > 0, numbered + count, 0).astype(np.int32)
        labels += [int(value)] * more
        count += more
    weight = np.broadcast_to(row_areas_m2(geobox, window)[:, None], label.shape)
    certain = np.where(confidence == CONFIDENCE_NODATA, 0, confidence).astype(np.float64) / CONFIDENCE_SCALE
    flat = ids.ravel()
    pixels = np.bincount(flat, minlength=count + 1)
    areas = np.bincount(flat, weight.ravel(), minlength=count + 1)
    sums = np.bincount(flat, certain.ravel(), minlength=count + 1)
    pieces = [
        Piece(label=v, pixels=int(pixels[i]), area_m2=float(areas[i]), confidence=float(sums[i]))
        for i, v in enumerate(labels, start=1)
    ]
    place = geobox.affine @ type(geobox.affine).translation(window.col_off, window.row_off)
    for geometry, value in shapes(ids, mask=ids > 0, connectivity=4, transform=place):
        pieces[int(value) - 1].geometries.append(shape(geometry))
    return ids, pieces


def _open_ids(ids: NDArray[np.int32], window: Window, height: int, width: int) -> set[int]:
    """Components that touch a border which is not the scene's."""
    sides = []
    if window.row_off > 0:
        sides.append(ids[0])
    if window.row_end < height:
        sides.append(ids[-1])
    if window.col_off > 0:
        sides.append(ids[:, 0])
    if window.col_end < width:
        sides.append(ids[:, -1])
    return {int(v) for v in np.unique(np.concatenate(sides)) if v > 0} if sides else set()


def _united(piece: Piece) -> Piece:
    """One valid polygon, without the vertices that only block borders left."""
    import shapely

    if len(piece.geometries) > 1:
        piece.geometries = [shapely.simplify(shapely.union_all(piece.geometries), 0)]
    return piece


def _simplified(pieces: list[Piece], tolerance: float, affine: Any) -> list[Piece]:
    """Simplify a coverage: in whole pixels with a vertex at every pixel corner, so that neighbours share all vertices."""
    import shapely

    if len(pieces) > LIMIT:
        raise OptionError(
            f"--simplify needs all polygons in memory and there are {len(pieces)} (limit {LIMIT}); raise --min-area"
        )
    back, size = ~affine, (abs(affine.a) + abs(affine.e)) / 2

    def to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.rint(moved(back, points))

    whole = shapely.segmentize([shapely.transform(p.geometries[0], to_pixels) for p in pieces], 1.0)
    simple = shapely.coverage_simplify(shapely.transform(whole, np.rint), tolerance / size)
    kept = []
    for piece, geometry in zip(pieces, simple, strict=True):
        if not geometry.is_empty:
            piece.geometries = [shapely.transform(geometry, lambda points: moved(affine, points))]
            kept.append(piece)
    return kept
