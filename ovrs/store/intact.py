"""Whether the metadata of a finished store have the form that its readers rely on. Reads no chunk."""

from __future__ import annotations

import re
from typing import Any

import zarr
from pydantic import TypeAdapter, ValidationError

from ovrs.store.record import RunRecord

_GRID = TypeAdapter(tuple[float, float, float, float, float, float])
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)


def fault_of(group: zarr.Group) -> str:
    """Return what is wrong with the metadata of a finished store's root group; empty when nothing is."""
    try:
        attributes: Any = group.attrs
        record = RunRecord.model_validate(attributes["ovrs"])
        if "score" in group and not isinstance(group["score"], zarr.Array):
            return "score is no array"
        levels = [item["asset"] for item in attributes.get("multiscales", {}).get("layout", [])]
        for level in [".", *(name for name in levels if name != ".")]:
            fault = _level_fault(group if level == "." else group[level], level)
            if fault:
                return fault
        named: Any = group["label"].attrs["class_names"]
        if len(named) != len(record.classes):
            return f"the attribute 'ovrs' tells areas of {len(record.classes)} classes, the labels have {len(named)}"
    except ValidationError as error:
        first = error.errors()[0]
        return f"the attribute 'ovrs' is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})"
    except _DAMAGE as error:
        return f"damaged metadata ({type(error).__name__}: {error})"
    return ""


def _level_fault(level: Any, name: str) -> str:
    if not isinstance(level, zarr.Group):
        return f"level {name} is no group"
    attributes: Any = level.attrs
    shape = tuple(attributes["spatial:shape"])
    _GRID.validate_python(attributes["spatial:transform"])
    for layer in ("label", "confidence"):
        array = level[layer]
        if not isinstance(array, zarr.Array) or array.shape != shape or array.dtype.kind != "u":
            return f"level {name}: {layer} does not fit the grid {shape}"
    if not isinstance(level["spatial_ref"], zarr.Array):
        return f"level {name}: spatial_ref is no array"
    marks: Any = level["label"].attrs
    names, colours = marks["class_names"], marks["flag_colors"].split()
    if not all(isinstance(n, str) for n in names) or len(names) != len(colours):
        return f"level {name}: class names and colours do not fit"
    if not all(_COLOUR.fullmatch(c) for c in colours):
        return f"level {name}: the colours are damaged"
    return ""
