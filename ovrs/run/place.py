"""What a process must see and be to compute blocks of a run: scene, output and model, and the same code as the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs import __version__
from ovrs.errors import StoreError
from ovrs.provenance import NUMERICS, canonical
from ovrs.run import segmenters
from ovrs.scene import identity
from ovrs.store import layout as store

if TYPE_CHECKING:
    from ovrs.run.job import Job
    from ovrs.run.rundir import BlockRecord, RunDir

KINDS = "workers.json"
"""File of the run directory: the kinds of workers that computed blocks."""
OF_THE_PLACE = frozenset(
    (
        "BrokenPipeError",
        "ConnectionError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "FileNotFoundError",
        "GroupNotFoundError",
        "ImportError",
        "ModuleNotFoundError",
        "NodeNotFoundError",
        "NotADirectoryError",
        "OSError",
        "OutOfMemoryError",
        "OutputError",
        "PermissionError",
        "SceneReadError",
        "StoreError",
        "TimeoutError",
        "WeightsError",
    )
)
"""Classes of errors of a block that another process may not have."""


def require_seen(job: Job, begun: str) -> None:
    """Refuse to work where scene or output are not what the first process sees.

    Args:
        job: The run.
        begun: Time of its beginning, as `run.json` has it: tells the run from another one at the same path.

    Raises:
        OvrsError: The scene cannot be opened, or is another one; the output is absent, of another run, or read-only.
    """
    run, target = job.run_dir, job.target
    if not run.exists or not target.is_begun:
        missing = run.path if not run.exists else f"the unfinished map of {job.out}"
        raise StoreError(f"it does not see {missing}; all workers must see the output")
    if run.description().begun != begun:
        raise StoreError(f"it sees another run at {run.path}; all workers must see the same output")
    if isinstance(job.out, Path):
        for folder in (Path(str(run.path)), store.partial_path(job.out)):
            if not os.access(folder, os.W_OK):
                raise StoreError(f"it may not write to {folder}")
    identity.refuse_changed(job.scene.origin)
    job.scene.require_opening()


def facts_here(job: Job) -> dict[str, str]:
    """Return what this process is, in words that the workers of one run must share; loads the model.

    `device` is the kind of device, `threads` the number of threads of PyTorch on a CPU: both change sums in their last bits.
    """
    model: dict[str, Any] = segmenters.build(job.spec).describe()
    torch = sys.modules.get("torch")  # loaded with the model; `trivial` needs none
    found = {
        "ovrs": __version__,
        "numerics": str(NUMERICS),
        "weights": str(model.get("weights", "none"))[:16],
        "device": str(model.get("device", "cpu")),
    }
    if torch is not None:
        threads = str(model.get("threads", "")) if found["device"] == "cpu" else ""
        found |= {"torch": str(torch.__version__), "threads": threads}
    return {k: v for k, v in found.items() if v}


def wanted(job: Job) -> dict[str, str]:
    """Return what every worker must share: code and weights of this process's plan, the rest of whoever worked here before."""
    weights = str(job.run_dir.description().model.weights or "none")[:16]
    before = kinds(job.run_dir)
    return {**(before[0] if before else {}), "ovrs": __version__, "numerics": str(NUMERICS), "weights": weights}


def kinds(run: RunDir) -> list[dict[str, str]]:
    """Return the kinds of workers that computed blocks of a run, each as `facts_here` says."""
    found, fault = run.read(KINDS)
    content: Any = found
    return [] if fault else [dict(kind) for kind in content.get("kinds", [])]


def note_kind(run: RunDir, facts: dict[str, str]) -> None:
    """Record a kind of worker."""
    before = kinds(run)
    if canonical(facts) not in map(canonical, before):
        run.write(KINDS, {"kinds": [*before, facts]})


def is_of_the_place(records: list[BlockRecord]) -> bool:
    """Whether blocks failed for a reason that another process may not have."""
    return any(not r.finished and r.error in OF_THE_PLACE for r in records)
