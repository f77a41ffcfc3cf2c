"""Where text vectors and answers of language models are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$OVRS_CACHE`, else `ovrs` under the user's cache directory."""
    if own := os.environ.get("OVRS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovrs"
