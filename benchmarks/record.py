"""Keep what a command measured, with the command and the weights that it measured.

A results file is JSON of four keys: `command`, `machine`, `model` (digest of the bundled weights and of what
they come with: words and windows; null where the figures do not depend on them) and `results`. `python -m benchmarks.pages` writes the pages from these files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ASSETS = Path(__file__).parents[1] / "ovrs" / "assets"


@functools.cache
def weights() -> str:
    """Return the digest of the bundled weights and their recommendations: 16 hexadecimal digits of SHA-256."""
    told = json.loads((ASSETS / "ovrs.json").read_text())
    found = hashlib.sha256(json.dumps({k: v for k, v in told.items() if k != "licence"}, sort_keys=True).encode())
    found.update((ASSETS / "open_clip_model.safetensors").read_bytes())
    return found.hexdigest()[:16]


def command() -> str:
    """Return the command that runs, without the folders of this machine; a cache changes no figure."""
    arguments = sys.argv[1:]
    if "--cache" in arguments:
        at = arguments.index("--cache")
        del arguments[at : at + 2]
    for option, told in (("--data", "DATA"), ("--work", "FOLDER")):
        if option in arguments:
            arguments[arguments.index(option) + 1] = told
    if "--out" in arguments:
        at = arguments.index("--out")
        arguments[at + 1] = f"benchmarks/results/{Path(arguments[at + 1]).name}"
    quoted = [f'"{word}"' if " " in word else word for word in arguments]
    return " ".join(["python -m", sys.modules["__main__"].__spec__.name, *quoted])


def keep(path: Path, results: Any, *, bundled: bool = True) -> None:
    """Write the results of the command that runs.

    Args:
        path: JSON file to write; its folder is made.
        results: Anything that JSON holds.
        bundled: Whether the figures are those of the bundled weights.
    """
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    head = {"command": command(), "machine": machine, "model": weights() if bundled else None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head | {"results": results}, indent=1, ensure_ascii=False) + "\n")
