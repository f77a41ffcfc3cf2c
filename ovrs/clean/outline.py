"""Right-angled outlines: a polygon's edges turned into two directions, as far as no point moves beyond a tolerance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_FRACTIONS = (1.0, 0.75, 0.5, 0.3)
"""Shares of the tolerance by which an outline is simplified first; the coarsest that succeeds is taken."""


def right_angled(polygon: Any, tolerance: float) -> Any | None:
    """Return a polygon with right angles, none of whose outline is farther than `tolerance` from the old one, and the reverse.

    Args:
        polygon: A shapely polygon; holes are squared in the same directions, those that cannot be stay.
        tolerance: In units of its coordinates.

    Returns:
        The new polygon, or None where no such outline is found.
    """
    import shapely

    for share in _FRACTIONS:
        found = []
        for angle in _directions(polygon, tolerance * share):
            made = _fitted(polygon, angle, tolerance * share, tolerance)
            if made is not None:
                common = shapely.area(shapely.intersection(made, polygon))
                found.append((common / (made.area + polygon.area - common), made))
        if found:
            return max(found, key=lambda pair: pair[0])[1]
    return None


def _directions(polygon: Any, coarse: float) -> Iterator[float]:
    """Angles, in radians, of the axes that an outline may follow."""
    import shapely

    ring = np.asarray(shapely.get_coordinates(shapely.simplify(polygon.exterior, coarse, preserve_topology=True)))
    steps = np.diff(ring, axis=0)
    lengths, angles = np.hypot(steps[:, 0], steps[:, 1]), np.arctan2(steps[:, 1], steps[:, 0])
    along = np.sum(lengths**2 * np.cos(4 * angles)), np.sum(lengths**2 * np.sin(4 * angles))
    yield math.atan2(along[1], along[0]) / 4
    yield float(angles[int(lengths.argmax())])
    box = np.asarray(shapely.get_coordinates(shapely.minimum_rotated_rectangle(polygon)))
    if len(box) > 1:
        yield math.atan2(*(box[1] - box[0])[::-1])


def _fitted(polygon: Any, angle: float, coarse: float, tolerance: float) -> Any | None:
    import shapely

    shell = _ring(np.asarray(polygon.exterior.coords)[:, :2], angle, coarse)
    if shell is None or not _near(shell, polygon.exterior, tolerance):
        return None
    holes = []
    for hole in polygon.interiors:
        squared = _ring(np.asarray(hole.coords)[:, :2], angle, coarse)
        kept = squared is not None and _near(squared, hole, tolerance)
        holes.append(squared if kept else np.asarray(hole.coords)[:, :2])
    made = shapely.Polygon(shell, holes)
    return made if made.is_valid and made.area > 0 else None


def _near(ring: NDArray[np.float64], old: Any, tolerance: float) -> bool:
    import shapely

    new = shapely.LinearRing(ring)
    return bool(shapely.hausdorff_distance(new, old, densify=0.1) <= tolerance * (1 + 1e-9))


def _ring(points: NDArray[np.float64], angle: float, coarse: float) -> NDArray[np.float64] | None:
    """Return a ring with edges along `angle` and across it; None where fewer than four lines are left."""
    import shapely

    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])  # rows times this: rotated by -angle
    turned = points[:-1] @ turn
    start = int(np.argmax(np.sum((turned - turned.mean(axis=0)) ** 2, axis=1)))  # a corner, which simplifying keeps
    turned = np.roll(turned, -start, axis=0)
    line = shapely.simplify(shapely.LineString([*turned, turned[0]]), coarse, preserve_topology=False)
    corners = shapely.get_coordinates(line)
    if len(corners) < 4:
        return None
    lines = _lines(corners)
    if len(lines) < 4 or len(lines) % 2:
        return None
    made = _without_short(lines, coarse)
    return None if made is None else np.asarray(np.vstack([made, made[:1]]) @ turn.T)


Line = tuple[bool, float, float]
"""Whether a line is level, its position across, and the length of outline that it stands for."""


def _lines(corners: NDArray[np.float64]) -> list[Line]:
    """Alternating level and upright lines of a closed ring."""
    steps = np.diff(corners, axis=0)
    level = np.abs(steps[:, 0]) >= np.abs(steps[:, 1])
    change = np.flatnonzero(level != np.roll(level, 1))
    if not len(change):
        return []
    order = np.roll(np.arange(len(level)), -int(change[0]))
    lines: list[Line] = []
    for index in order.tolist():
        axis = 1 if level[index] else 0
        position = float(corners[index : index + 2, axis].mean())
        weight = float(abs(steps[index, 1 - axis]))
        if lines and lines[-1][0] == bool(level[index]):
            _, old, mass = lines[-1]
            lines[-1] = (bool(level[index]), (old * mass + position * weight) / (mass + weight), mass + weight)
        else:
            lines.append((bool(level[index]), position, weight))
    return lines


def _without_short(lines: list[Line], shortest: float) -> NDArray[np.float64] | None:
    """Corners after lines shorter than `shortest` are left out, the shortest first; their neighbours become one."""
    while True:
        corners = _corners(lines)
        lengths = np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)
        index = int(lengths.argmin())
        if lengths[index] >= shortest:
            return corners
        if len(lines) <= 4:
            return None if lengths[index] <= 0 else corners
        before, after = (index - 1) % len(lines), (index + 1) % len(lines)
        level, first, mass = lines[before]
        _, second, other = lines[after]
        total = max(mass + other, 1e-12)
        merged = (level, (first * mass + second * other) / total, total)
        lines = [merged if i == before else line for i, line in enumerate(lines) if i not in (index, after)]


def _corners(lines: list[Line]) -> NDArray[np.float64]:
    """Corner i is where line i meets the one before, so that line i runs from corner i to corner i + 1."""
    found = []
    for index, (level, position, _) in enumerate(lines):
        other = lines[index - 1][1]
        found.append((other, position) if level else (position, other))
    return np.array(found)
