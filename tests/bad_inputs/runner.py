"""Run the command line in this process on one bad input and judge what it did."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

LIMIT_SECONDS = 60
REFUSED = frozenset({2, 3, 4})
"""Exit codes of requests that cannot be met, inputs that cannot be used, and maps that are not finished."""


@dataclass(frozen=True)
class Case:
    """One bad input, ready in a folder."""

    arguments: list[str]
    """What `ovrs` is called with; the folder is the working directory."""
    about: str
    may_pass: bool = False
    """The input may have come out usable: exit code 0 is right then."""
    keeps: tuple[str, ...] = ()
    """Beginnings of files that a refused run may leave: what it had begun and can be resumed."""


@dataclass
class Outcome:
    """What a call did."""

    code: int | None = None
    error: str = ""
    output: str = ""
    fault: str = ""
    """A traceback."""
    seconds: float = 0.0
    new: set[str] = field(default_factory=set)


class _TooLong(BaseException):
    """Not an Exception, so that nothing swallows it."""


def run(case: Case, folder: Path) -> Outcome:
    """Call `ovrs` with the case's arguments inside `folder`."""
    from ovrs.cli.app import main

    found, before = Outcome(), _files(folder)
    out, err, started = io.StringIO(), io.StringIO(), time.monotonic()
    handler = logging.StreamHandler(err)
    logging.getLogger().addHandler(handler)
    old_arguments, old_folder = sys.argv, Path.cwd()
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        os.chdir(folder)
        sys.argv = ["ovrs", *case.arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(action="ignore"):
            main()
        found.code = 0
    except SystemExit as end:
        found.code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except _TooLong:
        found.fault = f"hangs: more than {LIMIT_SECONDS} s"
    except BaseException:  # noqa: BLE001  (whatever comes out is the finding)
        found.fault = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.argv = old_arguments
        os.chdir(old_folder)
        logging.getLogger().removeHandler(handler)
    found.error, found.output = err.getvalue(), out.getvalue()
    found.seconds = time.monotonic() - started
    found.new = _files(folder) - before
    return found


def complaint(case: Case, outcome: Outcome) -> str:
    """What is wrong with an outcome; empty: nothing."""
    if outcome.fault:
        return outcome.fault
    if "Traceback" in outcome.error + outcome.output:
        return f"a traceback is shown:\n{outcome.error}"
    if outcome.code == 0:
        return "" if case.may_pass else f"accepted without a word:\n{outcome.output}{outcome.error}"
    if outcome.code not in REFUSED:
        return f"exit code {outcome.code} is not documented for this:\n{outcome.error}"
    if case.arguments[0] in ("status", "verify") and (outcome.output or outcome.error):  # their report is the answer
        return ""
    said = [line for line in outcome.error.splitlines() if line.lower().startswith("error")]
    if len(said) != 1 and "Usage:" not in outcome.error:
        return f"expected one line that begins with `error:`:\n{outcome.error or '(nothing)'}"
    if any(len(line) > 2000 for line in outcome.error.splitlines()):
        return f"a line of more than 2000 characters:\n{outcome.error[:500]}"
    left = sorted(f for f in outcome.new if not f.startswith(case.keeps))
    return f"left behind: {', '.join(left[:5])}\n{outcome.error}" if left else ""


def _ring(*_: object) -> None:
    raise _TooLong


def _files(folder: Path) -> set[str]:
    return {os.path.relpath(Path(root) / n, folder) for root, _, names in os.walk(folder) for n in names}
