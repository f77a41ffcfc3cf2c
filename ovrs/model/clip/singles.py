"""Single files of open_clip, run without the rest of its package, whose import takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ovrs.errors import WeightsError

COLOUR_MEAN = (0.48145466, 0.4578275, 0.40821073)
COLOUR_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's, of red, green and blue: what open_clip takes where a description has none."""


@functools.cache
def part(name: str) -> Any:
    """Return a module of open_clip that needs none of the others: `tokenizer`, `zero_shot_metadata`.

    Raises:
        WeightsError: open_clip is not installed.
    """
    full = f"open_clip.{name}"
    if full in sys.modules:
        return sys.modules[full]
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise WeightsError("open_clip is not installed: pip install open_clip_torch")
    own = f"{__name__}.{name}"
    spec = importlib.util.spec_from_file_location(own, Path(package.submodule_search_locations[0]) / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
