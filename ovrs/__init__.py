"""Open-vocabulary maps of large georeferenced scenes, adapted to each tile at test time."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "map_scene": "ovrs.pipeline",
    "resume": "ovrs.pipeline",
    "load_vocabulary": "ovrs.words.vocabulary",
    "Vocabulary": "ovrs.words.vocabulary",
    "MapOptions": "ovrs.options",
    "open_complete": "ovrs.store.layout",
    "OvrsError": "ovrs.errors",
    "Segmenter": "ovrs.engine.contract",
    "TileScores": "ovrs.engine.contract",
}
_RENAMED = {"load_vocabulary": "load"}

__all__ = [*sorted(_LAZY), "__version__"]


def __getattr__(name: str) -> Any:
    """Import public names on first use: `import ovrs` loads neither torch nor rasterio."""
    if name not in _LAZY:
        raise AttributeError(f"module 'ovrs' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), _RENAMED.get(name, name))
