"""What a map is cleaned by before it is exported; the stored map stays as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ovrs.errors import OptionError

WIDEST = 31
"""Side of the largest window of the majority filter, in pixels."""
_UNITS = {"m2": 1.0, "m²": 1.0, "ha": 1e4, "km2": 1e6, "km²": 1e6}
_AREA = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ]+[2²]?)?", re.I)


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """A second decision: what happens to labels between the store and a product."""

    majority: int = 0
    """Side in pixels, odd, of a window whose most frequent class its middle takes; 0: none."""
    unit_m2: float = 0.0
    """Smallest mapping unit in square metres on the ground; 0: none."""

    def __post_init__(self) -> None:
        if self.majority and not (self.majority % 2 and 3 <= self.majority <= WIDEST):
            raise OptionError(f"--majority takes an odd number of pixels from 3 to {WIDEST}, got {self.majority}")

    @property
    def note(self) -> str:
        """What was done, in words for products."""
        parts = []
        if self.majority:
            parts.append(f"majority of {self.majority} x {self.majority} pixels")
        if self.unit_m2:
            parts.append(f"minimum mapping unit {self.unit_m2:g} m²")
        return ", ".join(parts)

    def __bool__(self) -> bool:
        return bool(self.majority or self.unit_m2)


def area_of(text: str, option: str) -> float:
    """Square metres of `50m2`, `50`, `0.5ha` or `1km2`.

    Raises:
        OptionError: No positive area.
    """
    found = _AREA.fullmatch(text.strip())
    unit = (found[2] or "m2").lower() if found else ""
    if found is None or unit not in _UNITS or not 0 < float(found[1]) * _UNITS[unit] < float("inf"):
        raise OptionError(f"{option} takes a positive area such as 50m2, 0.5ha or 1km2, got {text!r}")
    return float(found[1]) * _UNITS[unit]
