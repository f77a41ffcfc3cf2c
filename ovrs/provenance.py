"""What made a map: digests that decide whether a run may be continued, and the facts written into the store."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata
from typing import Any

from ovrs.errors import DigestMismatchError

NUMERICS = 3
"""Raised whenever the same options come to other scores. It enters every digest, so that no run is continued with other
numbers, and no result of another number is taken for a present one. `tests/test_56_numerics.py` holds it to the maps."""

_RECORDED = ("numpy", "torch", "open_clip_torch", "rasterio", "zarr", "odc-geo", "dask")


def digest(parts: dict[str, object]) -> dict[str, str]:
    """SHA-256 of each part's canonical JSON, so that a mismatch can be named."""
    return {name: hashlib.sha256(canonical(part).encode()).hexdigest()[:16] for name, part in sorted(parts.items())}


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks; the same text for the same content."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def require_same(found: dict[str, str], wanted: dict[str, str], where: str) -> None:
    """Refuse to continue a run that was begun with something else.

    Raises:
        DigestMismatchError: Names the parts that differ and the ways out.
    """
    different = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    if different:
        raise DigestMismatchError(
            f"{where} was begun with another {', '.join(different)}; its blocks cannot be mixed with this run's. "
            f"Repeat the first command to go on, choose another output, or pass --overwrite to begin anew"
        )


def versions() -> dict[str, str]:
    """Versions of the libraries that can change a number, and of the interpreter."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
