"""Polygons of some classes with right-angled outlines; neighbours follow, so that borders stay shared and nothing overlaps.

All outlines, old and new, are cut into faces. A face within a new outline belongs to it (the larger one first); a face that
a new outline gives up goes to the neighbour with the longest common border; every other face stays with its polygon.
Faces of no polygon (no data) stay empty. Then faces of one polygon are joined.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.clean.outline import right_angled
from ovrs.errors import OptionError
from ovrs.export.pieces import LIMIT, Piece, moved
from ovrs.scene.grid import pixel_size_m

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

log = logging.getLogger(__name__)

_PRECISION = 1 / 1024
"""Of coordinates, in pixels: corners of pixels have exact ones."""
DEFAULT_PIXELS = 3.0
"""Tolerance in pixels where none is given."""
_SLIVER = 0.5
"""Square pixels below which a part that cutting left is no polygon of its own."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    pieces: list[Piece]
    squared: int
    """Outlines that have right angles now."""
    tried: int
    iou: float | None
    """Of all outlines that were tried with the map's own, as one area; None without any."""
    tolerance_m: float

    @property
    def told(self) -> str:
        """In words."""
        if self.iou is None:
            return "no outline to regularise"
        return (
            f"{self.squared} of {self.tried} outlines have right angles, within {self.tolerance_m:.3g} m; "
            f"IoU with the map's own {self.iou:.3f}"
        )


def regularised(pieces: Sequence[Piece], labels: frozenset[int], geobox: GeoBox, tolerance_m: float | None) -> Outcome:
    """Square the outlines of classes; needs all polygons in memory.

    Args:
        pieces: Every polygon of a map.
        labels: Numbers of the classes.
        geobox: Grid of the map.
        tolerance_m: Metres on the ground by which an outline may move; None: three pixels.

    Raises:
        OptionError: Too many polygons.
    """
    import shapely

    if len(pieces) > LIMIT:
        raise OptionError(
            f"--regularise needs all polygons in memory and there are {len(pieces)} (limit {LIMIT}); "
            "raise --min-mapping-unit"
        )
    across, down = pixel_size_m(geobox)
    tolerance_m = DEFAULT_PIXELS * max(across, down) if tolerance_m is None else tolerance_m
    stretch = round(down / across, 3)  # right angles are those on the ground
    back = ~geobox.affine
    old = np.array(
        [shapely.transform(p.geometries[0], lambda c: np.rint(moved(back, c)) * (1.0, stretch)) for p in pieces], object
    )
    tried = [i for i, p in enumerate(pieces) if p.label in labels]
    new = {i: r for i in tried if (r := right_angled(old[i], tolerance_m / across)) is not None}
    faces, owners, near = _partition(old, new)
    common, together = 0.0, 0.0
    changed = _joined(faces, owners, near)
    for i in tried:
        after = shapely.union_all(changed[i]) if i in changed else old[i]
        overlap = float(shapely.area(shapely.intersection(after, old[i])))
        common, together = common + overlap, together + float(after.area + old[i].area) - overlap
    kept: list[Piece] = []
    for i, piece in enumerate(pieces):
        if i not in changed:
            kept.append(piece)
            continue
        for part in changed[i]:
            share = float(part.area / max(old[i].area, 1e-12))
            place = shapely.transform(part, lambda c: moved(geobox.affine, c / (1.0, stretch)))
            kept.append(
                Piece(
                    geometries=[place],
                    label=piece.label,
                    pixels=max(1, round(piece.pixels * share)),
                    area_m2=piece.area_m2 * share,
                    confidence=piece.confidence / max(piece.pixels, 1) * max(1, round(piece.pixels * share)),
                )
            )
    return Outcome(
        pieces=kept,
        squared=len(new),
        tried=len(tried),
        iou=common / together if together else None,
        tolerance_m=tolerance_m,
    )


def _partition(old: NDArray[Any], new: dict[int, Any]) -> tuple[NDArray[Any], NDArray[np.int64], list[int]]:
    """Faces of all outlines near a new one, the polygon that each belongs to (−1: none), and the polygons that are cut."""
    import shapely

    if not new:
        return np.array([], object), np.array([], np.int64), []
    order = sorted(new, key=lambda i: -new[i].area)
    fresh = np.array([shapely.set_precision(new[i], _PRECISION) for i in order], object)
    tree = shapely.STRtree(old)
    reach = shapely.buffer(np.concatenate([fresh, old[order]]), 1.5, quad_segs=1)
    near = np.union1d(tree.query(reach, predicate="intersects")[1], order)
    lines = shapely.union_all([*shapely.boundary(old[near]), *shapely.boundary(fresh)], grid_size=_PRECISION)
    faces = shapely.get_parts(shapely.polygonize([lines]))
    inside = shapely.point_on_surface(faces)
    was, owners = np.full(len(faces), -1, np.int64), np.full(len(faces), -1, np.int64)
    face, index = shapely.STRtree(old[near]).query(inside, predicate="within")
    was[face] = near[index]
    face, index = shapely.STRtree(fresh).query(inside, predicate="within")
    for f, i in sorted(zip(face.tolist(), index.tolist(), strict=True), reverse=True):
        owners[f] = order[i]  # the largest comes last
    owners[was < 0] = -1  # no data stays empty
    given_up = (owners < 0) & np.isin(was, order)
    owners = np.where((owners < 0) & ~given_up, was, owners)
    _hand_over(faces, owners, was, np.flatnonzero(given_up).tolist())
    return faces, owners, near.tolist()


def _hand_over(faces: NDArray[Any], owners: NDArray[np.int64], was: NDArray[np.int64], left: list[int]) -> None:
    """Give each face that an outline gave up to the neighbour with the longest common border; changes `owners`."""
    import shapely

    tree, borders = shapely.STRtree(faces), shapely.boundary(faces)
    near = {f: [n for n in tree.query(faces[f], predicate="intersects").tolist() if n != f] for f in left}
    length = {
        f: {n: float(s) for n, s in zip(ns, shapely.length(shapely.intersection(borders[f], borders[ns])), strict=True)}
        for f, ns in near.items()
    }
    while left:
        waiting = []
        for f in left:
            sums: dict[int, float] = {}
            for n, shared in length[f].items():
                if owners[n] >= 0 and owners[n] != was[f] and shared > 0:
                    sums[int(owners[n])] = sums.get(int(owners[n]), 0.0) + shared
            if sums:
                owners[f] = max(sums, key=lambda o: (sums[o], -o))
            else:
                waiting.append(f)
        if len(waiting) == len(left):  # nothing but no data around: the outline keeps it
            owners[waiting] = was[waiting]
            return
        left = waiting


def _joined(faces: NDArray[Any], owners: NDArray[np.int64], wanted: Sequence[int]) -> dict[int, list[Any]]:
    """Return the faces of each polygon as its parts; none for a polygon that others cover.

    A part below `_SLIVER` goes to the part with the longest common border.
    """
    import shapely

    if not len(wanted):
        return {}
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], wanted)
    ends = np.searchsorted(owners[order], wanted, side="right")
    parts: list[Any] = []
    whose: list[int] = []
    for owner, a, b in zip(wanted, starts, ends, strict=True):
        mine = shapely.get_parts(shapely.union_all(faces[order[a:b]])).tolist() if b > a else []
        parts += mine
        whose += [owner] * len(mine)
    areas = shapely.area(parts)
    large = np.flatnonzero(areas >= _SLIVER)
    tree = shapely.STRtree([parts[i] for i in large])
    more: dict[int, list[Any]] = {}
    for small in np.flatnonzero(areas < _SLIVER).tolist():
        near = large[tree.query(parts[small], predicate="intersects")]
        edge = shapely.boundary(parts[small])
        shared = [float(shapely.length(shapely.intersection(edge, shapely.boundary(parts[n])))) for n in near]
        best = int(near[int(np.argmax(shared))]) if shared and max(shared) > 0 else small
        more.setdefault(best, []).append(parts[small])
    found: dict[int, list[Any]] = {owner: [] for owner in wanted}
    for index in sorted({*large.tolist(), *more}):
        grown = more.get(index)
        found[whose[index]].append(shapely.union_all([parts[index], *grown]) if grown else parts[index])
    return found
