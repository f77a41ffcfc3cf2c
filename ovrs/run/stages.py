"""How fast each stage of a run is, and which one holds it up. From the seconds in the markers of its blocks.

Reading, computing and writing overlap, so the slowest of the three sets the pace; within computing the parts follow each
other. On a GPU calls return before the device is done: what it still owes counts as `download`, where it is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ovrs.run.rundir import BlockRecord

LANES = ("read", "compute", "write")
PARTS = ("upload", "model", "blend", "download")
"""Of computing: pixels to the device; encoding and adapting; blending and deciding; labels back."""
_SPOKEN = {"read": "reading", "write": "writing", "compute": "computing", "model": "the model", "upload": "the upload"}


def seconds(records: Iterable[BlockRecord]) -> dict[str, float]:
    """Sum the seconds of each stage over blocks and workers."""
    found = dict.fromkeys((*LANES, *PARTS), 0.0)
    for record in records:
        for name, spent in record.stages.items():
            found[name] = found.get(name, 0.0) + spent
    return {name: round(spent, 3) for name, spent in found.items()}


def rates(spent: Mapping[str, float], pixels: int) -> dict[str, float]:
    """Megapixels of map a second for each stage that took time, per worker that does nothing else."""
    return {name: round(pixels / 1e6 / s, 3) for name, s in spent.items() if s > 0 and pixels}


def slowest(spent: Mapping[str, float]) -> str:
    """Name the stage that holds a run up: a lane, or the largest part of computing; empty where nothing was timed."""
    lane = max(LANES, key=lambda name: spent.get(name, 0.0))
    if not spent.get(lane, 0.0):
        return ""
    part = max(PARTS, key=lambda name: spent.get(name, 0.0))
    return part if lane == "compute" and spent.get(part, 0.0) else lane


def line(spent: Mapping[str, float], pixels: int) -> str:
    """Tell rates and the slowest stage in one line, for people; empty where nothing was timed."""
    found, held = rates(spent, pixels), slowest(spent)
    if not found or not held:
        return ""
    told = [f"{name} {_short(found[name])}" for name in LANES if name in found]
    parts = ", ".join(f"{name} {_short(found[name])}" for name in PARTS if name in found)
    inside = f" (of computing: {parts})" if parts else ""
    return f"Mpx/s per worker: {', '.join(told)}{inside}; {_SPOKEN.get(held, f'the {held}')} holds the run up"


def _short(rate: float) -> str:
    return f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"
