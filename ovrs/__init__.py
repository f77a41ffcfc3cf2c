"""Make open-vocabulary maps of large georeferenced scenes, adapted at test time."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"
"""The version of the program; `pyproject.toml` reads it from here."""

_LAZY = {
    "Map": "ovrs.store.map:Map",
    "MapOptions": "ovrs.options:MapOptions",
    "OvrsError": "ovrs.errors:OvrsError",
    "Segmenter": "ovrs.engine.contract:Segmenter",
    "TileScores": "ovrs.engine.contract:TileScores",
    "Vocabulary": "ovrs.words.vocabulary:Vocabulary",
    "load_vocabulary": "ovrs.words.vocabulary:load",
    "map_scene": "ovrs.pipeline:map_scene",
    "open": "ovrs.store.map:open_map",
    "resume": "ovrs.pipeline:resume",
}
"""Public names and where they live."""

__all__ = [*sorted(_LAZY), "__version__"]


def __getattr__(name: str) -> Any:
    """Import public names on first use: `import ovrs` loads neither torch nor rasterio."""
    if name not in _LAZY:
        raise AttributeError(f"module 'ovrs' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """List the public names alone; rooms are found in the documentation."""
    return list(__all__)
