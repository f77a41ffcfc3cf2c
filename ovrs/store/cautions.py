"""What a reader should know before trusting a map, told by its record alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovrs.store.record import RunRecord

SKETCH = "sketch: not for decisions"
"""What every product of the bundled model says where it has room for a word."""
KNOWN_SIZES = (0.1, 1.0)
"""Sides of a pixel, in metres on the ground, that the models know."""
_SLACK = 1.05
LARGE_SHARE = 60.0
"""Percent of the ground from which a class is doubtful."""
LOW_CONFIDENCE = 0.5
_NAMED = 8
NEARLY_ALWAYS = 50.0
"""Percent of a class's pixels from which near ties with another one make the two doubtful."""
_COUNTED = 50
"""Counted pixels that a class needs before its ties mean something."""


def is_sketch(record: RunRecord) -> bool:
    """Whether the bundled model made the map."""
    return record.model.model == "bundled"


def cautions(record: RunRecord) -> list[str]:
    """Sentences about pixel size, shares of classes, confidence and the model; none for a map without a network."""
    if record.model.model == "trivial" or not record.valid_pixels:
        return []
    found = []
    if is_sketch(record):
        found.append(f"{SKETCH} (the bundled model is small; assess the map before you use its numbers)")
    size = max(record.pixel_size_m)
    if record.metres_on_ground is not False and not (KNOWN_SIZES[0] / _SLACK <= size <= KNOWN_SIZES[1] * _SLACK):
        way = "expect little of the map" if size > KNOWN_SIZES[1] else "--gsd 0.2 works on coarser pixels"
        found.append(
            f"pixels are {size:.3g} m on the ground; the models know {KNOWN_SIZES[0]:g} to {KNOWN_SIZES[1]:g} m: {way}"
        )
    large = [c for c in record.classes if c.percent > LARGE_SHARE] if len(record.classes) > 1 else []
    found += [f"{c.name} covers {c.percent:.0f} percent; is its word too wide, or does a class lack?" for c in large]
    absent = [c.name for c in record.classes if not c.pixels]
    if absent:
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        found.append(f"nowhere in the map: {', '.join(absent[:_NAMED])}{more}")
    found += _rarely_told_apart(record)
    if record.mean_confidence is not None and record.mean_confidence < LOW_CONFIDENCE:
        found.append(
            f"mean confidence is {record.mean_confidence:.2f}, below {LOW_CONFIDENCE:g}; try other words or an adaptation"
        )
    return found


def _rarely_told_apart(record: RunRecord) -> list[str]:
    """One sentence for each pair of classes."""
    seen: dict[frozenset[str], str] = {}
    for tie in record.near_ties or []:
        if tie.percent >= NEARLY_ALWAYS and tie.pixels >= _COUNTED:
            seen.setdefault(
                frozenset((tie.name, tie.second)),
                f"{tie.name} and {tie.second} are rarely told apart: in {tie.percent:.0f} percent of the pixels of {tie.name}, "
                f"{tie.second} is nearly as high; join them, or use other words",
            )
    return list(seen.values())[:_NAMED]
