"""Run `ovrs` as a process: progress and messages go to QGIS's feedback, cancelling ends it, an error is one line.

Knows nothing of QGIS. Written for the Python of QGIS, 3.9 and newer.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

SETUP = Path(__file__).with_name("ovrs.json")
PATIENCE_SECONDS = 20.0
"""After so long a cancelled process is killed; until then it keeps what is done."""
_POLL_SECONDS = 0.2
_OF_QGIS = ("GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""Variables by which QGIS finds its own libraries; with `PYTHON…` they would mislead another Python."""


class Failed(Exception):  # noqa: N818  (what happened)
    """`ovrs` ended with an error; the text is its one line."""


class Cancelled(Exception):  # noqa: N818
    """The user cancelled."""


def setup() -> Any:
    """Return what `ovrs qgis install` wrote: the command, its path, and the names of methods and vocabularies.

    Raises:
        Failed: The file is gone or damaged.
    """
    try:
        found: Any = json.loads(SETUP.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Failed(f"{SETUP.name} cannot be read ({error}); run `ovrs qgis install` again") from error
    return found


def run(arguments: list[str], feedback: Any, told: Any = None) -> list[str]:
    """Run one command and return the lines of its standard output.

    Args:
        arguments: What follows `ovrs`.
        feedback: With `pushInfo`, `pushWarning`, `setProgress`, `setProgressText` and `isCanceled`.
        told: Content of `setup`; default: what was installed.

    Raises:
        Failed: It could not be started, or ended with an error.
        Cancelled: Says so.
    """
    told = setup() if told is None else told
    command = [*told["command"], *arguments]
    feedback.pushInfo(shown(["ovrs", *arguments]))
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment(told.get("path")),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise Failed(f"{command[0]} cannot be run ({error.strerror}); run `ovrs qgis install` again") from error
    with process:
        out, failure = _watched(process, feedback)
    if process.returncode:
        raise Failed(failure or f"ovrs ended with exit code {process.returncode}")
    return out


def _watched(process: Any, feedback: Any) -> tuple[list[str], str]:
    """Lines of standard output, and the line that names the error."""
    lines: queue.Queue[tuple[str, str | None]] = queue.Queue()
    for name in ("stdout", "stderr"):
        threading.Thread(target=_pump, args=(name, getattr(process, name), lines), daemon=True).start()
    out: list[str] = []
    failure, open_pipes = "", 2
    while open_pipes:
        if feedback.isCanceled():
            _end(process)
            raise Cancelled("cancelled; the same settings go on where it stopped")
        try:
            name, line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            open_pipes -= 1
        elif name == "stdout":
            out.append(line)
            (feedback.pushWarning if line.startswith("caution:") else feedback.pushInfo)(line)
        elif line.startswith("error: "):
            failure = line[len("error: ") :]
        else:
            _tell(line, feedback)
    process.wait()
    return out, failure


def _pump(name: str, stream: Any, lines: queue.Queue[tuple[str, str | None]]) -> None:
    for line in stream:
        lines.put((name, line.rstrip("\r\n")))
    lines.put((name, None))


def _tell(line: str, feedback: Any) -> None:
    """Show a line of standard error: progress, or a message."""
    if line.startswith('{"event": "progress"'):
        try:
            facts = json.loads(line)
            done, total, left = facts["tiles"], facts["tiles_total"], facts["seconds_left"]
        except (ValueError, KeyError):
            feedback.pushInfo(line)
            return
        if total:
            feedback.setProgress(100.0 * done / total)
            after = "" if left is None else f", about {left:.0f} s left"
            feedback.setProgressText(f"{done} of {total} tiles{after}")
    elif line.lower().startswith("warning"):
        feedback.pushWarning(line)
    elif line:
        feedback.pushInfo(line)


def _end(process: Any) -> None:
    """End a process; it may keep what is done."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def environment(path: str | None = None) -> dict[str, str]:
    """Variables for another Python than that of QGIS; `path` is the folder that holds `ovrs`."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k not in _OF_QGIS}
    return {**found, "PYTHONUTF8": "1", **({"PYTHONPATH": path} if path else {})}


def shown(command: list[str], *, windows: bool = sys.platform == "win32") -> str:
    """Return a command as one can type it on this system."""
    if windows:
        return subprocess.list2cmdline(command)
    return " ".join(shlex.quote(part) for part in command)
