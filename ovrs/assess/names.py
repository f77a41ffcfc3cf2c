"""Classes of a reference and classes of a map, brought to one list by name."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovrs.errors import OptionError
from ovrs.names import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NO_DATA = "(no data)"
"""Class of a place that the map leaves out."""


@dataclass(frozen=True, kw_only=True)
class Legend:
    """The classes that are assessed: those of the map first, in its order."""

    names: tuple[str, ...]
    own: int
    """How many are the map's."""

    def with_no_data(self) -> Legend:
        """Return the legend with `NO_DATA` at its end."""
        return Legend(names=(*self.names, NO_DATA), own=self.own)


def said(value: Any) -> str:
    """Return a label as one line; empty for a missing label."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return shown(text) if text and text.lower() not in ("nan", "none", "<na>") else ""


def match(labels: Sequence[Any], names: Sequence[str], told: str) -> tuple[NDArray[np.int64], Legend, list[str]]:
    """Give each label the number of its class; −1 for an empty label.

    Names match whatever their case. Labels that are all whole numbers below the number of classes are class numbers.

    Args:
        labels: What the reference holds.
        names: Classes of the map.
        told: How messages call the reference.

    Returns:
        Class numbers `(n,)`, the classes, and remarks.

    Raises:
        OptionError: No label is a class of the map.
    """
    texts = [said(v) for v in labels]
    known = {name.casefold(): i for i, name in enumerate(names)}
    distinct = sorted({t for t in texts if t})
    remarks: list[str] = []
    if not distinct:
        raise OptionError(f"{told} holds no label; fill in the class of each place, or name the attribute with --field")
    if not any(t.casefold() in known for t in distinct):
        if not all(t.isdigit() and int(t) < len(names) for t in distinct):
            raise OptionError(
                f"{told}: none of its labels ({', '.join(distinct[:6])}) is a class of the map ({', '.join(names)})"
            )
        known = {str(i): i for i in range(len(names))}
        remarks.append("the labels are taken for class numbers of the map")
    others = [t for t in distinct if t.casefold() not in known]
    extra: dict[str, int] = {}
    for text in others:
        extra.setdefault(text.casefold(), len(names) + len(extra))
        near = difflib.get_close_matches(text.casefold(), list(known), 1)
        hint = f"; is {names[known[near[0]]]!r} meant?" if near and not near[0].isdigit() else ""
        remarks.append(f"the map has no class {text!r}{hint}: places of it count as errors of the map")
    table = known | extra
    titles = dict.fromkeys(extra, "")
    for text in others:
        titles[text.casefold()] = titles[text.casefold()] or text
    found = np.array([table[t.casefold()] if t else -1 for t in texts], np.int64)
    return found, Legend(names=(*names, *titles.values()), own=len(names)), remarks
